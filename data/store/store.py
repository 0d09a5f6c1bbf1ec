"""Store: the training store, diffusion_policy's zarr layout with rewards, statistics and provenance. Read-only; StoreWriter writes it.

    data/{action, proprio, state, image_*}            concatenated over time, T+1 rows an episode of T transitions
    data/{reward, mask, mc_return, instruction_index} the same rows
    jpeg/image_*/{bytes, ends}                        cameras that are kept as JPEG, in place of data/image_*
    meta/{episode_ends, success, achieved}            an episode each; episode_ends: cumulative and exclusive, in rows; success: 1, 0,
                                                      or -1 unlabelled; achieved: the instruction that it achieved instead of its own
                                                      (hindsight), or -1
    meta/instruction_embeddings                       float32 [N,D], row i for line i of instructions.jsonl
    left_out.json                                     why conversion left out episodes of its source, a text each; absent for none
    meta/.commit                                      how many rows and episodes count (data/store/commit.py)

The last row of an episode is its final observation: no transition starts there. Its action repeats the last one, its reward, mask
and mc_return are 0. A store that is being written to may end in an episode that still runs: `Store.running`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.episode import Episode, check_action
from data.errors import InputError
from data.labels.rewards import RewardConfig
from data.language import LanguageEncoder
from data.statistics import compute_statistics
from data.store.array import MappedArray
from data.store.commit import COMMIT, Committed, read_commit
from data.store.frames import JpegFrames
from data.store.writer import EPISODE_ARRAYS, INSTRUCTIONS, LEFT_OUT, VERSION, read_instructions

LABELS = ("action", "reward", "mask", "mc_return", "instruction_index")
ATTRIBUTES = ("robot_rl_store", "source", "action", "statistics", "reward", "language_model", "counts", "changes")


def is_store(path: Path) -> bool:
    """Whether a folder is a store of ours, of any version, whole or damaged."""
    try:
        return "robot_rl_store" in json.loads((path / ".zattrs").read_text())
    except (OSError, ValueError):
        return False


@dataclass
class Store:
    """attributes: the group's. arrays: by key. episode_ends: int64 [E], in rows. success: int8 [E]. achieved: int32 [E].

    It shows what counted when it was opened or last refreshed. It is an EpisodeSource.
    """

    path: Path
    attributes: dict[str, Any]
    arrays: dict[str, MappedArray | JpegFrames]
    episode_ends: np.ndarray
    success: np.ndarray
    achieved: np.ndarray
    language: LanguageEncoder
    instructions: list[str]
    committed: Committed
    identity: tuple[int, int]

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
        committed = read_commit(path / "meta" / COMMIT)
        if committed.rows < 2:
            raise InputError(f"{path}: holds no transition yet; wait for its writer, or remove it")
        cameras = sorted(folder.name for folder in (path / "jpeg").glob("*/")) if (path / "jpeg").is_dir() else []
        keys = sorted(folder.name for folder in (path / "data").glob("*/")) if (path / "data").is_dir() else []
        arrays: dict[str, MappedArray | JpegFrames] = {
            key: MappedArray(path / "data" / key, committed.rows) for key in dict.fromkeys((*LABELS, *keys))
        }
        arrays |= {key: JpegFrames(path / "jpeg" / key, committed.rows) for key in cameras}
        language = LanguageEncoder(attributes["language_model"])
        none = np.empty(0, np.int64)
        store = cls(path, attributes, arrays, none, none, none, language, [], committed, _identity(path))
        store._load_episodes()
        store._check()
        return store

    def refresh(self) -> bool:
        """See what a writer in another process has committed since; whether there was anything."""
        if _identity(self.path) != self.identity:
            raise InputError(f"{self.path}: was replaced (labelled or converted again); open it again")
        before, committed = self.committed, read_commit(self.path / "meta" / COMMIT)
        if committed == before:
            return False
        try:
            for array in self.arrays.values():
                array.grow(committed.rows)
            self.committed = committed
            self._load_episodes()
        except BaseException:
            self.committed = before
            raise
        return True

    def _load_episodes(self) -> None:
        count, meta = self.committed.episodes, self.path / "meta"
        ends, success, achieved = (np.array(MappedArray(meta / key, count).view) for key in EPISODE_ARRAYS)
        whole = int(ends[-1]) if count else 0
        if self.committed.rows > whole + 1:
            # It still runs: neither a success nor a failure yet.
            ends, success, achieved = np.append(ends, self.committed.rows), np.append(success, -1), np.append(achieved, -1)
        self.episode_ends, self.success, self.achieved = ends, success, achieved
        texts = read_instructions(self.path / INSTRUCTIONS)
        if len(texts) > len(self.instructions):
            embeddings = MappedArray(meta / "instruction_embeddings", len(texts)).view
            for text, embedding in zip(texts[len(self.instructions) :], embeddings[len(self.instructions) :], strict=True):
                self.language.remember(text, embedding)
            self.instructions = texts

    @property
    def running(self) -> bool:
        """Whether the last episode has not ended; its labels are those of `labels`, not of the arrays."""
        return len(self.episode_ends) > self.committed.episodes

    @property
    def finished(self) -> bool:
        """Whether its writer has finished it: statistics and checksums cover all that counted when it was opened."""
        found = self.attributes["counts"]
        return (found.get("steps"), found.get("episodes")) == (self.committed.rows, self.committed.episodes)

    def labels(self, start: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """reward, mask and mc_return of the rows from `start` on, which begins an episode: float32 [rows - start] each.

        An episode that still runs has, until it ends, the labels of a failure: no reward is known that would end it.
        """
        reward, mask, mc_return = (
            np.array(self._array(key).gather(np.arange(start, self.rows))) for key in ("reward", "mask", "mc_return")
        )
        if self.running:
            first = (int(self.episode_ends[-2]) if len(self.episode_ends) > 1 else 0) - start
            config, given = RewardConfig.from_json(self.reward), reward[first:-1]
            length = self.rows - start - first - 1
            running = config.label(length, False, given, False, str(self.path))
            for array, values in zip((reward, mask, mc_return), running, strict=True):
                array[first:] = np.append(values, np.float32(0))
        return reward, mask, mc_return

    @property
    def rows(self) -> int:
        """Observations in all: T+1 an episode."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def name(self) -> str:
        """The dataset it was made from."""
        return str(self.attributes["source"]["name"])

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def split(self) -> str:
        return str(self.attributes["source"]["split"])

    @property
    def length(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def changes(self) -> tuple[str, ...]:
        """What conversion did to the data, a line each."""
        return tuple(self.attributes["changes"])

    @property
    def action(self) -> dict[str, Any]:
        """names, units, low, high, frame, control_hz."""
        return dict(self.attributes["action"])

    @property
    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """mean, std, min, max, q01 and q99 over the transition rows, of `action`, `proprio` and `state`, as of the last `finish`."""
        if not self.attributes["statistics"]:
            # Its writer has not finished yet.
            rows = self.episode_ends - 1
            self.attributes["statistics"] = {
                key: compute_statistics(array.view, leave_out=rows)
                for key, array in self.arrays.items()
                if isinstance(array, MappedArray) and array.dtype == np.float32 and len(array.shape) == 2
            }
        return dict(self.attributes["statistics"])

    @property
    def reward(self) -> dict[str, Any]:
        """The reward convention: its kind, step and success rewards, success_steps, discount."""
        return dict(self.attributes["reward"])

    @property
    def counts(self) -> dict[str, int]:
        """episodes, steps (observations, T+1 an episode), transitions, and how many episodes conversion skipped."""
        steps = {"steps": self.rows, "transitions": self.rows - self.length}
        return {"episodes": self.length, **steps, "skipped": len(self.left_out)}

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was wrong with the episodes that conversion left out, a line each. InputError when the file that says so is damaged."""
        path = self.path / LEFT_OUT
        try:
            return tuple(map(str, json.loads(path.read_text()))) if path.exists() else ()
        except (OSError, ValueError, TypeError):
            raise InputError(f"{path}: damaged; convert the dataset again") from None

    @property
    def assumes_success(self) -> bool:
        """Whether the rewards of episodes without a label of success are those of successes."""
        return self.reward["kind"] == "success"

    @property
    def observation_keys(self) -> list[str]:
        return sorted(key for key in self.arrays if key not in LABELS)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one row of an array. InputError when there is no such key."""
        return self._array(key).shape[1:]

    def gather(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Rows [N] of an array, copied: [N, ...]."""
        return self._array(key).gather(rows)

    def load(self, key: str) -> np.ndarray:
        """The whole of an array, in memory: [rows, ...]."""
        return self._array(key).gather(np.arange(self.rows))

    def read(self, indices: range, images: bool = True) -> Iterator[Episode | InputError]:
        """Episodes `indices`, with the store's labels: `rewards`, and `terminated` where the last step's mask is 0.

        The mask of an episode that only counts as a success does not say that it ended: `terminated` is None there.
        """
        for index in indices:
            first, last = int(self.episode_ends[index - 1]) if index else 0, int(self.episode_ends[index])
            rows = np.arange(first, last)
            text = self.instructions[int(self.gather("instruction_index", rows[:1])[0])]
            # One that still runs is no success, and not unlabelled either.
            running = self.running and index == self.length - 1
            reward, mask = self.labels(first)[:2] if running else (self.gather(key, rows) for key in ("reward", "mask"))
            achieved, success = int(self.achieved[index]), {1: True, 0: False}.get(int(self.success[index]))
            assumed = self.assumes_success and success is None and not running
            yield Episode(
                observations={
                    key: self.gather(key, rows) for key in self.observation_keys if images or not key.startswith("image_")
                },
                actions=self.gather("action", rows[:-1]),
                instruction=text,
                success=False if running else success,
                source=f"{self.path} episode {index}",
                instruction_embedding=self.language.table[text],
                rewards=reward[:-1],
                terminated=None if assumed else bool(mask[-2] == 0),
                achieved=self.instructions[achieved] if achieved >= 0 else None,
            )

    def verify(self) -> None:
        """Read everything and compare it with the checksums. InputError names the first file that differs."""
        for array in self.arrays.values():
            array.verify()

    def _array(self, key: str) -> MappedArray | JpegFrames:
        if key not in self.arrays:
            raise InputError(f"{self.path}: has no {key!r}; it has {', '.join(self.arrays)}")
        return self.arrays[key]

    def _check(self) -> None:
        if (np.diff(self.episode_ends, prepend=0) < 2).any() or self.rows > self.committed.rows:
            raise InputError(f"{self.path}/meta: episode_ends does not describe whole episodes; convert the dataset again")
        if not self.instructions:
            raise InputError(f"{self.path / INSTRUCTIONS}: is empty or missing; convert the dataset again")
        names = self.attributes["action"]["names"]
        if self.rows and self.arrays["action"].shape[1:] != (len(names),):
            raise InputError(f"{self.path}/data/action: rows of {self.arrays['action'].shape[1:]}, described with {names}")


def _identity(path: Path) -> tuple[int, int]:
    """What a store that takes another's place does not share with it."""
    found = (path / "meta" / COMMIT).stat()
    return found.st_dev, found.st_ino
