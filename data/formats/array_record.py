"""ArrayRecord files (what TFDS writes with file_format="array_record"), read by the `array_record` package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError


def read_array_records(path: Path, indices: range) -> Iterator[tuple[int, bytes | InputError]]:
    """Yield (index, data) of the records of a file that are in `indices`; unreadable ones are InputErrors, as in read_records."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise InputError(f"{path}: reading ArrayRecord files needs a package: pip install array-record") from None
    try:
        # No read-ahead: ranges are read by several processes, each for itself.
        reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0,max_parallelism:0")
    except (RuntimeError, ValueError) as error:
        yield indices.start, InputError(f"{path}: not a readable ArrayRecord file ({_line(error)}); copy the file again")
        return
    try:
        for index in range(indices.start, min(indices.stop, reader.num_records())):
            try:
                (data,) = reader.read([index])
            except (RuntimeError, ValueError, IndexError) as error:
                yield index, InputError(f"{path}: record {index} cannot be read ({_line(error)}); copy the file again")
            else:
                yield index, data
    finally:
        reader.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
