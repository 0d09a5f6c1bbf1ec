"""RLDS datasets on disk (TFDS folders of TFRecord or ArrayRecord shards), read without TensorFlow, one episode in memory at a time.

This module knows the format and nothing of what the features mean: `data.open_x` turns a RawEpisode into an Episode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, reason
from data.formats.array_record import read_array_records
from data.formats.base import Feature
from data.formats.description import find_description
from data.formats.features import decode, parse_features
from data.formats.tfds_features import decode_by_tfds
from data.formats.tfrecord import RestLostError, parse_example, read_records

_READERS = {"tfrecord": read_records, "array_record": read_array_records}
_STEPS, _METADATA = "steps/", "episode_metadata/"


@dataclass(frozen=True)
class RldsEpisode:
    """One RLDS episode of N steps; features are decoded when they are asked for. values, leaves: by flattened name.

    folder, record: of the dataset, and serialised, for features that only TFDS reads.
    """

    values: dict[str, Any]
    leaves: dict[str, Feature]
    source: str
    folder: Path
    record: bytes

    @cached_property
    def num_steps(self) -> int:
        """N, from the flattened features that hold a known number of values a step."""
        known = [leaf for name, leaf in self.leaves.items() if name.startswith(_STEPS) and name in self.values]
        # Those of one value a step first: a wrong shape of another feature is then found, and named.
        for leaf in sorted(known, key=lambda leaf: len(leaf.shape) if leaf.kind == "tensor" else 0):
            size = int(np.prod(leaf.shape)) if leaf.kind == "tensor" and leaf.encoding == "none" else 1
            if not leaf.unsupported and size:
                return len(self.values[leaf.name]) // size
        raise InputError(f"{self.source}: no step feature that can be read tells how many steps there are")

    def step(self, key: str, limit: int | None = None) -> Any:
        name = _STEPS + key
        if name in self.leaves and self.leaves[name].unsupported:
            return decode_by_tfds(self.folder, self.record, self.leaves[name], self.source)
        if name not in self.leaves or name not in self.values:
            present = (name.removeprefix(_STEPS) for name in self.leaves if name.startswith(_STEPS) and name in self.values)
            raise InputError(f"{self.source}: no step feature {key!r} (present: {', '.join(sorted(present))})")
        leaf, values = self.leaves[name], self.values[name]
        if limit is not None and leaf.kind == "image":
            return decode(leaf, values[:limit], self.source)
        result = decode(leaf, values, self.source)
        if len(result) != self.num_steps:
            raise InputError(
                f"{self.source}: {key} has {len(result)} steps, others have {self.num_steps}; drop it with --skip-bad"
            )
        return result

    def metadata(self, key: str, default: Any = None) -> Any:
        """A scalar of `episode_metadata`, or of the episode itself."""
        for name in (_METADATA + key, key):
            if name in self.leaves and len(self.values.get(name, ())):
                return decode(self.leaves[name], self.values[name], self.source)[0]
        return default

    def texts(self) -> dict[str, str]:
        """The text fields of `episode_metadata`."""
        names = [name for name, leaf in self.leaves.items() if leaf.kind == "text" and name.startswith(_METADATA)]
        keys = [name.removeprefix(_METADATA) for name in names if not self.leaves[name].unsupported]
        return {key: self.metadata(key, "") for key in keys}


@dataclass(frozen=True)
class RldsDataset:
    """An opened dataset. leaves: flattened name -> feature; shards: split -> [(file, number of records)].

    absent: splits of dataset_info.json of which no file is there -> the first of them.
    """

    path: Path
    name: str
    leaves: dict[str, Feature]
    shards: dict[str, list[tuple[Path, int]]]
    description: dict[str, Any] | None
    file_format: str = "tfrecord"
    absent: Mapping[str, Path] = field(default_factory=dict)
    format: str = "rlds"

    @property
    def features(self) -> Mapping[str, Feature]:
        return {name.removeprefix(_STEPS): leaf for name, leaf in self.leaves.items() if name.startswith(_STEPS)}

    @property
    def splits(self) -> Mapping[str, int]:
        return {name: sum(length for _, length in files) for name, files in self.shards.items()}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        try:
            return path.is_dir() and ((path / "dataset_info.json").exists() or bool(_versions(path)))
        except OSError:
            return False

    @classmethod
    def open(cls, path: str | Path) -> RldsDataset:
        """Open `.../name/1.0.0`, or its parent when that holds a single version. InputError says what is missing."""
        folder = _version_folder(Path(path))
        info = read_json(folder / "dataset_info.json")
        leaves = parse_features(read_json(folder / "features.json"), str(folder / "features.json"))
        if str(info.get("fileFormat", "tfrecord")) not in _READERS:
            raise InputError(
                f"{folder}: the files are {info['fileFormat']}, readable are {', '.join(_READERS)}; convert them with TFDS"
            )
        try:
            name = info["name"]
            shards = {split["name"]: _shards(folder, info, split) for split in info["splits"]}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{folder / 'dataset_info.json'}: not a TFDS dataset_info ({reason(error)})") from None
        copied = _present(shards)
        absent = {split: files[0][0] for split, files in shards.items() if split not in copied}
        file_format = info.get("fileFormat", "tfrecord")
        return cls(folder, name, leaves, copied, find_description(folder), file_format, absent)

    def episodes(self, split: str, indices: range) -> Iterator[RldsEpisode | InputError]:
        start = 0
        for file, expected in self.shards[split]:
            wanted = range(max(indices.start - start, 0), min(indices.stop - start, expected))
            if wanted:
                yield from self._shard(split, start, file, expected, wanted)
            start += expected

    def _shard(self, split: str, start: int, file: Path, expected: int, wanted: range) -> Iterator[RldsEpisode | InputError]:
        # One record after the last tells whether there are too many.
        around = range(wanted.start, wanted.stop + (wanted.stop == expected))
        for record, data in _READERS[self.file_format](file, around):
            if record == expected:
                if data is not None:
                    yield InputError(f"{file}: has more records than the {expected} of dataset_info.json; copy the file again")
            elif data is None or isinstance(data, RestLostError):
                why = data or f"{file}: ends after {record} records, dataset_info.json says {expected}"
                lost = (
                    f"#{start + record} to #{start + expected - 1} of {split}"
                    if record < expected - 1
                    else f"#{start + record}"
                )
                for _ in range(max(record, wanted.start), wanted.stop):
                    yield InputError(
                        f"{why}; lost are {expected - record} of its {expected} episodes, {lost}: copy the file again, or leave them "
                        "out with --skip-bad"
                    )
            else:
                yield self._episode(data, f"{self.name} {split} #{start + record} ({file.name} record {record})")

    def _episode(self, data: bytes | InputError, source: str) -> RldsEpisode | InputError:
        if isinstance(data, InputError):
            return data
        try:
            return RldsEpisode(parse_example(data, source), self.leaves, source, self.path, data)
        except InputError as error:
            return error


def _versions(path: Path) -> list[Path]:
    found = (child for child in path.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", child.name))
    return sorted((child for child in found if (child / "dataset_info.json").exists()), key=lambda child: child.name)


def _version_folder(path: Path) -> Path:
    if (path / "dataset_info.json").exists():
        return path
    versions = _versions(path) if path.is_dir() else []
    if len(versions) == 1:
        return versions[0]
    if versions:
        raise InputError(f"{path}: has versions {', '.join(v.name for v in versions)}; give one, such as {versions[-1]}")
    raise InputError(
        f"{path}: no dataset_info.json, so this is no RLDS dataset folder; give one such as .../bridge_dataset/1.0.0"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError when it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy the dataset again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); copy the dataset again") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); copy the dataset again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {json.dumps(value)[:40]}, expected a JSON object; copy the dataset again")
    return value


def _shards(folder: Path, info: dict[str, Any], split: dict[str, Any]) -> list[tuple[Path, int]]:
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": info.get("fileFormat", "tfrecord")}
    shards = []
    for index, length in enumerate(lengths):
        x, y = f"{index:05d}", f"{len(lengths):05d}"
        name = template.format(**names, SHARD_INDEX=x, NUM_SHARDS=y, SHARD_X_OF_Y=f"{x}-of-{y}")
        shards.append((folder / name, length))
    return shards


def _present(shards: dict[str, list[tuple[Path, int]]]) -> dict[str, list[tuple[Path, int]]]:
    """Leave out splits that were not copied at all; InputError when files of a split are missing."""
    there = {split: [file.exists() for file, _ in files] for split, files in shards.items()}
    copied = {split: files for split, files in shards.items() if any(there[split]) or not files}
    for split, files in (copied if any(map(any, there.values())) else shards).items():
        for (file, _), exists in zip(files, there[split], strict=True):
            if not exists:
                raise InputError(f"{file}: missing, though dataset_info.json lists it; copy the dataset again")
    return copied
