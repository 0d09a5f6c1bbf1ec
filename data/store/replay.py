"""ReplayWriter: online experience, step by step, into the same layout as converted data; safe against kill -9 at any moment.

A step is written, then counted: a killed writer loses at most the step that it was writing, and a reader in another process
(`Store.refresh`, `ChunkSampler.refresh`) sees complete transitions only. Opened again, the store goes on; the episode that the killed
writer was in is kept, as one that was cut off there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data.episode import check_action
from data.errors import InputError
from data.labels.rewards import RewardConfig
from data.language import LanguageEncoder
from data.store.array import MappedArray
from data.store.commit import COMMIT, Committed, read_commit
from data.store.store import is_store
from data.store.writer import LOCK, VERSION, StoreWriter

_LABELS = ("reward", "mask", "mc_return")


class ReplayWriter:
    """Appends episodes to the store at `path`, which is made when it is not there. One writer at a time; a context manager."""

    def __init__(
        self,
        path: str | Path,
        action: dict[str, Any],
        reward: RewardConfig | None = None,
        language: LanguageEncoder | None = None,
        jpeg: bool = False,
    ) -> None:
        """action: the description of the actions. reward, language, jpeg: of a new store; one that is there keeps its own.

        InputError when `path` is something else, its actions mean something else, or another process is writing to it.
        """
        path = Path(path)
        check_action(action, str(path))
        if is_store(path):
            model = _check_same(path, action, language)
            self._writer = StoreWriter(path, None, language or LanguageEncoder(model), jpeg)
        elif path.is_dir() and not _is_beginning(path):
            raise InputError(f"{path}: exists and is not a training store; choose another place")
        else:
            for name in ("data", "meta"):
                shutil.rmtree(path / name, ignore_errors=True)
            language, reward = language or LanguageEncoder(), reward or RewardConfig()
            attributes = {
                "robot_rl_store": VERSION,
                "source": {"name": path.name, "path": str(path), "split": "online"},
                "action": action,
                "reward": reward.to_json(),
                "language_model": language.model,
                "changes": [],
                "statistics": {},
                "counts": {},
            }
            self._writer = StoreWriter(path, attributes, language, jpeg)
        self.path, self.reward = path, RewardConfig.from_json(self._writer.attributes["reward"])
        self._first: int | None = None
        self.end()  # the one that a killed writer was in

    @property
    def episodes(self) -> int:
        """How many whole episodes the store holds."""
        return self._writer.episodes

    def begin(self, observation: Mapping[str, Any], instruction: str) -> None:
        """The first observation of an episode: image_* uint8 [H,W,3], vectors float32 [D]; other entries than these are ignored.

        An episode that has not ended is cut off there. InputError when the keys or shapes differ from the store's.
        """
        self._check_open()
        if not isinstance(instruction, str):
            raise InputError(f"{self.path}: the instruction is {instruction!r}, it must be a text")
        self.end()
        rows = self._observation(observation)
        index = self._writer.instruction(instruction)
        placeholders = {key: np.zeros(1, np.float32) for key in _LABELS}
        actions = np.zeros((1, len(self._writer.attributes["action"]["names"])), np.float32)
        first, at = self._writer.rows, np.full(1, index, np.int32)
        with self._whole():
            self._writer.append({**rows, "action": actions, **placeholders, "instruction_index": at})
            self._writer.commit()
        self._first, self._index = first, at

    def step(
        self,
        action: np.ndarray,
        observation: Mapping[str, Any],
        reward: float | None = None,
        terminated: bool = False,
        truncated: bool = False,
        success: bool | None = None,
    ) -> None:
        """One transition: the action [A] that was applied, in physical units, and the observation it led to.

        reward: needed where the store keeps given rewards. terminated or truncated ends the episode, with its `success` (which
        counts where the store labels by success). InputError, with nothing written, when a value is not finite or of the wrong shape.
        """
        self._check_open()
        if self._first is None:
            raise InputError(f"{self.path}: a step outside an episode; call begin with its first observation")
        row = self._writer.rows - 1
        values = np.asarray(action, np.float32)[None]
        rows = self._observation(observation)
        given = self.reward.kind == "given"
        if given and reward is None:
            raise InputError(f"{self.path}: the store keeps given rewards, and step {row - self._first} has none")
        value = np.full(1, reward if given else -1.0, np.float32)
        if values.shape[1:] != self._writer.arrays["action"].row_shape or not (
            np.isfinite(values).all() and np.isfinite(value).all()
        ):
            raise InputError(
                f"{self.path}: the action or reward of step {row - self._first} is not finite, or of the wrong shape"
            )
        zero = np.zeros(1, np.float32)
        with self._whole():
            # Until the commit nobody looks at this row's action and labels, which were the last observation's placeholders.
            for key, array in (("action", values), ("reward", value), ("mask", zero + 1), ("mc_return", zero)):
                self._writer.overwrite(key, row, array)
            self._writer.append({**rows, "action": values, **dict.fromkeys(_LABELS, zero), "instruction_index": self._index})
            if terminated or truncated:
                self._close_episode(self._first, bool(success), terminated)
            else:
                self._writer.commit()
        if terminated or truncated:
            self._publish()

    def end(self, success: bool = False) -> None:
        """The episode is cut off where it is (an operator stepped in, the robot stopped). Without an episode this does nothing."""
        if self._writer.closed:
            return
        # By what is written, which an interrupt does not leave half known.
        first = self._writer.last_end
        with self._whole():
            if self._writer.rows > first + 1:
                self._close_episode(first, success, terminated=False)
            elif self._writer.rows > first:  # without a single transition it never was
                self._writer.back_to(first)
                self._writer.commit()
            else:
                return
        self._publish()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Back to the last commit when what ends in one has failed halfway."""
        try:
            yield
        except BaseException:
            self._writer.undo()
            raise

    def _check_open(self) -> None:
        if self._writer.closed:
            raise InputError(f"{self.path}: the writer is closed; open another one to go on")

    def _close_episode(self, first: int, success: bool, terminated: bool) -> None:
        """Write the final labels and count the episode as a whole. Until then readers take its labels from nowhere but the rule."""
        last = self._writer.rows - 1
        rewards = np.array(MappedArray(self.path / "data" / "reward", last + 1).view[first:last])
        labels, zero = self.reward.label(len(rewards), success, rewards, terminated, str(self.path)), np.float32(0)
        for key, values in zip(_LABELS, labels, strict=True):
            self._writer.overwrite(key, first, np.append(values, zero))
        # The last row repeats the last action, whatever a step that failed has left there.
        actions = MappedArray(self.path / "data" / "action", last + 1).view
        self._writer.overwrite("action", last, np.array(actions[last - 1 : last]))
        self._writer.end_episode(success)
        self._writer.commit()

    def _publish(self) -> None:
        """The episode has ended. What other zarr readers see is brought up to date where the disk allows it, else next time."""
        self._first = None
        with suppress(OSError):
            self._writer.publish()

    def _observation(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """[1, ...] of each key; InputError when they are not the store's, or not finite."""
        rows = {}
        for key, value in observation.items():
            array = np.asarray(value)
            if key.startswith("image_"):
                rows[key] = array[None]
            elif array.dtype.kind in "fiub" and array.ndim == 1:
                rows[key] = array[None].astype(np.float32)
        known = self._writer.arrays
        expected = {
            key: writer.row_shape for key, writer in known.items() if key not in (*_LABELS, "action", "instruction_index")
        }
        found = {key: value.shape[1:] for key, value in rows.items()}
        if known and found != expected:
            raise InputError(f"{self.path}: the observation has {found}, the store {expected}")
        for key, value in rows.items():
            if key.startswith("image_") and (value.dtype != np.uint8 or value.ndim != 4 or value.shape[-1] != 3):
                raise InputError(f"{self.path}: {key} is {value.dtype}{value.shape[1:]}, expected uint8 (H, W, 3)")
            if not np.isfinite(value).all():
                raise InputError(
                    f"{self.path}: {key} is not finite at row {self._writer.rows}; nothing of this step was written"
                )
        return rows

    def close(self) -> None:
        """Cut off an episode that has not ended, and finish the store: statistics, counts, checksums."""
        if self._writer.closed:
            return
        try:
            self.end()
            if self._writer.episodes:
                self._writer.finish()
        finally:
            self._writer.close()

    def __enter__(self) -> ReplayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            self._writer.close()  # a full disk: what is committed is safe, finishing would fail again
        else:
            self.close()


def _check_same(path: Path, action: dict[str, Any], language: LanguageEncoder | None) -> str:
    """The language model of the store at `path`. InputError when it cannot go on with this writer; nothing of it is touched then."""
    attributes = json.loads((path / ".zattrs").read_text())
    if attributes.get("robot_rl_store") != VERSION:
        raise InputError(f"{path}: a store of version {attributes.get('robot_rl_store')}, not {VERSION}; choose another place")
    if attributes["action"] != action:
        raise InputError(
            f"{path}: holds actions {attributes['action']['names']} that mean something else; choose another place"
        )
    model = str(attributes["language_model"])
    if language is not None and language.model != model:
        raise InputError(f"{path}: instructions are embedded by {model}, not {language.model}; choose another place")
    return model


def _is_beginning(path: Path) -> bool:
    """Whether a folder without attributes is empty, or what a killed writer left that had not yet written anything."""
    names = {entry.name for entry in path.iterdir()}
    if not names <= {LOCK, "data", "meta", ".zgroup", ".zgroup.partial", ".zattrs.partial"}:
        return False
    commit = path / "meta" / COMMIT
    return not commit.exists() or not commit.stat().st_size or read_commit(commit) == Committed()
