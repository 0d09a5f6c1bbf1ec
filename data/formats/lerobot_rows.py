"""Rows of one episode in the parquet files of a LeRobotDataset: which they are, and a column of them as numpy.

Only the row groups that hold the episode are read, a column when it is asked for; the last row groups read from are kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Feature

EPISODE = "episode_index"


@dataclass(frozen=True)
class Rows:
    """Where an episode's rows are: `count` rows from `start` on, within these row groups of a file."""

    path: Path
    groups: tuple[int, ...]
    start: int
    count: int


class RowReader:
    """One parquet file at a time, and of it the columns of the row groups that were last read from."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._groups: tuple[int, ...] = ()
        self._columns: dict[str, Any] = {}

    def find(self, path: Path, number: int, length: int) -> Rows:
        """The rows of an episode. InputError when the file is damaged, or does not have `length` rows of it, one after the other."""
        groups = tuple(group for group, (low, high) in enumerate(self._ranges(path)) if low <= number <= high)
        if not groups:
            raise InputError(f"{path}: has no rows of episode {number}, meta/episodes says {length}; copy the dataset again")
        index = self._column(path, groups, EPISODE)
        rows = np.flatnonzero(np.asarray(index) == number)
        if len(rows) != length or rows[-1] - rows[0] != length - 1:
            raise InputError(
                f"{path}: has {len(rows)} rows of episode {number}, meta/episodes says {length} together; copy the dataset again"
            )
        return Rows(path, groups, int(rows[0]), length)

    def column(self, rows: Rows, name: str) -> Any:
        """A pyarrow array of the episode's rows. InputError when there is no such column, or it cannot be read."""
        return self._column(rows.path, rows.groups, name).slice(rows.start, rows.count)

    def _open(self, path: Path) -> Any:
        import pyarrow
        import pyarrow.parquet

        if path != self._path:
            self._path, self._groups, self._columns = None, (), {}
            try:
                self._file = pyarrow.parquet.ParquetFile(path)
            except FileNotFoundError:
                raise InputError(f"{path}: missing; copy the dataset again") from None
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path}: not a readable parquet file ({first_line(error)}); copy the file again") from None
            self._path = path
        return self._file

    def _ranges(self, path: Path) -> list[tuple[float, float]]:
        """Lowest and highest episode of each row group, as far as the file says."""
        metadata = self._open(path).metadata
        ranges = []
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(column) for column in range(metadata.num_columns))
            known = next((column.statistics for column in columns if column.path_in_schema == EPISODE), None)
            ranges.append((known.min, known.max) if known is not None and known.has_min_max else (-np.inf, np.inf))
        return ranges

    def _column(self, path: Path, groups: tuple[int, ...], name: str) -> Any:
        import pyarrow

        file = self._open(path)
        if groups != self._groups:
            self._groups, self._columns = groups, {}
        if name not in self._columns:
            if name not in file.schema_arrow.names:
                raise InputError(f"{path}: no column {name!r}, it has {', '.join(file.schema_arrow.names)}")
            try:
                table = file.read_row_groups(groups, columns=[name], use_threads=False)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path}: column {name!r} is damaged ({first_line(error)}); copy the file again") from None
            # By position: a name may be that of a nested field to pyarrow.
            self._columns[name] = table.column(0)
        return self._columns[name]


def to_numpy(feature: Feature, column: Any) -> np.ndarray:
    """A numeric column as [N, *shape] of the feature's dtype. InputError says how it differs from what info.json declares."""
    import pyarrow.compute

    array = _plain(column)
    count = len(array)
    for axis, size in enumerate(feature.shape):
        _no_nulls(array)
        if not _is_list(array.type):
            if feature.shape == (1,):
                break  # One number a step is stored as itself.
            raise InputError(f"holds {column.type}, info.json says {feature.dtype}{list(feature.shape)}")
        lengths = np.unique(np.asarray(pyarrow.compute.list_value_length(array)))
        if len(lengths) != 1 or lengths[0] != size:
            found = "/".join(map(str, lengths[:3]))
            raise InputError(f"has {found} values on axis {axis}, info.json says {list(feature.shape)}")
        array = array.flatten()
    _no_nulls(array)
    values = array.to_numpy(zero_copy_only=False)
    if not np.can_cast(values.dtype, feature.dtype, "same_kind"):
        raise InputError(f"holds {column.type}, info.json says {feature.dtype}{list(feature.shape)}")
    return values.astype(feature.dtype, copy=False).reshape(count, *feature.shape)


def to_texts(column: Any) -> list[str]:
    """A text column. InputError when it is none, or a text is missing."""
    array = _plain(column)
    _no_nulls(array)
    texts = array.to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"holds {column.type}, info.json says string")
    return texts


def to_files(column: Any, root: Path) -> list[bytes]:
    """Encoded images of an image column, which holds their bytes, or paths below the dataset's folder."""
    found = []
    for step, image in enumerate(column.to_pylist()):
        if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
            raise InputError(f"the image of step {step} is missing (the column holds {column.type})")
        try:
            found.append(image["bytes"] or (root / image["path"]).read_bytes())
        except OSError as error:
            raise InputError(f"the image of step {step} cannot be read ({error.strerror}: {image['path']})") from None
    return found


def first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _plain(column: Any) -> Any:
    import pyarrow as pa

    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _no_nulls(array: Any) -> None:
    if array.null_count:
        raise InputError("has missing values (null)")
