"""Episodes -> rows of a store: cameras chosen and resized, frames encoded. In several processes: reading and decoding is the cost."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.processes import interrupts_held
from data.source import EpisodeSource
from data.store.frames import JPEG_QUALITY, encode_jpeg

TASK_EPISODES = 4
_AHEAD = 2
"""Tasks a worker that are under way or wait to be written: what bounds the memory."""


@dataclass(frozen=True)
class Preparation:
    """cameras: those to keep, which every episode must have; None keeps those that every episode has. image_size: (height, width), None
    keeps theirs. storage: frames raw, or as JPEG."""

    cameras: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    storage: Literal["raw", "jpeg"] = "raw"

    def changes(self) -> list[str]:
        """What it does to the data, a line each."""
        lines = ["an episode's last row repeats its last action; no transition starts there"]
        if self.image_size:
            lines.append(f"frames are resized to {self.image_size[0]}x{self.image_size[1]} (by area where they shrink)")
        if self.storage == "jpeg":
            lines.append(f"frames are kept as JPEG of quality {JPEG_QUALITY}, which is not lossless")
        if self.cameras is not None:
            lines.append(f"of the cameras only {', '.join(self.cameras) or 'none'} are kept")
        return lines

    def prepare(self, episode: Episode) -> Prepared:
        """InputError when the episode is not valid or lacks a camera."""
        episode.validate()
        missing = [key for key in self.cameras or () if key not in episode.observations]
        if missing:
            raise InputError(
                f"{episode.source}: has no {', '.join(missing)}; leave it out with --skip-bad, or choose other cameras"
            )
        rows: dict[str, Any] = {"action": np.concatenate([episode.actions, episode.actions[-1:]]).astype(np.float32)}
        shapes = {}
        for key, value in episode.observations.items():
            if not key.startswith("image_"):
                rows[key] = value.astype(np.float32)
            elif self.cameras is None or key in self.cameras:
                frames = resize(value, self.image_size) if self.image_size else value
                shapes[key] = frames.shape[1:]
                rows[key] = [encode_jpeg(frame) for frame in frames] if self.storage == "jpeg" else frames
        for key, value in rows.items():
            if key not in shapes and not np.isfinite(value).all():
                raise InputError(
                    f"{episode.source}: {key} has values beyond float32; drop the episode (--skip-bad) or repair it"
                )
        return Prepared(
            rows,
            shapes,
            len(episode),
            episode.instruction,
            episode.instruction_embedding,
            episode.success,
            episode.rewards,
            episode.terminated,
            episode.achieved,
            episode.source,
        )


@dataclass(frozen=True)
class Prepared:
    """rows: [T+1, ...] of each observation and of the action; JPEG frames are a list of T+1 files. image_shapes: of each camera."""

    rows: dict[str, Any]
    image_shapes: dict[str, tuple[int, ...]]
    length: int
    instruction: str
    instruction_embedding: np.ndarray | None
    success: bool | None
    rewards: np.ndarray | None
    terminated: bool | None
    achieved: str | None
    source: str = field(default="episode")


Item = Prepared | InputError


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [T,H,W,3] -> [T,*size,3]."""
    import cv2

    height, width = size
    if frames.shape[1:3] == size:
        return frames
    shrinks = height <= frames.shape[1] and width <= frames.shape[2]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames])


def prepare_all(
    source: EpisodeSource, indices: range, preparation: Preparation, workers: int
) -> Generator[tuple[int, list[Item]], None, None]:
    """(number of the source's episodes that are done then, the items of a task), in order, for all of `indices`."""
    tasks = [
        range(start, min(start + TASK_EPISODES, indices.stop)) for start in range(indices.start, indices.stop, TASK_EPISODES)
    ]
    if not workers or len(tasks) < 2 * workers:
        for task in tasks:
            yield task.stop, _task(source, preparation, task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (source, preparation)) as pool:
        waiting: deque[tuple[range, Future]] = deque()
        remaining = iter(tasks)
        try:
            for task in remaining:
                with interrupts_held():
                    waiting.append((task, pool.submit(_worker_task, task)))
                if len(waiting) >= _AHEAD * workers:
                    task, future = waiting.popleft()
                    yield task.stop, future.result()
            while waiting:
                task, future = waiting.popleft()
                yield task.stop, future.result()
        except BrokenProcessPool:
            raise InputError(
                f"{source.location}: a worker died reading near episode {task.start} (out of memory?); the same command resumes, "
                "with fewer --workers if need be"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _task(source: EpisodeSource, preparation: Preparation, indices: range) -> list[Item]:
    items: list[Item] = []
    for episode in source.read(indices):
        try:
            items.append(episode if isinstance(episode, InputError) else preparation.prepare(episode))
        except InputError as error:
            items.append(error)
    return items


_worker: tuple[EpisodeSource, Preparation] | None = None


def _begin_worker(source: EpisodeSource, preparation: Preparation) -> None:
    global _worker
    _worker = source, preparation
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import cv2

    cv2.setNumThreads(1)


def _worker_task(indices: range) -> list[Item]:
    assert _worker is not None
    return _task(*_worker, indices)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
