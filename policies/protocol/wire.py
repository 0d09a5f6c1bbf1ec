"""The two ways that policy servers write arrays: openpi's msgpack maps, and the json_numpy objects of OpenVLA's `deploy.py`.

What arrives is hostile until it is decoded: nothing is unpickled, no dtype that holds pointers is accepted, and an array is only ever a
view of bytes that came with the message, so no declared shape allocates anything.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from data.errors import InputError

# Of one list or map, for which msgpack reserves room as its header declares; and of all of them, as each of a million empty lists takes
# a byte of the message and sixty of memory. The entries of numpy arrays do not count.
_MAX_ENTRIES, _MAX_TOTAL = 1 << 14, 1 << 17
# Booleans, numbers and fixed-length text or bytes; no objects, records or sub-arrays, which dtype strings can spell too.
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU][0-9]{1,6})")
_DTYPE_BY_NAME = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def pack(message: Any) -> bytes:
    """msgpack bytes as openpi writes them; InputError for arrays of objects, records or complex numbers."""
    return msgpack.packb(message, default=_array_to_map)


def unpack(data: bytes) -> Any:
    """What openpi's msgpack bytes say, with read-only arrays. InputError, one line, when they say nothing valid."""
    total = 0

    def counted(entries: Any) -> Any:
        nonlocal total
        total += len(entries)
        if total > _MAX_TOTAL:
            raise InputError(f"a message of more than {_MAX_TOTAL} entries; send many numbers as numpy arrays")
        return entries

    try:
        return msgpack.unpackb(
            data,
            object_hook=lambda entries: _array_from_map(counted(entries)),
            list_hook=counted,
            ext_hook=_refuse_extension,
            max_array_len=_MAX_ENTRIES,
            max_map_len=_MAX_ENTRIES,
        )
    except InputError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InputError(
            f"not a message of the policy protocol: {_line(error)}; send msgpack with numpy arrays as maps"
        ) from None


def pack_json(message: Any) -> str:
    """JSON with arrays as json_numpy writes them: `{"__numpy__": base64, "dtype", "shape"}`."""
    return json.dumps(message, default=_array_to_object)


def unpack_json(text: str | bytes) -> Any:
    """What such JSON says; InputError, one line, when it is not valid."""
    try:
        return json.loads(text, object_hook=_array_from_object)
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"not JSON with numpy arrays: {_line(error)}") from None


def _array_to_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        _check_packable(value.dtype)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_packable(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise InputError(f"a {type(value).__name__} cannot be sent to a policy server; send numpy arrays, numbers and text")


def _array_to_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise InputError(f"a {type(value).__name__} cannot be sent to a policy server; send numpy arrays, numbers and text")
    _check_packable(value.dtype)
    data = base64.b64encode(value.tobytes()).decode("ascii")
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def _array_from_map(entries: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entries:
        return _view(entries.get(b"data"), _dtype(entries.get(b"dtype")), entries.get(b"shape"))
    if b"__npgeneric__" in entries:
        return _dtype(entries.get(b"dtype")).type(entries.get(b"data"))
    return entries


def _array_from_object(entries: dict[str, Any]) -> Any:
    if "__numpy__" not in entries:
        return entries
    text = entries["__numpy__"]
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InputError("an array's __numpy__ is not base64") from None
    array = _view(data, _dtype(entries.get("dtype")), entries.get("shape"))
    return array if array.ndim else array[()]


def _view(data: Any, dtype: np.dtype[Any], shape: Any) -> np.ndarray[Any, Any]:
    """An array over these bytes, which must be exactly as many as dtype and shape need."""
    if not isinstance(data, bytes):
        raise InputError("an array comes without its bytes")
    if type(shape) is not list or len(shape) > 32 or not {*map(type, shape)} <= {int} or min(shape, default=0) < 0:
        raise InputError("an array's shape is not a list of sizes")
    if dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"an array of {dtype} and shape {_short(shape)} does not have {len(data)} bytes")
    try:
        return np.ndarray(shape, dtype, data)
    except ValueError as error:
        raise InputError(f"an array of shape {_short(shape)}: {_line(error)}") from None


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or (dtype := _known_dtype(name)) is None:
        raise InputError(f"arrays of dtype {_short(name)} are not accepted; send booleans, numbers or text")
    return dtype


@lru_cache(maxsize=64)
def _known_dtype(name: str) -> np.dtype[Any] | None:
    return np.dtype(name) if _DTYPE.fullmatch(name) or _DTYPE_BY_NAME.fullmatch(name) else None


def _check_packable(dtype: np.dtype[Any]) -> None:
    if not _DTYPE.fullmatch(dtype.str):
        raise InputError(f"arrays of dtype {dtype} cannot be sent; send booleans, numbers or text")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise InputError(f"a msgpack extension of type {code}, which the policy protocol does not have")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
