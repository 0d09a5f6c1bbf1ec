"""Labels by hand: the journal that a keystroke is written to at once, and the frames of an episode that a labeller plays.

Nothing here changes the store: `read_journal` gives what `data.labels.relabel` is then called with. The labellers are
`data.labels.labeller_terminal` and `data.labels.labeller_page`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np

from data.errors import InputError
from data.store.store import Store

LABELS = {"success": 1, "failure": 0, "unlabelled": -1}
NAMES = {code: name for name, code in LABELS.items()}
FRAMES = 48
"""Frames of an episode that are played: enough to see what happened, few enough to be there at once."""


def journal_path(store: Store) -> Path:
    """Where the journal of a store lies: beside it, so that relabelling, which replaces the store, leaves it alone."""
    return store.path.parent / f"{store.path.name}.labels.jsonl"


def read_journal(path: str | Path, store: Store) -> np.ndarray:
    """success int8 [E]: 1, 0, or -1 where a hand said unlabelled; an episode that no hand touched keeps the store's label.

    InputError when there is no journal, a line of it is damaged, or it is of another store.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no labels by hand there yet; label some first") from None
    return _labels(path, text, store)[0]


class Journal:
    """The one writer of a journal. labels: int8 [E], as `read_journal`; touched: bool [E], the episodes that it names."""

    def __init__(self, path: str | Path, store: Store) -> None:
        """Open or start it. InputError when another labeller has it open, and as `read_journal`."""
        self.path, self.store = Path(path), store
        if not whole_episodes(store):
            raise InputError(f"{store.path}: no episode of it has ended yet; wait for its writer")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; the labels are kept there, make it writable") from None
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another labeller has it open; quit that one first") from None
            text = self.path.read_bytes()
            self.labels, self.touched = _labels(self.path, text, store)
            # A line that a machine lost its power over was not whole: the next one must not be joined to it.
            os.ftruncate(self._file, text.rfind(b"\n") + 1)
            _sync_folder(self.path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def write(self, episode: int, label: int) -> None:
        """Label an episode; it is on the disk when this returns."""
        values = {"episode": episode, "label": NAMES[label], "of": fingerprint(self.store, episode)}
        line = json.dumps(values).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(0, "the disk is full")
            os.fsync(self._file)
        except OSError as error:
            # Half a line would make the next one unreadable.
            os.ftruncate(self._file, before)
            raise InputError(f"{self.path}: {error.strerror}; the label of episode {episode} was not saved") from None
        self.labels[episode], self.touched[episode] = label, True

    def first(self) -> int:
        """The episode to begin with: the first that neither a hand nor the store has labelled, else the first untouched."""
        untouched = ~self.touched[: whole_episodes(self.store)]
        for wanted in (untouched & (self.labels[: len(untouched)] < 0), untouched):
            if wanted.any():
                return int(np.argmax(wanted))
        return 0


def whole_episodes(store: Store) -> int:
    """How many episodes can be labelled: all but one that still runs."""
    return store.length - store.running


def fingerprint(store: Store, episode: int) -> str:
    """What an episode is known by: its rows, instruction and actions, which neither growing nor relabelling a store changes."""
    rows = episode_rows(store, episode)
    digest = hashlib.sha256(f"{rows[0]} {rows[-1]} {instruction(store, episode)}".encode())
    digest.update(np.ascontiguousarray(store.gather("action", rows)).tobytes())
    return digest.hexdigest()[:16]


def episode_rows(store: Store, episode: int) -> np.ndarray:
    """Rows [T+1] of an episode."""
    return np.arange(int(store.episode_ends[episode - 1]) if episode else 0, int(store.episode_ends[episode]))


def instruction(store: Store, episode: int) -> str:
    """Of an episode."""
    return store.instructions[int(store.gather("instruction_index", episode_rows(store, episode)[:1])[0])]


def printable(text: str) -> str:
    """A text without what would steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def cameras(store: Store) -> list[str]:
    """Keys of the cameras, the primary one first. InputError when there is none."""
    keys = [key for key in store.observation_keys if key.startswith("image_")]
    if not keys:
        raise InputError(f"{store.path}: has no camera to look at; label by rule instead")
    return sorted(keys, key=lambda key: (key != "image_primary", key))


def clip(
    store: Store, episode: int, keys: Sequence[str], height: int, width: int | None = None, multiple: int = 1
) -> np.ndarray:
    """uint8 [N,h,w,3]: at most FRAMES frames of an episode, its first and last among them, the cameras `keys` side by side.

    height and width: that they are made to fit, keeping their shape. multiple: h and w are rounded up to multiples of it.
    """
    import cv2

    rows = episode_rows(store, episode)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).round().astype(int))]
    aspects = [store.shape(key)[1] / store.shape(key)[0] for key in keys]
    if width is not None:
        height = min(height, int(width / sum(aspects)))
    height = max(-(-height // multiple) * multiple, multiple)
    parts = []
    for key, aspect in zip(keys, aspects, strict=True):
        columns = max(-(-int(height * aspect) // multiple) * multiple, multiple)
        frames = store.gather(key, rows)
        method = cv2.INTER_AREA if frames.shape[1] > height else cv2.INTER_NEAREST
        parts.append(np.stack([cv2.resize(frame, (columns, height), interpolation=method) for frame in frames]))
    return np.concatenate(parts, axis=2)


def _labels(path: Path, text: bytes, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """labels int8 [E] and touched bool [E] of a journal's text; what follows its last newline was never whole."""
    labels, touched = store.success.astype(np.int8), np.zeros(store.length, bool)
    known = lru_cache(maxsize=None)(lambda episode: fingerprint(store, episode))
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
            episode, label, of = int(values["episode"]), LABELS[values["label"]], values["of"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: line {number} is no label; repair or remove it") from None
        if not 0 <= episode < whole_episodes(store) or known(episode) != of:
            raise InputError(
                f"{path}: line {number} labels episode {episode} of another store than {store.path}; give that one, or another journal"
            )
        labels[episode], touched[episode] = label, True
    return labels, touched


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
