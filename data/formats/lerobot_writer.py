"""LeRobotWriter: Episodes -> a LeRobotDataset v3.0 that lerobot opens, written without lerobot.

An episode of T transitions has T+1 frames, so that no observation is lost. LeRobot wants an action with each frame: the last frame
repeats the last action (it holds the pose, where actions are targets), its reward is 0, and `next.done` is true there, as it is
at the end of every recording. Readers of ours drop it again: what is written is what is read. What LeRobot has no place for, the action
description first of all, goes to `robot_rl.json` beside meta/, which lerobot ignores; success and an episode's texts are columns of
meta/episodes.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from data.atomic import replacing
from data.episode import Episode, check_action
from data.errors import InputError
from data.formats.base import DESCRIPTION_FILE
from data.formats.lerobot_meta import INFO
from data.formats.lerobot_stats import Statistics, combine, of_images, of_vectors
from data.formats.sink import Sink
from data.formats.video import PIXEL_FORMAT, VideoWriter

FILES_PER_CHUNK = 1000
DATA_FILE_BYTES, VIDEO_FILE_BYTES = 100 * 2**20, 200 * 2**20
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _VIDEO, _EPISODES = f"data/{_FILE}.parquet", f"videos/{{video_key}}/{_FILE}.mp4", f"meta/episodes/{_FILE}.parquet"
_EPISODES_AT_ONCE = 200
_INDEX = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


@dataclass
class _Place:
    """A file that grows until it is full: its number, and the writer while it is open."""

    number: int = -1
    path: Path = Path()
    writer: Any = None

    @property
    def indices(self) -> dict[str, int]:
        return {"chunk_index": self.number // FILES_PER_CHUNK, "file_index": self.number % FILES_PER_CHUNK}

    def next(self, root: Path, pattern: str, **names: str) -> Path:
        """Close this file, and make room for the one after it."""
        self.close()
        self.number += 1
        self.path = root / pattern.format(**self.indices, **names)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path

    def full(self, limit: int) -> bool:
        if self.writer is None:
            return True
        return (self.writer.num_bytes if isinstance(self.writer, VideoWriter) else self.path.stat().st_size) >= limit

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class _Table:
    """A parquet file that grows by tables of one schema."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as parquet

        self._sink = Sink(path, "w")
        self._writer = parquet.ParquetWriter(self._sink, schema, compression="snappy")

    def add(self, table: Any) -> None:
        self._writer.write_table(table)
        self._sink.check()

    def close(self) -> None:
        self._writer.close()
        self._sink.close()
        self._sink.check()


