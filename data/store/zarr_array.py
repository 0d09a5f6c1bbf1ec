"""Uncompressed zarr arrays (format 2), chunked over their first axis only: raw bytes a chunk file, so numpy can map them.

Any zarr reader opens them; they are written and read here directly because random reads through zarr itself are 40 times slower, and
because this way the store does not depend on which zarr (2 or 3) is installed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError

CHUNK_BYTES = 16 * 2**20
_MAX_MAPS = 2**14
"""Chunks mapped at once; Linux allows a process 65,530 maps."""


def write_group(folder: Path, attributes: dict[str, Any] | None = None) -> None:
    """Make `folder` a zarr group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    if attributes is not None:
        (folder / ".zattrs").write_text(json.dumps(attributes, indent=1))


class ArrayWriter:
    """Appends rows of one shape and dtype; holds at most one chunk in memory. Valid only after `close`."""

    def __init__(self, folder: Path, dtype: Any, row_shape: tuple[int, ...]) -> None:
        self.folder, self.dtype, self.row_shape = folder, np.dtype(dtype), tuple(row_shape)
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.row_shape))
        self._buffer = np.empty((max(1, CHUNK_BYTES // max(self._row_bytes, 1)), *self.row_shape), self.dtype)
        self._filled = self._chunks = 0
        folder.mkdir(parents=True)

    def append(self, rows: np.ndarray) -> None:
        """rows: [N, *row_shape]."""
        while len(rows):
            room = rows[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            rows = rows[len(room) :]
            if self._filled == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        name = ".".join([str(self._chunks), *("0" for _ in self.row_shape)])
        # Not ndarray.tofile: its error on a full disk has no errno.
        with (self.folder / name).open("wb") as file:
            file.write(self._buffer[: self._filled].tobytes())
        if self._chunks:
            # zarr reads whole chunks: the last one is as long as the others.
            os.truncate(self.folder / name, self._buffer.nbytes)
        self._chunks, self._filled = self._chunks + 1, 0

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Write what is left and the array's description."""
        rows, chunk = self._chunks * len(self._buffer) + self._filled, len(self._buffer)
        if self._filled:
            chunk = chunk if self._chunks else self._filled
            self._flush()
        description = {
            "zarr_format": 2,
            "shape": [rows, *self.row_shape],
            "chunks": [chunk, *self.row_shape],
            "dtype": self.dtype.str,
            "compressor": None,
            "fill_value": 0,
            "order": "C",
            "filters": None,
        }
        (self.folder / ".zarray").write_text(json.dumps(description))


def write_array(folder: Path, values: np.ndarray) -> None:
    """A whole array at once."""
    writer = ArrayWriter(folder, values.dtype, values.shape[1:])
    writer.append(values)
    writer.close()


class MappedArray:
    """A zarr array as written by ArrayWriter, mapped into memory chunk by chunk as rows are asked for."""

    def __init__(self, folder: Path) -> None:
        """Check the description and the size of every chunk file. InputError when the array is missing, damaged or of another kind."""
        self.folder = folder
        try:
            description = json.loads((folder / ".zarray").read_text())
            self.shape = tuple(int(size) for size in description["shape"])
            self.dtype = np.dtype(description["dtype"])
            chunks = tuple(int(size) for size in description["chunks"])
            plain = all(description[key] is None for key in ("compressor", "filters")) and description["order"] == "C"
        except FileNotFoundError:
            raise InputError(f"{folder}: missing from the store; convert the dataset again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}/.zarray: damaged ({error!r}); convert the dataset again") from None
        if not plain or self.dtype.hasobject or not self.shape or chunks[1:] != self.shape[1:] or chunks[0] < 1:
            raise InputError(f"{folder}: is compressed or chunked over other axes than time; convert the dataset with robot-rl")
        self._chunk = chunks
        self._maps: dict[int, np.ndarray] = {}
        expected = self.dtype.itemsize * int(np.prod(chunks))
        for index in range(-(-self.shape[0] // chunks[0])):
            file = self._file(index)
            size = file.stat().st_size if file.exists() else 0
            if size != expected:
                raise InputError(f"{file}: has {size} of {expected} bytes, it is truncated; convert the dataset again")

    def __len__(self) -> int:
        return self.shape[0]

    def _file(self, index: int) -> Path:
        return self.folder / ".".join([str(index), *("0" for _ in self.shape[1:])])

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            if len(self._maps) >= _MAX_MAPS:
                self._maps.clear()
            self._maps[index] = np.memmap(self._file(index), self.dtype, "r", shape=self._chunk)
        return self._maps[index]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N] in any order, repeats allowed -> a new array [N, ...]. IndexError outside [0, len)."""
        rows = np.asarray(rows)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return out
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.folder.name}, which has {len(self)}")
        chunk, within = np.divmod(rows, self._chunk[0])
        order = np.argsort(chunk, kind="stable")
        touched, starts = np.unique(chunk[order], return_index=True)
        for index, positions in zip(touched, np.split(order, starts[1:]), strict=True):
            out[positions] = self._map(int(index))[within[positions]]
        return out

    def load(self) -> np.ndarray:
        """The whole array in memory."""
        out = np.empty(self.shape, self.dtype)
        for index, start in enumerate(range(0, len(self), self._chunk[0])):
            part = out[start : start + self._chunk[0]]
            part[:] = self._map(index)[: len(part)]
        return out
