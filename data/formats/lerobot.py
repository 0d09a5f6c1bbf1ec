"""LeRobotDataset v2.1 and v3.0 on disk (parquet, and video or embedded images), read without lerobot, an episode in memory at a time.

This module knows the format and nothing of what the features mean: `data.open_x` turns a LeRobotEpisode into an Episode. Features
keep their names in info.json (`observation.images.top`); `task` is the text that a step's task_index stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Feature
from data.formats.description import find_description, merge_description
from data.formats.features import decode
from data.formats.lerobot_description import describe
from data.formats.lerobot_meta import INFO, Entry, Meta
from data.formats.lerobot_rows import RowReader, Rows, to_files, to_numpy, to_texts
from data.formats.video import VideoReader


class _Files:
    """What is open while a range is read: one parquet file, and one video of each camera."""

    def __init__(self) -> None:
        self.rows = RowReader()
        self._videos: dict[str, VideoReader] = {}

    def video(self, key: str, path: Path) -> VideoReader:
        if key not in self._videos or self._videos[key].path != path:
            self.close(key)
            self._videos[key] = VideoReader(path)
        return self._videos[key]

    def close(self, key: str) -> None:
        if key in self._videos:
            self._videos.pop(key).close()


@dataclass(frozen=True)
class LeRobotEpisode:
    """One episode of N frames; a column is read, and a video decoded, when it is asked for."""

    meta: Meta
    features: Mapping[str, Feature]
    entry: Entry
    rows: Rows
    source: str
    files: _Files = field(repr=False)

    @property
    def num_steps(self) -> int:
        return self.entry.length

    def step(self, key: str, limit: int | None = None) -> Any:
        feature = self.features.get(key)
        if feature is None:
            raise InputError(f"{self.source}: no step feature {key!r} (present: {', '.join(sorted(self.features))})")
        if feature.unsupported:
            raise InputError(f"{self.source}: {key} is {feature.unsupported}, which this reader does not support")
        try:
            return self._read(feature, limit)
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(self.source) else f"{self.source}: {key}: {text}") from None

    def _read(self, feature: Feature, limit: int | None) -> Any:
        if feature.name in ("task", "subtask") and feature.name not in self.meta.info["features"]:
            return self._texts(feature.name)
        if feature.name in self.entry.videos:
            return self._frames(feature, limit)
        column = self.files.rows.column(self.rows, feature.name)
        if feature.kind == "image":
            images = to_files(column if limit is None else column.slice(0, limit), self.meta.root)
            return self._sized(feature, decode(feature, images, self.source))
        return to_texts(column) if feature.kind == "text" else to_numpy(feature, column)

    def _texts(self, kind: str) -> list[str]:
        table = self.meta.tasks if kind == "task" else self.meta.subtasks
        index = to_numpy(Feature(f"{kind}_index", "tensor", "int64", (1,)), self.files.rows.column(self.rows, f"{kind}_index"))
        unknown = sorted(set(index[:, 0].tolist()) - set(table))
        if unknown:
            raise InputError(f"{kind}_index {unknown[0]} is not among the {len(table)} texts of meta/{kind}s; copy meta/ again")
        return [table[number] for number in index[:, 0].tolist()]

    def _frames(self, feature: Feature, limit: int | None) -> np.ndarray:
        path, start = self.entry.videos[feature.name]
        times = to_numpy(Feature("timestamp", "tensor", "float64", (1,)), self.files.rows.column(self.rows, "timestamp"))[:, 0]
        if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise InputError("the timestamps of its rows do not increase, so its frames cannot be found")
        try:
            return self._sized(feature, self.files.video(feature.name, path).frames(start + times[:limit]))
        except InputError:
            # A decoder that met damage is not used again.
            self.files.close(feature.name)
            raise

    def _sized(self, feature: Feature, frames: np.ndarray) -> np.ndarray:
        if frames.shape[1:] != feature.shape:
            raise InputError(f"frames are {list(frames.shape[1:])}, info.json says {list(feature.shape)}; repair info.json")
        return frames

    def metadata(self, key: str, default: Any = None) -> Any:
        """A field of the episode in meta/episodes; `success` is else whether `next.success` is true at a step."""
        if self.entry.fields.get(key) is not None:
            return self.entry.fields[key]
        if key == "success" and key not in self.entry.fields and "next.success" in self.features:
            return bool(np.any(self.step("next.success")))
        return default

    def texts(self) -> dict[str, str]:
        """The texts among the episode's fields in meta/episodes."""
        return {key: value for key, value in self.entry.fields.items() if isinstance(value, str)}


@dataclass(frozen=True)
class LeRobotDataset:
    """An opened dataset; see data.formats.base.Dataset. own: its robot_rl.json, if it has one."""

    path: Path
    meta: Meta
    own: dict[str, Any] | None = None
    format: str = "lerobot"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        # By the file's name alone: a damaged one is still a LeRobotDataset, and `open` says what is wrong with it.
        return (path / INFO).is_file()

    @classmethod
    def open(cls, path: str | Path) -> LeRobotDataset:
        """The folder that has meta/info.json. InputError says what is missing, damaged, or too old to be read."""
        path = Path(path)
        if not cls.recognizes(path):
            raise InputError(f"{path}: no {INFO}, so this is no LeRobotDataset; give the folder above meta/")
        dataset = cls(path, Meta.read(path), find_description(path))
        # Here and not at the first episode, so that a damaged info.json is one error.
        dataset.features  # noqa: B018
        return dataset

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def features(self) -> dict[str, Feature]:
        return self.meta.features()

    @property
    def splits(self) -> dict[str, int]:
        return {name: len(numbers) for name, numbers in self.meta.splits.items()}

    @cached_property
    def description(self) -> dict[str, Any] | None:
        return merge_description(describe(self.meta.info, self.features, self.meta.action_statistics()), self.own)

    def episodes(self, split: str, indices: range) -> Iterator[LeRobotEpisode | InputError]:
        files = _Files()
        for index in indices:
            source = f"{self.name} {split} #{index}"
            try:
                entry = self.meta.entry(self.meta.splits[split][index])
                rows = files.rows.find(entry.data, entry.number, entry.length)
            except InputError as error:
                yield InputError(f"{source}: {error}")
                continue
            where = f"{source} ({entry.data.relative_to(self.path)} episode {entry.number})"
            yield LeRobotEpisode(self.meta, self.features, entry, rows, where, files)
