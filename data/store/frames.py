"""Frames kept as JPEG: a tenth of the bytes, decoded when they are sampled. Raw frames are a plain MappedArray.

jpeg/<key>/bytes   uint8 [total], the JPEG files end to end
jpeg/<key>/ends    int64 [rows], cumulative and exclusive
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.store.array import ArrayWriter, MappedArray, replace_text

JPEG_QUALITY = 95
_THREADED = 32
"""Frames from which decoding in threads pays; OpenCV lets go of Python's lock while it decodes."""


def encode_jpeg(frame: np.ndarray) -> bytes:
    """uint8 [H,W,3] RGB -> a JPEG file."""
    import cv2

    bgr = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


class JpegWriter:
    """Appends JPEG files of frames of one shape; the same calls as ArrayWriter."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.row_shape, self.rows, self._end = folder, shape, 0, 0
        self._bytes = ArrayWriter(folder / "bytes", np.uint8, ())
        self._ends = ArrayWriter(folder / "ends", np.int64, ())
        (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        replace_text(folder / ".zattrs", json.dumps({"shape": list(shape), "quality": JPEG_QUALITY}))

    @classmethod
    def reopen(cls, folder: Path, rows: int) -> JpegWriter:
        self = cls.__new__(cls)
        self.folder, self.row_shape, self.rows, self._end = folder, frame_shape(folder), rows, _total(folder, rows)
        self._bytes = ArrayWriter.reopen(folder / "bytes", self._end)
        self._ends = ArrayWriter.reopen(folder / "ends", rows)
        return self

    def append(self, rows: np.ndarray | Sequence[bytes]) -> None:
        """Frames uint8 [N,H,W,3], or N JPEG files."""
        files = [row if isinstance(row, bytes) else encode_jpeg(row) for row in rows]
        ends = self._end + np.cumsum([len(file) for file in files], dtype=np.int64)
        self._bytes.append(np.frombuffer(b"".join(files), np.uint8))
        self._ends.append(ends)
        self._end, self.rows = int(ends[-1]), self.rows + len(files)

    def back_to(self, rows: int) -> None:
        self.rows, self._end = rows, _total(self.folder, rows)
        self._ends.back_to(rows)
        self._bytes.back_to(self._end)

    def publish(self, rows: int) -> None:
        self._bytes.publish(self._end)
        self._ends.publish(rows)

    def finish(self) -> None:
        self._bytes.finish()
        self._ends.finish()

    def close(self) -> None:
        self._bytes.close()
        self._ends.close()

    def discard(self) -> None:
        self._bytes.discard()
        self._ends.discard()
        for name in (".zattrs", ".zgroup"):
            (self.folder / name).unlink()
        self.folder.rmdir()


class JpegFrames:
    """Frames of one camera, decoded on the way out; the same calls as MappedArray."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self._shape = folder, frame_shape(folder)
        self._ends = MappedArray(folder / "ends", rows)
        self._bytes = MappedArray(folder / "bytes", self._total(rows))
        self.rows = rows

    def _total(self, rows: int) -> int:
        return int(self._ends.view[rows - 1]) if rows else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self._shape)

    @property
    def num_bytes(self) -> int:
        """Of all JPEG files together."""
        return len(self._bytes)

    def __len__(self) -> int:
        return self.rows

    def grow(self, rows: int) -> None:
        self._ends.grow(rows)
        self._bytes.grow(self._total(rows))
        self.rows = rows

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N] -> uint8 [N,H,W,3] RGB. InputError names a frame that cannot be decoded."""
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.folder.name}, which has {self.rows}")
        ends, starts = self._ends.view[rows], np.where(rows > 0, self._ends.view[rows - 1], 0)
        out, data = np.empty((len(rows), *self._shape), np.uint8), self._bytes.view

        def decode(positions: np.ndarray) -> None:
            import cv2

            for position in positions:
                frame = cv2.imdecode(data[starts[position] : ends[position]], cv2.IMREAD_COLOR_RGB)
                if frame is None or frame.shape != self._shape:
                    raise InputError(f"{self.folder}: the frame of row {rows[position]} is damaged; convert the dataset again")
                out[position] = frame

        everything = np.arange(len(rows))
        if len(rows) < _THREADED:
            decode(everything)
        else:
            list(_threads().map(decode, np.array_split(everything, os.cpu_count() or 1)))
        return out

    def verify(self) -> None:
        self._ends.verify()
        self._bytes.verify()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="jpeg")


def _total(folder: Path, rows: int) -> int:
    return int(MappedArray(folder / "ends", rows).view[-1]) if rows else 0


def frame_shape(folder: Path) -> tuple[int, ...]:
    """[H,W,3] of the frames in a folder of JPEG frames; InputError when it is damaged."""
    try:
        return tuple(int(size) for size in json.loads((folder / ".zattrs").read_text())["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/.zattrs: damaged ({error!r}); convert the dataset again") from None
