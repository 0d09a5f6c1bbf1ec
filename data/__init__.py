"""Data: RLDS in and out, one training store, its sampler, rewards, statistics and instruction embeddings.

`open_rlds` reads Episodes, `convert` makes a Store of them, `ChunkSampler` draws from it. Names are imported from here
(`from data import Store`); the modules behind them are loaded on first use, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.conversion import Conversion as Conversion
    from data.conversion import convert as convert
    from data.episode import Episode as Episode
    from data.errors import InputError as InputError
    from data.inspection import inspect as inspect
    from data.inspection import render as render
    from data.language import LanguageEncoder as LanguageEncoder
    from data.normalizer import Normalizer as Normalizer
    from data.rlds_writer import RldsWriter as RldsWriter
    from data.sampler import ChunkSampler as ChunkSampler
    from data.source import EpisodeSource as EpisodeSource
    from data.source import open_rlds as open_rlds
    from data.statistics import compute_statistics as compute_statistics
    from data.store import Store as Store

_MODULES = {
    "ChunkSampler": "sampler",
    "Conversion": "conversion",
    "Episode": "episode",
    "EpisodeSource": "source",
    "InputError": "errors",
    "LanguageEncoder": "language",
    "Normalizer": "normalizer",
    "RldsWriter": "rlds_writer",
    "Store": "store",
    "compute_statistics": "statistics",
    "convert": "conversion",
    "inspect": "inspection",
    "open_rlds": "source",
    "render": "inspection",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"data.{_MODULES[name]}"), name)
