"""Uncompressed zarr arrays (format 2), chunked over their first axis only: raw bytes a chunk file, so that they can be mapped.

Any zarr reader opens them; they are written and read here directly because random reads through zarr itself are 40 times slower, and
because this way the store does not depend on which zarr (2 or 3) is installed. An array grows: rows are written in place, and how many
of them count is said elsewhere (data/store/commit.py), so that a killed writer leaves nothing half-written in sight.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.store.mapping import PAGE, map_files

CHUNK_BYTES = 64 * 2**20
MAX_CHUNK_ROWS = 2**18
CHECKSUMS = ".crc32c"
"""In an array's folder: little-endian uint32 a chunk, the crc32c of the rows in it; zarr ignores it."""


def write_group(folder: Path, attributes: dict[str, Any] | None = None) -> None:
    """Make `folder` a zarr group. The attributes are replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / ".zgroup", json.dumps({"zarr_format": 2}))
    if attributes is not None:
        replace_text(folder / ".zattrs", json.dumps(attributes, indent=1))


def replace_text(path: Path, text: str) -> None:
    """Write a small file beside its place and rename it."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def chunk_rows(row_bytes: int) -> int:
    """Rows a chunk: CHUNK_BYTES at most (but one row), and MAX_CHUNK_ROWS; whole pages if that can be, for the chunks of an array then
    lie end to end in memory (frames of an odd number of bytes fill whole pages by the thousands only)."""
    step = PAGE // math.gcd(max(row_bytes, 1), PAGE)
    # Rows of a single byte are JPEG files end to end, of which there are many; a process can map 65,530 files.
    rows = CHUNK_BYTES if row_bytes == 1 else min(max(CHUNK_BYTES // max(row_bytes, 1), 1), MAX_CHUNK_ROWS)
    return rows // step * step or rows


class ArrayWriter:
    """Appends rows of one shape and dtype, or overwrites rows, in place. Readers see them once `publish` or a commit says so."""

    def __init__(self, folder: Path, dtype: Any, row_shape: tuple[int, ...]) -> None:
        """A new array in `folder`, which must not exist."""
        self.folder, self.dtype, self.row_shape = folder, np.dtype(dtype), tuple(row_shape)
        self._row_bytes = self.dtype.itemsize * math.prod(self.row_shape)
        self._chunk = chunk_rows(self._row_bytes)
        self.rows = self._checked = 0
        self._file: tuple[int, int] | None = None
        folder.mkdir(parents=True)
        self.publish(0)

    @classmethod
    def reopen(cls, folder: Path, rows: int) -> ArrayWriter:
        """Go on after the first `rows` rows of an array; what is behind them is overwritten."""
        shape, chunks, dtype = read_description(folder)
        self = cls.__new__(cls)
        self.folder, self.dtype, self.row_shape = folder, dtype, shape[1:]
        self._row_bytes = dtype.itemsize * math.prod(self.row_shape)
        # A finished array of a single chunk was cut to its length.
        self._chunk = chunks[0] if shape[0] != chunks[0] else max(chunks[0], chunk_rows(self._row_bytes))
        self.rows, self._file = rows, None
        sums = folder / CHECKSUMS
        self._checked = min(sums.stat().st_size // 4 if sums.exists() else 0, rows // self._chunk)
        if sums.exists():
            os.truncate(sums, 4 * self._checked)
        if rows:
            file = chunk_file(folder, 0, len(self.row_shape))
            if file.exists() and file.stat().st_size < self._chunk * self._row_bytes:
                os.truncate(file, self._chunk * self._row_bytes)
            self.publish(rows)
        return self

    def append(self, rows: np.ndarray) -> None:
        """rows: [N, *row_shape]."""
        self.write(self.rows, rows)
        self.rows += len(rows)

    def back_to(self, rows: int) -> None:
        """Append after the first `rows` rows from now on."""
        self.rows = rows
        self._uncheck(rows)

    def _uncheck(self, row: int) -> None:
        """The checksums from that of `row` on hold no more."""
        if row // self._chunk < self._checked:
            self._checked = row // self._chunk
            os.truncate(self.folder / CHECKSUMS, 4 * self._checked)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows [N, *row_shape] at `start`, over what is there."""
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"{self.folder.name}: rows of {rows.shape[1:]}, expected {self.row_shape}")
        data = np.ascontiguousarray(rows, self.dtype).data.cast("B") if rows.size else memoryview(b"")
        at, end = start * self._row_bytes, start * self._row_bytes + len(data)
        size = self._chunk * self._row_bytes
        self._uncheck(start)
        while at < end:
            index, within = divmod(at, size)
            part = data[: size - within]
            write_all(self._open(index), part, within)
            data, at = data[len(part) :], at + len(part)

    def _open(self, index: int) -> int:
        if self._file is None or self._file[0] != index:
            self.close()
            file = os.open(chunk_file(self.folder, index, len(self.row_shape)), os.O_RDWR | os.O_CREAT, 0o644)
            self._file = (index, file)
            # zarr reads whole chunks; the file is sparse until it is filled.
            if os.fstat(file).st_size < self._chunk * self._row_bytes:
                os.truncate(file, self._chunk * self._row_bytes)
        return self._file[1]

    def publish(self, rows: int) -> None:
        """Tell zarr readers how many rows there are."""
        _describe(self.folder, (rows, *self.row_shape), self._chunk, self.dtype)

    def finish(self) -> None:
        """Close the array for good: a single chunk is cut to its rows, every chunk has its checksum. `reopen` goes on after it."""
        last = max(-(-self.rows // self._chunk) - 1, 0)
        self.close()
        for path in self.folder.iterdir():
            number = path.name.split(".")[0]
            if number.isdigit() and int(number) > last:
                path.unlink()  # begun by a writer that was killed
        # Described before it is cut: a file that is longer than described is no harm, one that is shorter is.
        cut = 0 < self.rows < self._chunk
        _describe(self.folder, (self.rows, *self.row_shape), self.rows if cut else self._chunk, self.dtype)
        if cut:
            os.truncate(chunk_file(self.folder, 0, len(self.row_shape)), self.rows * self._row_bytes)
        with (self.folder / CHECKSUMS).open("ab") as sums:
            for index in range(self._checked, last + 1 if self.rows else 0):
                file = chunk_file(self.folder, index, len(self.row_shape))
                valid = min(self.rows - index * self._chunk, self._chunk) * self._row_bytes
                sums.write(_checksum(file, valid).to_bytes(4, "little"))

    def discard(self) -> None:
        """Remove what was written."""
        self.close()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let go of the open file; nothing is buffered."""
        if self._file is not None:
            os.close(self._file[1])
            self._file = None


class MappedArray:
    """A zarr array as ArrayWriter writes it, its chunks mapped as one array."""

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        """Check the description and the size of every chunk file. InputError when the array is missing, damaged or of another kind.

        rows: how many count, when a commit says so; else as many as the description has.
        """
        self.folder = folder
        shape, self._chunk, self.dtype = read_description(folder)
        self._row_shape = shape[1:]
        self._chunks = np.empty((0, *self._chunk), self.dtype)
        self.rows = 0
        self.grow(shape[0] if rows is None else rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self._row_shape)

    def __len__(self) -> int:
        return self.rows

    def grow(self, rows: int) -> None:
        """See the first `rows` rows from now on. InputError when the files do not hold them."""
        chunk = self._chunk[0]
        if rows > chunk and self.rows <= chunk:
            # What was a single chunk, cut to its rows, has been appended to.
            self._chunk = read_description(self.folder)[1]
            chunk = self._chunk[0]
        row_bytes = self.dtype.itemsize * math.prod(self._row_shape)
        if rows > self._chunks.shape[0] * self._chunks.shape[1]:
            files = [chunk_file(self.folder, index, len(self._row_shape)) for index in range(-(-rows // chunk))]
            for index, file in enumerate(files):
                # Not the whole chunk: its writer may be about to cut it to its rows.
                needed = min(rows - index * chunk, chunk) * row_bytes
                found = file.stat().st_size if file.exists() else 0
                if found < needed:
                    raise InputError(f"{file}: has {found} of {needed} bytes, it is truncated; convert the dataset again")
            mapped = map_files(files, chunk * row_bytes)
            self._chunks = mapped.view(self.dtype).reshape(len(files), *self._chunk)
        self.rows = rows

    @property
    def _flat(self) -> np.ndarray | None:
        """[chunks * rows of a chunk, ...], where the chunks lie end to end."""
        shape = (self._chunks.shape[0] * self._chunks.shape[1], *self._row_shape)
        return self._chunks.reshape(shape) if self._chunks.flags.c_contiguous else None

    @property
    def view(self) -> np.ndarray:
        """All rows, read-only and mapped: reading a slice of it costs what the slice holds. A copy where chunks are no whole pages."""
        flat = self._flat
        return self.gather(np.arange(self.rows)) if flat is None else flat[: self.rows]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N] in any order, repeats allowed -> a new array [N, ...]. IndexError outside [0, len)."""
        rows = np.asarray(rows)
        if not len(rows):
            return np.empty((0, *self._row_shape), self.dtype)
        if rows.min() < 0 or rows.max() >= self.rows:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.folder.name}, which has {self.rows}")
        flat = self._flat
        if flat is None:
            return self._chunks[np.divmod(rows, self._chunk[0])]
        # "clip" (there is nothing to clip) copies each row once, straight into `out`; "raise" goes through a buffer.
        out = np.empty((len(rows), *self._row_shape), self.dtype)
        return np.take(flat, rows, axis=0, out=out, mode="clip")

    def verify(self) -> None:
        """Read everything and compare it with the checksums. InputError names the first file that differs."""
        path = self.folder / CHECKSUMS
        if not path.exists():
            raise InputError(
                f"{path}: missing, so the data cannot be verified; a writer was killed, open the store for appending once"
            )
        sums, (shape, (chunk, *_), _) = np.fromfile(path, "<u4"), read_description(self.folder)
        row_bytes = self.dtype.itemsize * math.prod(self._row_shape)
        # Those that were finished, also where this reader has seen fewer so far.
        rows = max(self.rows, shape[0])
        if len(sums) < -(-rows // chunk):
            raise InputError(
                f"{path}: covers {len(sums)} chunks of more; its writer has not finished, or was killed: append and close once"
            )
        for index, expected in enumerate(sums):
            file = chunk_file(self.folder, index, len(self._row_shape))
            if _checksum(file, min(rows - index * chunk, chunk) * row_bytes) != expected:
                raise InputError(f"{file}: its checksum is wrong, the disk or a copy damaged it; convert the dataset again")


def write_array(folder: Path, values: np.ndarray) -> None:
    """A whole array at once."""
    writer = ArrayWriter(folder, values.dtype, values.shape[1:])
    writer.append(values)
    writer.finish()


def chunk_file(folder: Path, index: int, trailing: int) -> Path:
    """The file of chunk `index` of an array with `trailing` axes after the first."""
    return folder / ".".join([str(index), *("0" for _ in range(trailing))])


def read_description(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype]:
    """shape, chunk shape and dtype of an array. InputError when it is missing, damaged or cannot be mapped."""
    try:
        description = json.loads((folder / ".zarray").read_text())
        shape = tuple(int(size) for size in description["shape"])
        chunks = tuple(int(size) for size in description["chunks"])
        dtype = np.dtype(description["dtype"])
        plain = all(description[key] is None for key in ("compressor", "filters")) and description["order"] == "C"
    except FileNotFoundError:
        raise InputError(f"{folder}: missing from the store; convert the dataset again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/.zarray: damaged ({error!r}); convert the dataset again") from None
    if not plain or dtype.hasobject or not shape or chunks[1:] != shape[1:] or chunks[0] < 1:
        raise InputError(f"{folder}: is compressed or chunked over other axes than time; convert the dataset with robot-rl")
    return shape, chunks, dtype


def _describe(folder: Path, shape: tuple[int, ...], chunk: int, dtype: np.dtype) -> None:
    description = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": [chunk, *shape[1:]],
        "dtype": dtype.str,
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    replace_text(folder / ".zarray", json.dumps(description))


def write_all(file: int, data: memoryview | bytes, offset: int) -> None:
    """os.pwrite until everything is written."""
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _checksum(path: Path, size: int) -> int:
    import crc32c

    checksum, left = 0, size
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, 2**22))
            if not block:
                return -1
            checksum, left = crc32c.crc32c(block, checksum), left - len(block)
    return checksum
