"""Data: RLDS in and out, one training store, its sampler, rewards, statistics and instruction embeddings.

`open_rlds` reads Episodes, `convert` makes a Store of them, `ChunkSampler` draws from it. Names are imported from here
(`from data import Store`); the modules behind them are loaded on first use, so that the command line starts at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
