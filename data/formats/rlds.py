"""RLDS datasets on disk (TFDS folders of TFRecord shards), read without TensorFlow, one episode in memory at a time.

This module knows the format and nothing of what the features mean: `data.open_x.standardize` turns a RawEpisode into an Episode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.formats.features import Feature, decode, parse_features
from data.formats.tfrecord import OnBad, parse_example, read_records

METADATA_FILE = "robot_rl.json"
"""Beside dataset_info.json: what RLDS has no place for (the action description and the key names); TFDS ignores it."""


@dataclass(frozen=True)
class RawEpisode:
    """One RLDS episode of N steps; features are decoded when they are asked for."""

    values: dict[str, Any]
    features: dict[str, Feature]
    source: str

    @cached_property
    def num_steps(self) -> int:
        """N, from the flattened features that hold one value a step."""
        for name, feature in self.features.items():
            if name.startswith("steps/") and not feature.shape and not feature.unsupported and name in self.values:
                return len(self.values[name])
        raise InputError(f"{self.source}: no scalar step feature (is_first, reward, ...) tells how many steps there are")

    def step(self, key: str, limit: int | None = None) -> Any:
        """A step feature over time: array [N, ...], or a list of N strings; `limit` decodes only the first steps of an image."""
        name = f"steps/{key}"
        if name not in self.features or name not in self.values:
            raise InputError(f"{self.source}: no step feature {key!r} (present: {', '.join(step_keys(self.features))})")
        values = self.values[name]
        if limit is not None and self.features[name].kind == "image":
            return decode(self.features[name], values[:limit], self.source)
        result = decode(self.features[name], values, self.source)
        if len(result) != self.num_steps:
            raise InputError(
                f"{self.source}: {key} has {len(result)} steps, others have {self.num_steps}; drop it with --skip-bad"
            )
        return result

    def metadata(self, key: str, default: Any = None) -> Any:
        """A scalar of `episode_metadata`, or default when the dataset has none of that name."""
        name = f"episode_metadata/{key}"
        if name not in self.features or not len(self.values.get(name, ())):
            return default
        return decode(self.features[name], self.values[name], self.source)[0]

    def texts(self) -> dict[str, str]:
        """The text fields of `episode_metadata`."""
        names = [
            name for name, feature in self.features.items() if feature.kind == "text" and name.startswith("episode_metadata/")
        ]
        return {
            name.removeprefix("episode_metadata/"): self.metadata(name.removeprefix("episode_metadata/"), "") for name in names
        }


def step_keys(features: dict[str, Feature]) -> list[str]:
    """Names of the step features, without the `steps/` prefix."""
    return sorted(name.removeprefix("steps/") for name in features if name.startswith("steps/"))


@dataclass(frozen=True)
class RldsDataset:
    """An opened dataset. shards: split -> [(file, number of records)]; description: its robot_rl.json, if it has one."""

    path: Path
    name: str
    features: dict[str, Feature]
    shards: dict[str, list[tuple[Path, int]]]
    description: dict[str, Any] | None

    @classmethod
    def open(cls, path: str | Path) -> RldsDataset:
        """Open `.../name/1.0.0`, or its parent when that holds a single version. InputError says what is missing."""
        folder = _version_folder(Path(path))
        info = read_json(folder / "dataset_info.json")
        features = parse_features(read_json(folder / "features.json"), str(folder / "features.json"))
        if info.get("fileFormat", "tfrecord") != "tfrecord":
            raise InputError(
                f"{folder}: the files are {info['fileFormat']}, only tfrecord is supported; convert them with TFDS"
            )
        try:
            name = info["name"]
            shards = {split["name"]: _shards(folder, name, split) for split in info["splits"]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / 'dataset_info.json'}: not a TFDS dataset_info ({error!r})") from None
        extra = folder / METADATA_FILE
        return cls(folder, name, features, shards, read_json(extra) if extra.exists() else None)

    def _files(self, split: str) -> list[tuple[Path, int]]:
        if split not in self.shards:
            raise InputError(f"{self.path}: no split {split!r}; it has {', '.join(map(repr, self.shards)) or 'none'}")
        for file, _ in self.shards[split]:
            if not file.exists():
                raise InputError(f"{file}: missing, though dataset_info.json lists it; copy the dataset again")
        return self.shards[split]

    def num_episodes(self, split: str) -> int:
        """Episodes that dataset_info.json declares. InputError for a split that is not there."""
        return sum(length for _, length in self._files(split))

    def episodes(self, split: str, on_bad: OnBad | None = None) -> Iterator[RawEpisode]:
        """Stream the episodes of a split in file order. Damaged records raise InputError, or go to `on_bad` and are skipped."""
        number = 0
        for file, expected in self._files(split):
            bad: list[InputError] = []

            def report(error: InputError, bad: list[InputError] = bad) -> None:
                if on_bad is None:
                    raise error
                bad.append(error)
                on_bad(error)

            good = 0
            for index, data in read_records(file, report):
                source = f"{self.name} {split} #{number + index} ({file.name} record {index})"
                try:
                    values = parse_example(data, source)
                except InputError as error:
                    report(error)
                    continue
                good += 1
                yield RawEpisode(values, self.features, source)
            if good + len(bad) != expected:
                report(InputError(f"{file}: {good} readable records, dataset_info.json says {expected}; copy the file again"))
            number += expected


def _version_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give an RLDS dataset folder such as .../bridge_dataset/1.0.0")
    if (path / "dataset_info.json").exists():
        return path
    versions = [child for child in path.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and child.is_dir()]
    if len(versions) == 1 and (versions[0] / "dataset_info.json").exists():
        return versions[0]
    if len(versions) > 1:
        raise InputError(
            f"{path}: has versions {', '.join(sorted(v.name for v in versions))}; give one, such as {max(versions)}"
        )
    raise InputError(
        f"{path}: no dataset_info.json, so this is no RLDS dataset folder; give one such as .../bridge_dataset/1.0.0"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError when it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy the dataset again") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); copy the dataset again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _shards(folder: Path, name: str, split: dict[str, Any]) -> list[tuple[Path, int]]:
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    return [
        (
            folder
            / template.format(
                DATASET=name, SPLIT=split["name"], FILEFORMAT="tfrecord", SHARD_X_OF_Y=f"{index:05d}-of-{len(lengths):05d}"
            ),
            length,
        )
        for index, length in enumerate(lengths)
    ]
