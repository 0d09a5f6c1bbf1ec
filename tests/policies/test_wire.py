"""The wire: the bytes of openpi and of json_numpy, there and back, and whatever else a stranger may send."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.errors import InputError
from policies.protocol.wire import pack, pack_json, unpack, unpack_json

# Of `{"actions": float32 [[0, 1]]}`, as openpi's own client writes it.
GOLDEN = bytes.fromhex(
    "81a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c408000000000000803fc4056474797065a33c6634c4057368617065920102"
)

DTYPES = st.sampled_from(["|b1", "|u1", "|i1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"])
ARRAYS = hnp.arrays(DTYPES.map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | ARRAYS
MESSAGES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_golden_bytes():
    message = {"actions": np.array([[0, 1]], np.float32)}
    assert pack(message) == GOLDEN
    assert same(unpack(GOLDEN), message)


@given(MESSAGES)
@settings(max_examples=150, deadline=None)
def test_there_and_back(message):
    assert same(unpack(pack(message)), message)


@given(MESSAGES)
@settings(max_examples=100, deadline=None)
def test_the_same_bytes_as_openpis_client(message):
    client = pytest.importorskip("openpi_client.msgpack_numpy")
    assert pack(message) == client.packb(message)
    assert same(client.unpackb(pack(message)), message)


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-3), np.bool_(True), np.uint8(255), np.float16(0.25)])
def test_scalars_keep_their_type(value):
    back = unpack(pack({"x": value}))["x"]
    assert type(back) is type(value)
    assert back == value


def test_layout_does_not_matter():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(unpack(pack({"x": array}))["x"], array)


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.zeros(2, "i4,f4"), np.zeros(2, complex), np.array(["2020"], "M8[s]"), object(), {1, 2}],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_what_cannot_be_sent_is_refused(value):
    for codec in (pack, pack_json):
        with pytest.raises(InputError, match="cannot be sent"):
            codec({"x": value})


def array_map(data: object = b"\0" * 8, dtype: object = "<f4", shape: object = (2,)) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


HOSTILE = {
    "objects": array_map(dtype="|O"),
    "a pickle for data": array_map(data=pickle.dumps([1]), dtype="O"),
    "a record": array_map(dtype="i4,i4", shape=[1]),
    "void": array_map(dtype="|V8", shape=[1]),
    "a sub-array": array_map(dtype="(1000000,)f4", shape=[1]),
    "a field list": array_map(dtype="f4, (1000,1000)f4"),
    "complex": array_map(dtype="<c8", shape=[1]),
    "no dtype": array_map(dtype=None),
    "dtype as number": array_map(dtype=7),
    "huge text": array_map(dtype="<U999999999"),
    "nothing wide": array_map(data=b"", dtype="<U0", shape=[10**12]),
    "too few bytes": array_map(shape=[10**9]),
    "too many bytes": array_map(shape=[1]),
    "overflowing": array_map(shape=[2**62, 2**62]),
    "wrapping to zero": array_map(data=b"", shape=[2**32, 2**32]),
    "negative": array_map(shape=[-1, -2]),
    "boolean size": array_map(shape=[True, 2]),
    "text for a shape": array_map(shape="2"),
    "fractions": array_map(shape=[2.0]),
    "many axes": array_map(shape=[1] * 100 + [2]),
    "empty but enormous": array_map(data=b"", shape=[0, 2**62, 2**62]),
    "text for data": array_map(data="12345678"),
    "nothing for data": array_map(data=None),
    "a map without more": {b"__ndarray__": True},
    "a scalar without more": {b"__npgeneric__": True},
    "a scalar object": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"},
    "a scalar out of range": {b"__npgeneric__": True, b"data": 1000, b"dtype": "|u1"},
    "a scalar that is a map": {b"__npgeneric__": True, b"data": {"a": 1}, b"dtype": "<f4"},
    "an extension": msgpack.ExtType(5, b"x"),
    "integer keys": {1: 2},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_arrays_are_one_line(what):
    with pytest.raises(InputError) as caught:
        unpack(msgpack.packb({"x": HOSTILE[what]}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        GOLDEN[:-1],
        GOLDEN + b"\0",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" * 1000,
        b"\xdd\x00\xff\xff\xff" * 1000 + b"\0" * 20_000_000,
        b"\xdc\x40\x00" * 2 + b"\x90" * 20_000_000,
        b"\xdc\x40\x00" + (b"\xdc\x40\x00" + b"\x80" * 16384) * 1000,
        b"\xc6\xff\xff\xff\xff" + b"x",
        b"\xa2\xff\xfe",
        b"\x81\xa1x\xd7\xff" + b"\xff" * 8,
        pickle.dumps({"x": 1}),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(15),
)
def test_hostile_bytes_are_one_line_and_cost_little(data):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 200e6


def refused_or_read(data: bytes) -> None:
    refusals = []
    try:
        unpack(data)
    except InputError as error:
        refusals.append(str(error))
    assert not any("\n" in line for line in refusals)


@given(st.binary(max_size=200))
@example(b"\x81\xc4\x0b__ndarray__\xc3")
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_read(data):
    refused_or_read(data)


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_refused_or_read(place, byte):
    changed = bytearray(GOLDEN)
    changed[place] = byte
    refused_or_read(bytes(changed))


@given(ARRAYS)
@settings(max_examples=60, deadline=None)
def test_json_there_and_back(array):
    back = unpack_json(pack_json({"x": array, "y": ["text", 1.5, None]}))
    assert back["y"] == ["text", 1.5, None]
    # json_numpy gives a scalar, which has no byte order, for an array without axes.
    assert same(back["x"], array) or (array.ndim == 0 and np.array_equal(back["x"], array, equal_nan=array.dtype.kind == "f"))


def test_json_is_json_numpys():
    text = pack_json({"image": np.array([[0, 1]], np.float32)})
    assert json.loads(text) == {"image": {"__numpy__": "AAAAAAAAgD8=", "dtype": "<f4", "shape": [1, 2]}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}',
        '{"__numpy__": "AAAA", "dtype": [["a", "<f4"]], "shape": [1]}',
        '{"__numpy__": "AAAA", "dtype": "<f4", "shape": [100000000]}',
        '{"__numpy__": "%%%", "dtype": "<f4", "shape": [1]}',
        '{"__numpy__": 5, "dtype": "<f4", "shape": [1]}',
        '{"__numpy__": "AAAAAA=="}',
        b"\xff\xfe\xfd",
    ],
    ids=range(10),
)
def test_hostile_json_is_one_line(text):
    with pytest.raises(InputError) as caught:
        unpack_json(text)
    assert "\n" not in str(caught.value)
