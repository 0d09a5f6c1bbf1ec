"""Store: the training store, diffusion_policy's zarr layout with rewards, statistics and provenance. Read-only; `convert` writes it.

    data/{action, proprio, state, image_*}            concatenated over time, T+1 rows an episode of T transitions
    data/{reward, mask, mc_return, instruction_index} the same rows
    meta/{episode_ends, success}                      episode_ends: cumulative and exclusive, in rows; success: 1, 0, or -1 unlabelled
    meta/instruction_embeddings                       float32 [N,D], row i for attributes["instructions"][i]

The last row of an episode is its final observation: no transition starts there. Its action repeats the last one, its reward, mask
and mc_return are 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.episode import check_action
from data.errors import InputError
from data.language import LanguageEncoder
from data.store.zarr_array import MappedArray

VERSION = 1
LABELS = ("action", "reward", "mask", "mc_return", "instruction_index")
ATTRIBUTES = ("robot_rl_store", "source", "action", "statistics", "reward", "language_model", "instructions", "counts")


def is_store(path: Path) -> bool:
    """Whether a folder is a store of ours, of any version, whole or damaged."""
    try:
        return "robot_rl_store" in json.loads((path / ".zattrs").read_text())
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Store:
    """attributes: the group's, as `convert` wrote them. arrays: data/<key>. episode_ends: int64 [E], in rows. success: int8 [E]."""

    path: Path
    attributes: dict[str, Any]
    arrays: dict[str, MappedArray]
    episode_ends: np.ndarray
    success: np.ndarray
    language: LanguageEncoder

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open and check a store. InputError when it is missing, damaged, truncated, or something else."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: no such training store; make one with `robot-rl data convert`")
        if not is_store(path):
            raise InputError(f"{path}: not a training store of robot-rl; make one with `robot-rl data convert`")
        attributes = json.loads((path / ".zattrs").read_text())
        if attributes["robot_rl_store"] != VERSION:
            raise InputError(
                f"{path}: a store of version {attributes['robot_rl_store']}, not {VERSION}; convert the dataset again"
            )
        missing = [key for key in ATTRIBUTES if key not in attributes]
        if missing:
            raise InputError(f"{path}/.zattrs: lacks {', '.join(missing)}; convert the dataset again")
        check_action(attributes["action"], f"{path}/.zattrs")
        keys = (
            sorted(folder.name for folder in (path / "data").iterdir() if folder.is_dir()) if (path / "data").is_dir() else []
        )
        arrays = {key: MappedArray(path / "data" / key) for key in dict.fromkeys((*LABELS, *keys))}
        ends, success, embeddings = (
            MappedArray(path / "meta" / key).load() for key in ("episode_ends", "success", "instruction_embeddings")
        )
        _check(path, attributes, arrays, ends, success, embeddings)
        language = LanguageEncoder(attributes["language_model"], dict(zip(attributes["instructions"], embeddings, strict=True)))
        return cls(path, attributes, arrays, ends, success, language)

    @property
    def name(self) -> str:
        """The dataset it was made from."""
        return str(self.attributes["source"]["name"])

    @property
    def action(self) -> dict[str, Any]:
        """names, units, low, high, frame, control_hz."""
        return dict(self.attributes["action"])

    @property
    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """mean, std, min, max, q01 and q99 over the transition rows, of `action`, `proprio` and `state`."""
        return dict(self.attributes["statistics"])

    @property
    def reward(self) -> dict[str, Any]:
        """The reward convention: step and success rewards, success_steps, discount."""
        return dict(self.attributes["reward"])

    @property
    def instructions(self) -> list[str]:
        return list(self.attributes["instructions"])

    @property
    def counts(self) -> dict[str, int]:
        """episodes, steps (observations, T+1 an episode) and transitions."""
        return dict(self.attributes["counts"])

    @property
    def observation_keys(self) -> list[str]:
        return [key for key in self.arrays if key not in LABELS]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one row of data/<key>. InputError when there is no such key."""
        return self._array(key).shape[1:]

    def gather(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Rows [N] of data/<key>, copied from mapped memory: [N, ...]."""
        return self._array(key).gather(rows)

    def load(self, key: str) -> np.ndarray:
        """The whole of data/<key>, in memory: [rows, ...]."""
        return self._array(key).load()

    def _array(self, key: str) -> MappedArray:
        if key not in self.arrays:
            raise InputError(f"{self.path}: has no {key!r}; it has {', '.join(self.arrays)}")
        return self.arrays[key]


def _check(
    path: Path,
    attributes: dict[str, Any],
    arrays: dict[str, MappedArray],
    ends: np.ndarray,
    success: np.ndarray,
    embeddings: np.ndarray,
) -> None:
    rows = int(ends[-1]) if len(ends) else 0
    if not rows or len(ends) != len(success) or (np.diff(ends, prepend=0) < 2).any():
        raise InputError(f"{path}/meta: episode_ends and success do not describe whole episodes; convert the dataset again")
    for key, array in arrays.items():
        if len(array) != rows:
            raise InputError(f"{path}/data/{key}: has {len(array)} rows, the episodes have {rows}; convert the dataset again")
    if len(embeddings) != len(attributes["instructions"]):
        raise InputError(
            f"{path}/meta/instruction_embeddings: {len(embeddings)} for {len(attributes['instructions'])} instructions"
        )
    if arrays["action"].shape[1:] != (len(attributes["action"]["names"]),):
        raise InputError(
            f"{path}/data/action: rows of {arrays['action'].shape[1:]}, described with {attributes['action']['names']}"
        )