class LeRobotWriter:
    """Writes the folder `out`. The first episode fixes the features of all; splits are ranges, so they come one after the other.

    Used as a context manager: the folder appears when the block ends well, and nothing is left of it when the block raises. One
    episode at a time is in memory.
    """

    def __init__(
        self,
        out: str | Path,
        action: dict[str, Any],
        image_format: Literal["h264", "av1", "png"] = "h264",
        overwrite: bool = False,
    ) -> None:
        """action: names, units, low, high, frame, control_hz. image_format: png is lossless, in the rows; the others are video.

        h264 is written at a quality whose loss is hard to see, av1 as lerobot writes it: smaller, and slower to write.
        """
        self.out, self.action, self.image_format = Path(out), check_action(action, str(out)), image_format
        self._rate = Fraction(action["control_hz"]).limit_denominator(1001)
        self._overwrite = overwrite
        self._features: dict[str, Any] = {}
        self._observations: dict[str, str] = {}
        self._texts: list[str] = []
        self._splits: dict[str, list[int]] = {}
        self._tasks: dict[str, int] = {}
        self._statistics: dict[str, Statistics] = {}
        self._rows: list[dict[str, Any]] = []
        self._num_episodes = self._num_frames = 0
        self._data, self._episodes = _Place(), _Place()
        self._videos: dict[str, _Place] = {}
        self._stack = ExitStack()

    def __enter__(self) -> LeRobotWriter:
        self._folder = self._stack.enter_context(replacing(self.out, self._overwrite, _is_own, "LeRobotDataset of robot-rl"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            for place in (self._data, self._episodes, *self._videos.values()):
                with suppress(Exception):
                    place.close()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    def add(self, episode: Episode, split: str = "train") -> None:
        """Append an episode. InputError when it is not valid or its keys, shapes or texts differ from the first one's."""
        episode.validate()
        if episode.actions.shape[1] != len(self.action["names"]):
            raise InputError(
                f"{episode.source}: {episode.actions.shape[1]} action dimensions, described are {self.action['names']}"
            )
        if split in self._splits and split != next(reversed(self._splits)):
            raise InputError(
                f"{episode.source}: LeRobot splits are ranges of episodes; add all of {split!r} one after the other"
            )
        observations = {_name(key): value for key, value in episode.observations.items()}
        steps = observations | self._other_steps(episode)
        self._check(episode, steps)
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        count = len(episode) + 1
        index = np.arange(count)
        steps |= {
            "timestamp": (index / float(self._rate)).astype(np.float32),
            "frame_index": index,
            "episode_index": np.full(count, self._num_episodes),
            "index": index + self._num_frames,
            "task_index": np.full(count, task),
        }
        row = {"episode_index": self._num_episodes, "tasks": [episode.instruction], "length": count}
        row |= self._add_rows(steps)
        for key in (key for key, feature in self._features.items() if feature["dtype"] == "video"):
            row |= self._add_frames(key, steps[key])
        row |= {"success": episode.success, "source": episode.source, **episode.info}
        self._add_episode(row, steps)
        self._splits.setdefault(split, [self._num_episodes, 0])[1] = self._num_episodes + 1
        self._num_episodes, self._num_frames = self._num_episodes + 1, self._num_frames + count

    def _other_steps(self, episode: Episode) -> dict[str, np.ndarray]:
        last = np.arange(len(episode) + 1) == len(episode)
        steps = {"action": np.concatenate([episode.actions, episode.actions[-1:]]).astype(np.float32), "next.done": last}
        if episode.rewards is not None:
            steps["next.reward"] = np.append(episode.rewards, 0).astype(np.float32)
        if episode.terminated is not None:
            steps["next.terminated"] = last & episode.terminated
        if episode.instruction_embedding is not None:
            steps["language_embedding"] = np.tile(np.float32(episode.instruction_embedding), (len(last), 1))
        return steps

    def _check(self, episode: Episode, steps: dict[str, np.ndarray]) -> None:
        features, texts = {key: self._feature(key, value) for key, value in steps.items()}, sorted(episode.info)
        if not self._num_episodes:
            for key, item in features.items():
                if item["dtype"] == "video" and any(size % 2 for size in item["shape"][:2]):
                    size = "x".join(map(str, item["shape"][:2]))
                    raise InputError(f"{episode.source}: {key} is {size}; video needs even sizes, so write frames as png")
            self._features, self._texts = features, texts
            self._observations = {key: _name(key) for key in episode.observations}
            self._videos = {key: _Place() for key, feature in features.items() if feature["dtype"] == "video"}
        elif features != self._features or texts != self._texts:
            changed = [key for key in {**features, **self._features} if features.get(key) != self._features.get(key)]
            what = ", ".join(sorted(changed or set(texts) ^ set(self._texts)))
            raise InputError(f"{episode.source}: differs from the first episode in {what}; a dataset has one set of features")

    def _feature(self, key: str, value: np.ndarray) -> dict[str, Any]:
        """As info.json has it."""
        shape = list(value.shape[1:]) or [1]
        if value.dtype != np.uint8 or value.ndim != 4:
            names = self.action["names"] if key == "action" else None
            return {"dtype": str(value.dtype), "shape": shape, "names": names}
        names = ["height", "width", "channels"]
        if self.image_format == "png":
            return {"dtype": "image", "shape": shape, "names": names}
        info = {"height": shape[0], "width": shape[1], "codec": self.image_format, "pix_fmt": PIXEL_FORMAT, "channels": 3}
        described = {f"video.{name}": what for name, what in info.items()}
        described |= {"video.is_depth_map": False, "video.fps": _plain(self._rate), "has_audio": False}
        return {"dtype": "video", "shape": shape, "names": names, "info": described}

    def _add_rows(self, steps: dict[str, np.ndarray]) -> dict[str, Any]:
        import pyarrow as pa

        columns = {key: _column(value) for key, value in steps.items() if key not in self._videos}
        table = pa.table(columns)
        if self._data.full(DATA_FILE_BYTES):
            # Where a file is read without info.json (streaming, the hub's viewer), this is how it says which columns are pictures.
            pictures = {key: {"_type": "Image"} for key, feature in self._features.items() if feature["dtype"] == "image"}
            schema = table.schema.with_metadata({"huggingface": json.dumps({"info": {"features": pictures}})})
            self._data.writer = _Table(self._data.next(self._folder, _DATA), schema)
        self._data.writer.add(table)
        bounds = {"dataset_from_index": self._num_frames, "dataset_to_index": self._num_frames + table.num_rows}
        return {**{f"data/{name}": value for name, value in self._data.indices.items()}, **bounds}

    def _add_frames(self, key: str, frames: np.ndarray) -> dict[str, Any]:
        place = self._videos[key]
        if place.full(VIDEO_FILE_BYTES):
            path, (height, width) = place.next(self._folder, _VIDEO, video_key=key), frames.shape[1:3]
            assert self.image_format != "png"
            place.writer = VideoWriter(path, self._rate, height, width, self.image_format)
        start = place.writer.num_frames
        place.writer.add(frames)
        times = {"from_timestamp": float(start / self._rate), "to_timestamp": float(place.writer.num_frames / self._rate)}
        return {f"videos/{key}/{name}": value for name, value in {**place.indices, **times}.items()}

    def _add_episode(self, row: dict[str, Any], steps: dict[str, np.ndarray]) -> None:
        for key, value in steps.items():
            image = self._features.get(key, {}).get("dtype") in ("image", "video")
            statistics = of_images(value) if image else of_vectors(value)
            self._statistics[key] = combine(self._statistics[key], statistics) if key in self._statistics else statistics
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in statistics.items()}
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        if len(self._rows) >= _EPISODES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        """Write the rows of meta/episodes that are waiting."""
        import pyarrow as pa

        if self._episodes.writer is None:
            # Not inferred from the first rows: success may be unknown in all of them.
            inferred = pa.Table.from_pylist(self._rows[:1]).schema
            types = {"success": pa.bool_(), **dict.fromkeys(["source", *self._texts], pa.string())}
            self._schema = pa.schema([field.with_type(types.get(field.name, field.type)) for field in inferred])
            self._episodes.writer = _Table(self._episodes.next(self._folder, _EPISODES), self._schema)
        self._episodes.writer.add(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _finish(self) -> None:
        if not self._num_episodes:
            raise InputError(f"{self.out}: no episode was written; a dataset needs at least one")
        self._flush()
        for place in (self._data, self._episodes, *self._videos.values()):
            place.close()
        self._write_tasks()
        statistics = {key: {name: value.tolist() for name, value in items.items()} for key, items in self._statistics.items()}
        for name, content in ((INFO, self._info()), ("meta/stats.json", statistics), (DESCRIPTION_FILE, self._description())):
            (self._folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    def _write_tasks(self) -> None:
        import pyarrow as pa

        table = pa.table({"task_index": pa.array(list(self._tasks.values()), pa.int64()), "task": list(self._tasks)})
        # lerobot looks a task up by the index of a pandas data frame; this is how a parquet file says that it has one.
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ]
        pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
        tasks = _Table(self._folder / "meta/tasks.parquet", table.schema)
        tasks.add(table)
        tasks.close()

    def _info(self) -> dict[str, Any]:
        index = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _INDEX.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": self._num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_BYTES / 2**20,
            "video_files_size_in_mb": VIDEO_FILE_BYTES / 2**20,
            "fps": _plain(self._rate),
            "splits": {name: f"{start}:{stop}" for name, (start, stop) in self._splits.items()},
            "data_path": _DATA,
            "video_path": _VIDEO if self._videos else None,
            "features": {**self._features, **index},
        }

    def _description(self) -> dict[str, Any]:
        description = {"action": self.action, "observations": self._observations, "instruction": "task"}
        keys = {"reward": "next.reward", "terminated": "next.terminated"}
        return description | {ours: theirs for ours, theirs in keys.items() if theirs in self._features}


def _is_own(path: Path) -> bool:
    return (path / INFO).exists() and (path / DESCRIPTION_FILE).exists()


def _name(key: str) -> str:
    """Our observation key -> LeRobot's."""
    if key.startswith("image_"):
        return f"observation.images.{key.removeprefix('image_')}"
    return {"proprio": "observation.state", "state": "observation.environment_state"}.get(key, f"observation.{key}")


def _plain(rate: Fraction) -> int | float:
    return int(rate) if rate.denominator == 1 else float(rate)


def _column(value: np.ndarray) -> Any:
    """[N], [N,D], or frames [N,H,W,3] as PNG in the structure that `datasets` has for an image."""
    import pyarrow as pa

    if value.ndim == 1:
        return pa.array(value)
    if value.ndim == 2:
        # A vector of one is a number, as the original has it.
        flat = pa.array(np.ascontiguousarray(value).reshape(-1))
        return flat if value.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
    import cv2

    encoded = [cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR))[1] for frame in value]
    images = [{"bytes": image.tobytes(), "path": f"frame-{index:06d}.png"} for index, image in enumerate(encoded)]
    return pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
