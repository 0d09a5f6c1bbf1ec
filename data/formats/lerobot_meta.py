"""meta/ of a LeRobotDataset: what info.json says, and where each episode is. v2.1 and v3.0 differ here and nowhere else.

v3.0 keeps many episodes in a file (meta/episodes/*/*.parquet says which, and when in its videos an episode begins); v2.1 has a parquet
file and a video for each, and JSON lines in meta.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, reason
from data.formats.base import Feature
from data.formats.lerobot_rows import first_line
from data.formats.rlds import read_json

INFO = "meta/info.json"
VERSIONS = ("v2.1", "v3.0")
_STRUCTURE = re.compile(r"(data|meta|videos|stats)/.*|dataset_(from|to)_index|episode_index|tasks|length")
_DTYPES = {"bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


@dataclass(frozen=True)
class Entry:
    """One episode: its rows' file; of each video feature the file and the second at which it begins; other fields of its metadata."""

    number: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Meta:
    """Everything in meta/ but the statistics. episodes: a row an episode, a pyarrow table (v3.0) or dicts (v2.1)."""

    root: Path
    version: str
    info: dict[str, Any]
    tasks: dict[int, str]
    subtasks: dict[int, str]
    episodes: Any
    splits: dict[str, range]

    @classmethod
    def read(cls, root: Path) -> Meta:
        """InputError says what is missing, damaged or too old."""
        info = read_json(root / INFO)
        version = _version(root, info)
        if not isinstance(info.get("features"), dict) or not isinstance(info.get("fps"), (int, float)) or info["fps"] <= 0:
            raise InputError(f"{root / INFO}: not a LeRobotDataset's info (it needs `features` and `fps`); copy the file again")
        if version == "v2.1":
            episodes: Any = sorted(_json_lines(root / "meta/episodes.jsonl"), key=lambda line: _number(root, line))
            tasks = {line.get("task_index", -1): str(line.get("task", "")) for line in _json_lines(root / "meta/tasks.jsonl")}
            subtasks: dict[int, str] = {}
        else:
            episodes = _episode_table(root)
            tasks = _texts(root / "meta/tasks.parquet", "task")
            file = root / "meta/subtasks.parquet"
            subtasks = _texts(file, "subtask") if file.exists() else {}
        return cls(root, version, info, tasks, subtasks, episodes, _splits(root, info, len(episodes)))

    def entry(self, row: int) -> Entry:
        """InputError when the description of this episode is not complete."""
        line = self.episodes[row] if self.version == "v2.1" else self.episodes.slice(row, 1).to_pylist()[0]
        cameras = [key for key, feature in self.info["features"].items() if feature.get("dtype") == "video"]
        try:
            number = int(line["episode_index"])
            chunk = {"episode_chunk": number // int(self.info.get("chunks_size", 1000)), "episode_index": number}
            if self.version == "v2.1":
                data = self.root / self.info["data_path"].format(**chunk)
                videos = {key: (self.root / self.info["video_path"].format(video_key=key, **chunk), 0.0) for key in cameras}
            else:
                data = self.root / self.info["data_path"].format(**_place(line, "data"))
                videos = {key: self._video(line, key) for key in cameras}
            fields = {key: value for key, value in line.items() if not _STRUCTURE.fullmatch(key)}
            return Entry(number, int(line["length"]), data, videos, fields)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise InputError(
                f"{self.root}: the description of episode {row} in meta is not complete ({reason(error)}); copy meta/ again"
            ) from None

    def _video(self, line: dict[str, Any], key: str) -> tuple[Path, float]:
        file = self.info["video_path"].format(video_key=key, **_place(line, f"videos/{key}"))
        return self.root / file, float(line[f"videos/{key}/from_timestamp"])

    def features(self) -> dict[str, Feature]:
        """Step features in the dataset's own names, and the texts `task` (and `subtask`) that they point to."""
        found = {}
        for key, feature in self.info["features"].items():
            try:
                found[key] = _feature(key, feature)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{self.root / INFO}: feature {key!r} is not described ({reason(error)}); copy the file again"
                ) from None
        found["task"] = Feature("task", "text", "string")
        return {**found, "subtask": Feature("subtask", "text", "string")} if self.subtasks else found

    def action_statistics(self) -> dict[str, list[float]] | None:
        """min and max of `action` over the whole dataset; None when the dataset does not say."""
        file = self.root / "meta/stats.json"
        if file.exists():
            statistics = [read_json(file)]
        else:
            file = self.root / "meta/episodes_stats.jsonl"
            statistics = [line.get("stats", {}) for line in _json_lines(file)] if file.exists() else []
        try:
            low = np.min([np.asarray(item["action"]["min"], float).ravel() for item in statistics], axis=0)
            high = np.max([np.asarray(item["action"]["max"], float).ravel() for item in statistics], axis=0)
        except (KeyError, TypeError, ValueError):
            return None
        return {"min": low.tolist(), "max": high.tolist()} if np.isfinite([low, high]).all() else None


