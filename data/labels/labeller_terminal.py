"""A labeller in the terminal: episodes are played in half-block characters of 24-bit colour, and labelled by single keys."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import textwrap
import time
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.labels.labeller import FRAMES, NAMES, Journal, cameras, clip, instruction, printable, whole_episodes
from data.store.store import Store

FRAME_SECONDS = 1 / 12
END_SECONDS = 1.0
"""How long the last frame stands: it is the one that a label is about."""
_HELP = ("s success", "f failure", "u unlabelled", "space next", "b back", "n next unlabelled", "c cameras", "q save and quit")
_KEYS = {
    b"\x1b[C": "next",
    b"\x1bOC": "next",
    b"\x1b[D": "back",
    b"\x1bOD": "back",
    b" ": "next",
    b"b": "back",
    b"n": "unlabelled",
    b"c": "cameras",
}
_KEYS |= {b"s": "s", b"f": "f", b"u": "u", b"q": "quit"}
_LABEL_KEYS = {"s": 1, "f": 0, "u": -1}
_COLOURS = {1: "\x1b[1;32m", 0: "\x1b[1;31m", -1: "\x1b[2m"}


def label_in_terminal(store: Store, journal: str | Path) -> None:
    """Play episodes in this terminal and write each label to the journal as its key is pressed, until `q`.

    InputError when this is no terminal, there is no camera, and as `Journal`.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError("labelling in the terminal needs a terminal to draw in; use --browser")
    cameras(store)
    with Journal(journal, store) as opened, _screen():
        _Player(store, opened).play()


class _Player:
    """One episode at a time. Keys are read in the order in which they were pressed, however fast."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self.store, self.journal, self.count = store, journal, whole_episodes(store)
        self.episode, self.said, self.pending = journal.first(), "", b""
        keys = cameras(store)
        self.views, self.view = [keys, *([key] for key in keys if len(keys) > 1)], 0
        self.clips, self.drawn = lru_cache(maxsize=4)(self._clip), lru_cache(maxsize=FRAMES)(self._draw)

    def play(self) -> None:
        """Until it is quit."""
        with ThreadPoolExecutor(1) as ahead:
            self._play(ahead)

    def _play(self, ahead: ThreadPoolExecutor) -> None:
        shown, began, last = (-1, 0, os.terminal_size((0, 0))), 0.0, ""
        while True:
            size = shutil.get_terminal_size()
            frames = len(self.clips(self.episode, self.view, *size))
            if shown != (self.episode, self.view, size):
                shown, began = (self.episode, self.view, size), time.monotonic()
                _write("\x1b[2J")
                ahead.submit(self.clips, min(self.episode + 1, self.count - 1), self.view, *size)
            position = _position(time.monotonic() - began, frames)
            text = "\x1b[H" + self.drawn(self.episode, self.view, position, *size) + self._status(size[0], position, frames)
            if text != last:
                _write(text)
            last = text
            for key in self._keys(FRAME_SECONDS):
                if key == "quit":
                    return
                self._press(key)

    def _press(self, key: str) -> None:
        following = min(self.episode + 1, self.count - 1)
        if key in _LABEL_KEYS:
            self.journal.write(self.episode, _LABEL_KEYS[key])
            self.said = f"episode {self.episode}: {NAMES[_LABEL_KEYS[key]]}"
            if self.episode == following:
                self.said += "; it was the last one"
            self.episode = following
        elif key == "cameras":
            self.view = (self.view + 1) % len(self.views)
        elif key == "unlabelled":
            later = np.flatnonzero(self.journal.labels[self.episode + 1 : self.count] < 0)
            self.said = "" if len(later) else "none of those that follow is unlabelled"
            self.episode += int(later[0]) + 1 if len(later) else 0
        else:
            self.episode, self.said = (following if key == "next" else max(self.episode - 1, 0)), ""

    def _keys(self, seconds: float) -> Iterator[str]:
        """Keys pressed within `seconds`; a terminal that is gone quits."""
        if not select.select([sys.stdin], [], [], seconds)[0]:
            self.pending = b""
            return
        read = os.read(sys.stdin.fileno(), 1024)
        if not read:
            yield "quit"
        data = self.pending + read
        while data and not (len(data) < 3 and any(known != data and known.startswith(data) for known in _KEYS)):
            found = next((known for known in _KEYS if data.startswith(known)), data[:1])
            data = data[len(found) :]
            if found in _KEYS:
                yield _KEYS[found]
        self.pending = data

    def _clip(self, episode: int, view: int, columns: int, lines: int) -> np.ndarray:
        """Its frames, of the terminal's size: uint8 [N,h,w,3], h even."""
        frames = clip(self.store, episode, self.views[view], max(2 * (lines - 4 - len(_legend(columns))), 2), columns)
        return frames if frames.shape[1] % 2 == 0 else np.concatenate([frames, frames[:, -1:]], axis=1)

    def _draw(self, episode: int, view: int, position: int, columns: int, lines: int) -> str:
        return _half_blocks(self.clips(episode, view, columns, lines)[position])

    def _status(self, columns: int, position: int, frames: int) -> str:
        label, labels = int(self.journal.labels[self.episode]), self.journal.labels[: self.count]
        done, bar = int((labels >= 0).sum()), max(min(columns - 44, 40), 5)
        names = " ".join(key.removeprefix("image_") for key in self.views[self.view])
        filled = bar * done // self.count
        lines = [
            ("", f"episode {self.episode} ({self.episode + 1} of {self.count})  frame {position + 1}/{frames}  {names}"),
            ("", printable(instruction(self.store, self.episode))),
            (_COLOURS[label], f"{NAMES[label]}{'  by hand' if self.journal.touched[self.episode] else ''}"),
            ("", f"{'█' * filled}{'░' * (bar - filled)} {done} of {self.count} labelled  {self.said}"),
            *(("\x1b[2m", line) for line in _legend(columns)),
        ]
        return "\r\n".join(f"{colour}{text[: columns - 1]}\x1b[0m\x1b[K" for colour, text in lines)


def _legend(columns: int) -> list[str]:
    """What the keys do, in as many lines as it takes."""
    text = "  ".join(key.replace(" ", "\xa0") for key in _HELP)
    return [line.replace("\xa0", " ") for line in textwrap.wrap(text, max(columns - 1, 1))]


def _half_blocks(frame: np.ndarray) -> str:
    """Text of the terminal, two pixels a character: the upper half block's colour and the one behind it."""
    lines = []
    for upper, lower in zip(frame[::2].tolist(), frame[1::2].tolist(), strict=True):
        line, last = [], None
        for above, below in zip(upper, lower, strict=True):
            if (above, below) != last:
                line.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*above, *below))
                last = (above, below)
            line.append("▀")
        lines.append("".join(line) + "\x1b[0m\x1b[K\r\n")
    return "".join(lines)


def _position(seconds: float, frames: int) -> int:
    """The frame that is shown so long after an episode began to play, over and over."""
    return min(int(seconds % (frames * FRAME_SECONDS + END_SECONDS) / FRAME_SECONDS), frames - 1)


@contextmanager
def _screen() -> Iterator[None]:
    """A screen of our own with keys as they are pressed; the terminal is left as it was. Ctrl-C is a quit: all is saved."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        _write("\x1b[?1049h\x1b[?25l\x1b[?7l")
        yield
    except KeyboardInterrupt:
        pass
    finally:
        _write("\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
