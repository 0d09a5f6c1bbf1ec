"""ArrayRecord files (what TFDS writes with file_format="array_record"), read by the `array_record` package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.formats.tfrecord import RestLostError

_ERRORS = (RuntimeError, ValueError, IndexError, OSError)


def read_array_records(path: Path, indices: range) -> Iterator[tuple[int, bytes | InputError | None]]:
    """Yield (index, data) of the records of a file that are in `indices`, unreadable ones and its end as read_records does.

    A file without its index of records, which is at its end, has lost all of them.
    """
    reader, index = None, -1
    try:
        reader = _open(path)
        count = reader.num_records()
        for index in range(indices.start, min(indices.stop, count)):
            try:
                (data,) = reader.read([index])
            except _ERRORS as error:
                yield (
                    index,
                    InputError(
                        f"{path}: record {index} cannot be read ({_line(error)}); copy the file again, or skip it with --skip-bad"
                    ),
                )
                # A reader that failed once fails for ever.
                _close(reader)
                reader = _open(path)
            else:
                yield index, data
        if count < indices.stop:
            yield count, None
    except _ERRORS as error:
        yield index + 1, RestLostError(f"{path}: no readable ArrayRecord file ({_line(error)})")
    finally:
        _close(reader)


def _open(path: Path) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise InputError(f"{path}: reading ArrayRecord files needs a package: pip install array-record") from None
    # No read-ahead: ranges are read by several processes, each for itself.
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():
        # Only closing it says why.
        reader.close()
        raise ValueError("it cannot be opened")
    return reader


def _close(reader: Any) -> None:
    with suppress(*_ERRORS, AttributeError):
        reader.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
