"""TFRecord files of tf.train.Example, read and written without TensorFlow.

A record is `length u64 | masked crc32c of those 8 bytes u32 | data | masked crc32c of data u32`, little-endian. The Example message is
declared here, in a descriptor pool of its own: `tfrecord.example_pb2` registers the same names in the global pool, after which
TensorFlow cannot be imported into the process (and the other way round).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.errors import InputError


def _masked_crc(data: bytes) -> int:
    import crc32c

    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(file: BinaryIO, data: bytes) -> int:
    """Append one framed record; returns the bytes written."""
    header = struct.pack("<Q", len(data))
    framed = header + struct.pack("<I", _masked_crc(header)) + data + struct.pack("<I", _masked_crc(data))
    return file.write(framed)


class RestLostError(InputError):
    """A damaged record after which no other can be found in its file; the one who knows how many are lost says what to do."""


def read_records(path: Path, indices: range) -> Iterator[tuple[int, bytes | InputError | None]]:
    """Yield (index, data) of the records of a file that are in `indices`, one in memory at a time.

    A record with a wrong checksum is an InputError naming file and record. One that is cut off or whose length is damaged is a
    RestLostError, even before `indices`, and the last: nothing after it can be found. Where the file ends before they do, the last is
    (number of its records, None). What lies before `indices` is skipped by its length alone.
    """
    index = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for index in range(indices.stop):
                header = file.read(12)
                if not header:
                    yield index, None
                    return
                damage = _damage(header, size - file.tell())
                if damage:
                    yield index, RestLostError(f"{path}: record {index} {damage}")
                    return
                (length,) = struct.unpack("<Q", header[:8])
                if index < indices.start:
                    file.seek(length + 4, 1)
                    continue
                data = file.read(length)
                if struct.unpack("<I", file.read(4))[0] != _masked_crc(data):
                    message = "is corrupt (its checksum is wrong); copy the file again, or skip it with --skip-bad"
                    yield index, InputError(f"{path}: record {index} {message}")
                else:
                    yield index, data
    except OSError as error:
        yield index, RestLostError(f"{path}: record {index} cannot be read ({error.strerror})")


def _damage(header: bytes, rest: int) -> str:
    """What makes the rest of a file unreadable, or nothing; rest: bytes of the file after the header."""
    if len(header) == 12:
        length, crc = struct.unpack("<QI", header)
        if crc != _masked_crc(header[:8]):
            return "has a damaged length"
        if length + 4 <= rest:
            return ""
    return "is truncated: the file ends inside it"


@cache
def _example_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="robot_rl_example.proto", package="tensorflow", syntax="proto3")

    def add(owner: Any, name: str, number: int, type_: Any, label: Any = field.LABEL_OPTIONAL, type_name: str = "") -> Any:
        return owner.field.add(name=name, number=number, type=type_, label=label, type_name=type_name or None)

    lists = {"bytes": field.TYPE_BYTES, "float": field.TYPE_FLOAT, "int64": field.TYPE_INT64}
    for name, type_ in lists.items():
        add(file.message_type.add(name=f"{name.title()}List"), "value", 1, type_, field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        add(feature, f"{name}_list", number, field.TYPE_MESSAGE, type_name=f".tensorflow.{name.title()}List").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, field.LABEL_REPEATED, ".tensorflow.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    add(example, "features", 1, field.TYPE_MESSAGE, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def parse_example(data: bytes, source: str) -> dict[str, Any]:
    """Feature name -> sequence of bytes, float or int; `source` names the record when it is not an Example (InputError)."""
    from google.protobuf.message import DecodeError

    try:
        features = _example_class().FromString(data).features.feature
    except DecodeError as error:
        raise InputError(f"{source}: not a tf.train.Example ({error}); is this an RLDS dataset?") from None
    return {
        key: getattr(value, value.WhichOneof("kind")).value if value.WhichOneof("kind") else ()
        for key, value in features.items()
    }


def build_example(features: dict[str, np.ndarray | list[bytes]]) -> bytes:
    """Serialise: lists of bytes as they are, floating arrays as floats, integer and boolean arrays as int64 (flattened)."""
    example = _example_class()()
    for key, value in features.items():
        feature = example.features.feature[key]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif np.issubdtype(value.dtype, np.floating):
            feature.float_list.value.extend(value.ravel().tolist())
        else:
            feature.int64_list.value.extend(value.ravel().astype(np.int64).tolist())
    # Sorted keys, as TFDS writes them: the same episodes give the same bytes.
    return bytes(example.SerializeToString(deterministic=True))
