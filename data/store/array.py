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
"""In an array's folder: uint32 a chunk, the crc32c of the rows in it; zarr ignores it."""


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
    """Rows a chunk: whole pages, so that the chunks of an array can be mapped end to end; about CHUNK_BYTES, at most MAX_CHUNK_ROWS.

    Frames whose size is an odd number of bytes make larger chunks than that; the files are sparse.
    """
    step = PAGE // math.gcd(max(row_bytes, 1), PAGE)
    # Rows of a single byte are JPEG files end to end, of which there are many; a process can map 65,530 files.
    rows = CHUNK_BYTES if row_bytes == 1 else min(CHUNK_BYTES // max(row_bytes, 1), MAX_CHUNK_ROWS)
    return max(rows // step, 1) * step


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
        self._chunk = chunks[0] if shape[0] > chunks[0] else chunk_rows(self._row_bytes)
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

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows [N, *row_shape] at `start`, over what is there."""
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"{self.folder.name}: rows of {rows.shape[1:]}, expected {self.row_shape}")
        data = np.ascontiguousarray(rows, self.dtype).data.cast("B") if rows.size else memoryview(b"")
        at, end = start * self._row_bytes, start * self._row_bytes + len(data)
        size = self._chunk * self._row_bytes
        if start // self._chunk < self._checked:
            self._checked = start // self._chunk
            os.truncate(self.folder / CHECKSUMS, 4 * self._checked)
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
        """Close the array: a single chunk is cut to its rows, every chunk has its checksum, all of it is on the disk."""
        chunk, last = self._chunk, max(-(-self.rows // self._chunk) - 1, 0)
        self.close()
        for path in self.folder.iterdir():
            number = path.name.split(".")[0]
            if number.isdigit() and int(number) > last:
                path.unlink()  # begun by a writer that was killed
        if 0 < self.rows < self._chunk:
            # Described before it is cut: a file that is longer than described is no harm, one that is shorter is.
            chunk = self.rows
            _describe(self.folder, (self.rows, *self.row_shape), chunk, self.dtype)
            os.truncate(chunk_file(self.folder, 0, len(self.row_shape)), self.rows * self._row_bytes)
        with (self.folder / CHECKSUMS).open("ab") as sums:
            for index in range(self._checked, last + 1 if self.rows else 0):
                file = chunk_file(self.folder, index, len(self.row_shape))
                sums.write(np.uint32(_checksum(file, self._valid_bytes(index))).tobytes())
                _sync(file)
        _describe(self.folder, (self.rows, *self.row_shape), chunk, self.dtype)

    def _valid_bytes(self, index: int) -> int:
        return min(self.rows - index * self._chunk, self._chunk) * self._row_bytes

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
    """A zarr array as ArrayWriter writes it, its chunks mapped end to end as one array."""

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        """Check the description and the size of every chunk file. InputError when the array is missing, damaged or of another kind.

        rows: how many count, when a commit says so; else as many as the description has.
        """
        self.folder = folder
        shape, self._chunk, self.dtype = read_description(folder)
        self._row_shape = shape[1:]
        self._view = np.empty((0, *self._row_shape), self.dtype)
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
        count, size = -(-rows // chunk), self.dtype.itemsize * math.prod(self._chunk)
        if rows > len(self._view):
            files = [chunk_file(self.folder, index, len(self._row_shape)) for index in range(count)]
            for file in files:
                found = file.stat().st_size if file.exists() else 0
                if found < size:
                    raise InputError(f"{file}: has {found} of {size} bytes, it is truncated; convert the dataset again")
            buffer = map_files(files, size) if size else np.empty(0, np.uint8)
            self._view = buffer.view(self.dtype).reshape(count * chunk, *self._row_shape)
        self.rows = rows

    @property
    def view(self) -> np.ndarray:
        """All rows, mapped and read-only: reading a slice of it costs what the slice holds."""
        return self._view[: self.rows]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N] in any order, repeats allowed -> a new array [N, ...]. IndexError outside [0, len)."""
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.folder.name}, which has {self.rows}")
        out = np.empty((len(rows), *self._row_shape), self.dtype)
        # "clip" (there is nothing to clip) copies each row once, straight into `out`; "raise" goes through a buffer.
        return np.take(self._view, rows, axis=0, out=out, mode="clip") if len(rows) else out

    def verify(self) -> None:
        """Read everything and compare it with the checksums. InputError names the first file that differs."""
        path = self.folder / CHECKSUMS
        if not path.exists():
            raise InputError(
                f"{path}: missing, so the data cannot be verified; a writer was killed, open the store for appending once"
            )
        sums, chunk = np.fromfile(path, np.uint32), self._chunk[0]
        row_bytes = self.dtype.itemsize * math.prod(self._row_shape)
        if len(sums) < -(-self.rows // chunk):
            raise InputError(
                f"{path}: covers {len(sums)} chunks of more; its writer has not finished, or was killed: append and close once"
            )
        for index, expected in enumerate(sums):
            file = chunk_file(self.folder, index, len(self._row_shape))
            if _checksum(file, min(self.rows - index * chunk, chunk) * row_bytes) != expected:
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


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
