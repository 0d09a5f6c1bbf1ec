"""How much of a growing store counts: one small file that is always whole, however its writer dies.

Two slots are written in turn, each with a sequence number and a checksum; a reader takes the newer one that is whole. Rows are written
before the commit that counts them, so a reader in another process sees complete transitions only, and a killed writer loses at most
the step that it was writing. (A machine that loses power may lose what its kernel had not yet written; `sync` is for that.)
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError

_SLOT = struct.Struct("<QQQQ")
_SIZE = 64
COMMIT = ".commit"


@dataclass(frozen=True)
class Committed:
    """rows and episodes that count; position: how many episodes of the source they were made from."""

    rows: int = 0
    episodes: int = 0
    position: int = 0


class CommitFile:
    """The one writer's handle."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._sequence, self.state = _read(os.pread(self._file, 2 * _SIZE, 0)) or (0, Committed())

    def commit(self, state: Committed, sync: bool = False) -> None:
        sequence = self._sequence + 1
        body = _SLOT.pack(sequence, state.rows, state.episodes, state.position)
        slot = body + struct.pack("<I", zlib.crc32(body))
        os.pwrite(self._file, slot.ljust(_SIZE, b"\0"), _SIZE * (sequence % 2))
        self._sequence, self.state = sequence, state
        if sync:
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        self._file = -1


def read_commit(path: Path) -> Committed:
    """What counts now. InputError when the file is missing or neither slot is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; convert the dataset again") from None
    found = _read(data)
    if found is None:
        raise InputError(f"{path}: damaged; convert the dataset again")
    return found[1]


def _read(data: bytes) -> tuple[int, Committed] | None:
    slots = []
    for start in (0, _SIZE):
        body, crc = data[start : start + _SLOT.size], data[start + _SLOT.size : start + _SLOT.size + 4]
        if len(crc) == 4 and struct.unpack("<I", crc)[0] == zlib.crc32(body):
            sequence, *state = _SLOT.unpack(body)
            slots.append((sequence, Committed(*state)))
    return max(slots, default=None, key=lambda slot: slot[0])
