"""Files mapped end to end: one stretch of address space under which several files lie, so that an array over them is one array.

numpy maps one file at a time, and gathering a batch over a thousand of them is a loop in Python. Here the stretch is reserved first and
each file is then mapped into its place.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 16384
"""What chunks are whole multiples of, where they can be: the largest page of usual machines, which a store may be carried between."""
_FIXED, _PROT_NONE, _PROT_READ = 0x10, 0, 1
_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def map_files(files: Sequence[Path], size: int) -> np.ndarray:
    """The first `size` bytes of each file, one behind the other: read-only uint8 [len(files), size], mapped until it is let go of.

    Where `size` is a multiple of the page size, and of a single file, the array is contiguous; else each file begins on a page of its
    own. A file may be shorter, so long as nobody looks there. OSError when a file cannot be mapped.
    """
    if not size or not files:
        return np.empty((len(files), size), np.uint8)
    stride = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    total = len(files) * stride
    start = _map(None, total, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    buffer = (ctypes.c_uint8 * total).from_address(start)
    # numpy keeps the buffer, and the buffer's end is the mapping's.
    weakref.finalize(buffer, _libc().munmap, start, total).atexit = False
    for index, path in enumerate(files):
        file = os.open(path, os.O_RDONLY)
        try:
            _map(start + index * stride, size, _PROT_READ, mmap.MAP_SHARED | _FIXED, file)
        finally:
            os.close(file)
    array = np.frombuffer(memoryview(buffer), np.uint8).reshape(len(files), stride)[:, :size]
    array.flags.writeable = False
    return array


def _map(address: int | None, size: int, protection: int, flags: int, file: int) -> int:
    result = _libc().mmap(address, size, protection, flags, file, 0)
    if result == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (mapping {size} bytes)")
    return int(result)
