"""Data: readers of every format that robot data come in, one training store, its samplers, labels, quality checks and replay.

`open_dataset` reads Episodes, `convert` makes a Store of them, `ChunkSampler` draws from it. Names are imported from here
(`from data import Store`); the modules behind them are loaded on first use, so that the command line starts at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
