"""Rows of a zarr array, whose Blosc chunks are held to their headers first.

numcodecs does not look whether a chunk is as long as its header says: of one that was cut it makes whatever lies in memory behind it,
without an error. Every other compressor of numcodecs tells by itself.
"""

from __future__ import annotations

import struct
from itertools import product
from typing import Any

import numpy as np

_HEADER = struct.Struct("<12xI")
"""Version, flags, the sizes of the array and of its blocks; then that of the chunk, with this header."""


def read_rows(array: Any, start: int, stop: int) -> np.ndarray:
    """array[start:stop], decoded. ValueError names a chunk that was cut; what a compressor itself finds wrong it raises."""
    compressors = array.compressors
    # A shard ends in an index with a checksum, which a cut one has lost.
    if compressors and "blosc" in repr(compressors[-1]).lower() and not array.shards:
        _check_chunks(array, start, min(stop, array.shape[0]))
    return np.asarray(array[start:stop])


def _check_chunks(array: Any, start: int, stop: int) -> None:
    from zarr.core.sync import sync

    rows, *others = array.chunks
    grid = [range(-(-length // size)) for length, size in zip(array.shape[1:], others, strict=True)]
    for place in product(range(start // rows, -(-stop // rows)), *grid):
        key = f"{array.path}/{array.metadata.encode_chunk_key(place)}"
        found, expected = sync(_sizes(array.store, key))
        if found != expected:
            raise ValueError(f"chunk {key} has {found} bytes, {expected} were written")


async def _sizes(store: Any, key: str) -> tuple[int, int]:
    """How many bytes a chunk has, and how many its header says; none where it is not there."""
    from zarr.abc.store import RangeByteRequest
    from zarr.core.buffer import default_buffer_prototype

    try:
        size = await store.getsize(key)
    except FileNotFoundError:
        return 0, 0  # reads as the fill value
    header = await store.get(key, default_buffer_prototype(), RangeByteRequest(0, _HEADER.size))
    return size, _HEADER.unpack(header.to_bytes())[0] if len(header) == _HEADER.size else _HEADER.size
