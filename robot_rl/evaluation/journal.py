"""The journal of an evaluation: a JSON line of settings, then a line for each completed block, so that a killed run resumes.

A line is written with one call and synced before the next block counts as done. A last line without its newline was being written
when the process was killed; it is cut off and its block runs again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError

FORMAT = "robot-rl evaluation journal 1"


class Journal:
    """Open `path` for appending, or start it with `header`. `records` are the lines that were there, oldest first.

    InputError: the file is no journal, belongs to other settings, is damaged, or is in use by another process.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.records = self._open({"format": FORMAT, **header})
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        data = (json.dumps(record) + "\n").encode()
        written = os.write(self._file, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes written, the disk is full", str(self.path))
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _open(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another evaluation is writing to it; wait for it, or choose another journal"
            ) from None
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            if not lines and not b'{"format": "robot-rl evaluation'.startswith(torn[:30]):
                raise InputError(f"{self.path}: not an evaluation journal; choose another path")
            os.ftruncate(self._file, sum(len(line) + 1 for line in lines))
        if not lines:
            self.append(header)
            return []
        read = []
        for number, line in enumerate(lines, 1):
            try:
                read.append(json.loads(line))
            except ValueError:
                what = (
                    "the settings; choose another path, or delete it"
                    if number == 1
                    else "a block; delete the line to run it again"
                )
                raise InputError(f"{self.path}: line {number} is damaged, which holds {what}") from None
        found, *records = read
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{self.path}: not an evaluation journal of this version; choose another path, or delete it")
        if different := list(_differences(found, header)):
            more = f", and {len(different) - 3} more" if len(different) > 3 else ""
            raise InputError(
                f"{self.path}: holds an evaluation with other settings: {'; '.join(different[:3])}{more}. Write this one to another "
                "place, or delete the file to begin again"
            )
        return records


def _differences(was: Any, now: Any, where: str = "") -> Iterator[str]:
    """The innermost values in which two settings differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            inner = f"{where}, {key}" if where else key
            if key not in was or key not in now:
                yield f"{inner} {'was not there' if key in now else 'is not there now'}"
            else:
                yield from _differences(was[key], now[key], inner)
    elif was != now:
        yield f"{where} was {_short(was, now)}, is {_short(now, was)}"


def _short(value: Any, other: Any) -> str:
    """Of a long text, from a little before where the other begins to differ."""
    text, against = json.dumps(value), json.dumps(other)
    same = next((index for index, (a, b) in enumerate(zip(text, against, strict=False)) if a != b), 0)
    start = max(0, same - 30) if len(text) > 80 else 0
    return ("..." if start else "") + text[start : start + 80] + ("..." if len(text) > start + 80 else "")
