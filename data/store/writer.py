"""StoreWriter: the one writer of a training store, for conversion (whole episodes) and for replay (step by step).

Rows are written first and then counted by a commit (data/store/commit.py). Opened again after a kill, it goes on after the last commit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.language import DATASET_MODEL, LanguageEncoder
from data.statistics import compute_statistics
from data.store.array import ArrayWriter, MappedArray, replace_text, write_all, write_group
from data.store.commit import COMMIT, CommitFile, Committed, read_commit
from data.store.frames import JpegWriter

VERSION = 3
EPISODE_ARRAYS = {"episode_ends": np.int64, "success": np.int8, "achieved": np.int32}
INSTRUCTIONS = "instructions.jsonl"
LEFT_OUT = "left_out.json"
LOCK = ".lock"
Writer = ArrayWriter | JpegWriter


class StoreWriter:
    """Appends to a store; at most one at a time, in any process. `attributes` are the group's (see data/store/store.py)."""

    def __init__(self, folder: Path, attributes: dict[str, Any] | None, language: LanguageEncoder, jpeg: bool = False) -> None:
        """Make the store (attributes given, `folder` empty or absent) or go on with it (attributes None).

        language: embeds new instructions. jpeg: keep frames as JPEG. InputError when another process is writing.
        """
        self.folder, self.language, self.jpeg, self.closed = folder, language, jpeg, False
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder)
        try:
            self._open(attributes)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, attributes: dict[str, Any] | None) -> None:
        folder = self.folder
        if attributes is None:
            self.attributes = json.loads((folder / ".zattrs").read_text())
            read_commit(folder / "meta" / COMMIT)  # InputError: without it nobody knows what counts
        else:
            self.attributes = attributes
            for group in (folder / "data", folder / "meta"):
                write_group(group)
        self._commit = CommitFile(folder / "meta" / COMMIT)
        state = self._commit.state
        if attributes is not None:
            self._commit.commit(state)
            write_group(folder, attributes)  # last: what is a store has a commit
        self.rows, self.episodes = state.rows, state.episodes
        self.arrays: dict[str, Writer] = {}
        for kind, writer in (("data", ArrayWriter), ("jpeg", JpegWriter)):
            for path in sorted((folder / kind).glob("*/")):
                if state.rows:
                    self.arrays[path.name] = writer.reopen(path, state.rows)
                else:
                    shutil.rmtree(path)  # begun by a writer that was killed before its first commit
        self._meta = {
            key: ArrayWriter.reopen(folder / "meta" / key, state.episodes)
            if (folder / "meta" / key / ".zarray").exists()
            else ArrayWriter(cleared(folder / "meta" / key), dtype, ())
            for key, dtype in EPISODE_ARRAYS.items()
        }
        self._embeddings: ArrayWriter | None = None
        self._open_instructions()

    @property
    def state(self) -> Committed:
        """What counts, as of the last commit."""
        return self._commit.state

    @property
    def last_end(self) -> int:
        """Rows of whole episodes."""
        return int(MappedArray(self.folder / "meta" / "episode_ends", self.episodes).view[-1]) if self.episodes else 0

    def instruction(self, text: str, embedding: np.ndarray | None = None) -> int:
        """The index of an instruction, which is added when it is new; embedding [D]: what the data carries for it."""
        if text not in self.instructions:
            if embedding is not None and self.language.model == DATASET_MODEL and text not in self.language.table:
                self.language.remember(text, embedding)
            vector = self.language.encode([text])
            if self._embeddings is None:
                place = cleared(self.folder / "meta" / "instruction_embeddings")
                self._embeddings = ArrayWriter(place, np.float32, vector.shape[1:])
            self._embeddings.append(vector)
            self._embeddings.publish(self._embeddings.rows)
            # The embedding first: a text that a reader finds has one.
            write_all(self._texts, (json.dumps(text) + "\n").encode(), self._texts_end)
            self._texts_end += len(json.dumps(text)) + 1
            self.instructions[text] = len(self.instructions)
        return self.instructions[text]

    def append(self, rows: dict[str, Any]) -> None:
        """Append rows [N, ...] of every array of `data`; the first call fixes which there are. Frames may be N JPEG files."""
        if self.closed:
            raise ValueError(f"{self.folder}: the writer is closed")
        for key, value in rows.items():
            if key not in self.arrays:
                if self.rows:
                    raise ValueError(f"{key} is new; the store has {', '.join(self.arrays)}")
                self.arrays[key] = self._create(key, value)
        try:
            for key, value in rows.items():
                self.arrays[key].append(value)
        except BaseException:
            self.back_to(self.rows)  # a full disk: the arrays stay equally long
            raise
        self.rows += len(next(iter(rows.values())))

    def _create(self, key: str, value: Any) -> Writer:
        if key.startswith("image_") and self.jpeg:
            write_group(self.folder / "jpeg")
            shape = value.shape[1:] if isinstance(value, np.ndarray) else _shape_of(value[0])
            return JpegWriter(self.folder / "jpeg" / key, shape)
        return ArrayWriter(self.folder / "data" / key, value.dtype, value.shape[1:])

    def overwrite(self, key: str, start: int, values: np.ndarray) -> None:
        """Write over rows from `start` on, which no commit counts yet or no reader looks at (see data/store/replay.py)."""
        writer = self.arrays[key]
        assert isinstance(writer, ArrayWriter)
        writer.write(start, values)

    def drop(self, key: str) -> None:
        """Remove an array."""
        self.arrays.pop(key).discard()

    def end_episode(self, success: bool | None, achieved: int = -1) -> None:
        """All rows so far belong to whole episodes. achieved: the index of the instruction that it achieved instead of its own."""
        code = -1 if success is None else int(success)
        for writer in self._meta.values():
            writer.back_to(self.episodes)
        for key, value in zip(EPISODE_ARRAYS, (self.rows, code, achieved), strict=True):
            self._meta[key].append(np.array([value], EPISODE_ARRAYS[key]))
        self.episodes += 1

    def commit(self, position: int = 0) -> None:
        """Count everything written so far. position: how many episodes of the source that is."""
        self._commit.commit(Committed(self.rows, self.episodes, position))

    def back_to(self, rows: int) -> None:
        """Forget the rows behind `rows`, which no commit may count; they are written over."""
        self.rows = rows
        for writer in self.arrays.values():
            writer.back_to(rows)

    def undo(self) -> None:
        """Back to the last commit, when a step of a single commit has failed halfway."""
        self.episodes = self.state.episodes
        self.back_to(self.state.rows)

    def publish(self) -> None:
        """Let other zarr readers see what counts."""
        for writer in self.arrays.values():
            writer.publish(self.rows)
        for writer in self._meta.values():
            writer.publish(self.episodes)

    def finish(self, changes: list[str] | None = None) -> None:
        """Statistics, counts and checksums; everything is on the disk, and this writer is closed. Another one may go on.

        changes: what was done to the data, a line each.
        """
        for writer in (*self.arrays.values(), *self._meta.values(), *([self._embeddings] if self._embeddings else [])):
            writer.finish()
        ends = MappedArray(self.folder / "meta" / "episode_ends").view
        statistics = {}
        for key, writer in sorted(self.arrays.items()):  # whichever run made them
            if isinstance(writer, ArrayWriter) and writer.dtype == np.float32 and len(writer.row_shape) == 1:
                statistics[key] = compute_statistics(MappedArray(writer.folder).view, leave_out=ends - 1)
        counts = {"episodes": self.episodes, "steps": self.rows, "transitions": self.rows - self.episodes}
        self.attributes |= {"statistics": statistics, "counts": counts}
        if changes is not None:
            self.attributes["changes"] = changes
        replace_text(
            self.folder / "dataset_statistics.json",
            json.dumps({**statistics, "num_trajectories": self.episodes, "num_transitions": counts["transitions"]}, indent=1),
        )
        write_group(self.folder, self.attributes)
        os.sync()  # once, for files by the hundreds
        self._commit.commit(self.state, sync=True)
        self.close()

    def close(self) -> None:
        """Let go of the files and of the lock. Twice is no harm."""
        if self.closed:
            return
        self.closed = True
        for writer in (*self.arrays.values(), *self._meta.values(), *([self._embeddings] if self._embeddings else [])):
            writer.close()
        os.close(self._texts)
        self._commit.close()
        os.close(self._lock)

    def _open_instructions(self) -> None:
        path = self.folder / INSTRUCTIONS
        texts = read_instructions(path)
        self.instructions = {text: index for index, text in enumerate(texts)}
        folder = self.folder / "meta" / "instruction_embeddings"
        if texts:
            for text, vector in zip(texts, MappedArray(folder, len(texts)).view, strict=True):
                self.language.remember(text, vector)
            self._embeddings = ArrayWriter.reopen(folder, len(texts))
        self._texts = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        # A line that was being written is written again.
        self._texts_end = sum(len(json.dumps(text)) + 1 for text in texts)
        os.truncate(self._texts, self._texts_end)


def read_instructions(path: Path) -> list[str]:
    """The whole lines of a store's instructions file. InputError when it is damaged."""
    data = path.read_bytes() if path.exists() else b""
    try:
        return [str(json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    except ValueError:
        raise InputError(f"{path}: damaged; convert the dataset again") from None


def lock(folder: Path) -> int:
    """Keep other writers out, until the handle is closed or this process ends, however it ends. InputError when one is there."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"{folder}: another process is writing here; wait for it, or choose another place") from None
    return handle


def cleared(folder: Path) -> Path:
    """A place for a new array: what a killed writer had begun there is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _shape_of(data: bytes) -> tuple[int, ...]:
    import cv2

    return tuple(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)).shape)