def _version(root: Path, info: dict[str, Any]) -> str:
    version = str(info.get("codebase_version", ""))
    if version in VERSIONS:
        return version
    old = {
        "v2.0": "python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 (lerobot 0.3)",
        "v1": "python -m lerobot.datasets.v2.convert_dataset_v1_to_v2, then v21.convert_dataset_v20_to_v21 (lerobot 0.3)",
    }
    how = old.get(version) or (old["v1"] if version.startswith("v1") else "")
    if how:
        raise InputError(
            f"{root}: LeRobotDataset {version} is too old, {' and '.join(VERSIONS)} are read; convert it with {how}"
        )
    raise InputError(f"{root / INFO}: codebase_version is {version!r}, {' and '.join(VERSIONS)} are read")


def _feature(key: str, value: dict[str, Any]) -> Feature:
    dtype, shape = value["dtype"], tuple(int(size) for size in value["shape"])
    if dtype in ("image", "video"):
        names = value.get("names") or []
        if len(shape) == 3 and "channel" in str(names[0] if names else ""):
            shape = (*shape[1:], shape[0])
        depth = (value.get("info") or {}).get("video.is_depth_map")
        bad = "a depth map" if depth else "" if len(shape) == 3 and shape[2] == 3 else f"an image of {list(shape)}, not RGB"
        return Feature(key, "image", "uint8", shape, bad)
    if dtype == "string":
        return Feature(key, "text", "string", (), "" if shape == (1,) else "several texts a step")
    return Feature(key, "tensor", dtype, shape, "" if dtype in _DTYPES else f"of dtype {dtype!r}")


def _splits(root: Path, info: dict[str, Any], count: int) -> dict[str, range]:
    splits = info.get("splits") or {"train": f"0:{count}"}
    found = {}
    for name, text in splits.items() if isinstance(splits, dict) else ():
        match = re.fullmatch(r"(\d+):(\d+)", str(text))
        if match is None or not int(match[1]) <= int(match[2]) <= count:
            raise InputError(f"{root / INFO}: split {name!r} is {text!r}, meta has {count} episodes; copy meta/ again")
        found[name] = range(int(match[1]), int(match[2]))
    return found


def _place(line: dict[str, Any], prefix: str) -> dict[str, int]:
    return {field: int(line[f"{prefix}/{field}"]) for field in ("chunk_index", "file_index")}


def _number(root: Path, line: dict[str, Any]) -> int:
    if not isinstance(line.get("episode_index"), int):
        raise InputError(f"{root / 'meta/episodes.jsonl'}: a line has no episode_index; copy the file again")
    return line["episode_index"]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: missing or damaged ({first_line(error)}); copy the file again") from None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text) if text.strip() else None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not valid JSON ({error}); copy the file again") from None
        if isinstance(line, dict):
            yield line


def _episode_table(root: Path) -> Any:
    import pyarrow as pa

    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise InputError(f"{root / 'meta/episodes'}: no parquet files; copy meta/ again")
    table = pa.concat_tables([_parquet(file) for file in files], promote_options="permissive")
    if "episode_index" not in table.column_names:
        raise InputError(f"{files[0]}: no column episode_index; copy meta/ again")
    return table.sort_by("episode_index")


def _texts(path: Path, kind: str) -> dict[int, str]:
    """{index: text} of tasks.parquet, where the text is a column, or the index of the data frame that was written."""
    table = _parquet(path)
    text = next((name for name in (kind, "__index_level_0__") if name in table.column_names), None)
    if text is None or f"{kind}_index" not in table.column_names:
        raise InputError(f"{path}: has columns {', '.join(table.column_names)}, expected {kind} and {kind}_index")
    return dict(zip(table[f"{kind}_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))


def _parquet(path: Path) -> Any:
    """A small table without its columns of statistics."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        return file.read([name for name in file.schema_arrow.names if not name.startswith("stats/")])
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: missing or damaged ({first_line(error)}); copy the file again") from None
