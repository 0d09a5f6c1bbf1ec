"""Per-dimension statistics of a dataset, as JSON; what normalisers are made from. Exact, and in flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from data.errors import InputError

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
BLOCK = 2**16
_BINS = 2**14
Blocks = Callable[[], Iterator[np.ndarray]]


def compute_statistics(values: np.ndarray, leave_out: np.ndarray | None = None) -> dict[str, list[float]]:
    """mean, std, min, max, q01 and q99 of [N,D] over N, as JSON-ready lists of D.

    values: may be mapped from disk; it is read a few times, block by block. leave_out: sorted rows that do not count. InputError when
    no row is left.
    """
    count = len(values) - (0 if leave_out is None else len(leave_out)) if values.ndim == 2 else 0
    if not count:
        raise InputError(f"statistics need a non-empty [N,D] array, got shape {values.shape}")

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(values), BLOCK):
            block = np.asarray(values[start : start + BLOCK], np.float64)
            if leave_out is not None:
                first, last = np.searchsorted(leave_out, (start, start + len(block)))
                block = np.delete(block, leave_out[first:last] - start, axis=0)
            yield block

    columns = values.shape[1]
    low, high, total = np.full(columns, np.inf), np.full(columns, -np.inf), np.zeros(columns)
    for block in blocks():
        if len(block):
            low, high, total = np.minimum(low, block.min(0)), np.maximum(high, block.max(0)), total + block.sum(0)
    mean, squares = total / count, np.zeros(values.shape[1])
    histogram = np.zeros((values.shape[1], _BINS), np.int64)
    for block in blocks():
        squares += np.square(block - mean).sum(0)
        for column, bins in enumerate(_bin(block, low, high).T):
            histogram[column] += np.bincount(bins, minlength=_BINS)
    quantiles = [_quantile(blocks, histogram, low, high, q * (count - 1)) for q in (0.01, 0.99)]
    result = dict(zip(STATISTICS, (mean, np.sqrt(squares / count), low, high, *quantiles), strict=True))
    return {name: np.asarray(result[name], np.float64).tolist() for name in STATISTICS}


def _bin(block: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    width = np.where(high > low, high - low, 1.0)
    return np.minimum(((block - low) / width * _BINS).astype(np.int64), _BINS - 1)


def _quantile(blocks: Blocks, histogram: np.ndarray, low: np.ndarray, high: np.ndarray, position: float) -> list[float]:
    """The value at a fractional position of each sorted column, linearly between its neighbours, as numpy's quantile.

    The histogram says in which bins the neighbours lie; only the distinct values in those bins are kept.
    """
    ranks = (int(np.floor(position)), int(np.ceil(position)))
    ends = histogram.cumsum(1)
    wanted = [(ends > rank).argmax(1) for rank in ranks]
    found = [_Counts() for _ in low]
    for block in blocks():
        bins = _bin(block, low, high)
        for column, counted in enumerate(found):
            counted.add(block[(bins[:, column] == wanted[0][column]) | (bins[:, column] == wanted[1][column]), column])
    result = []
    for column, counted in enumerate(found):
        values, counts = counted.merged()
        # Ranks within the bins: those before the first bin are not there, and what lies between the two bins is empty.
        before = ends[column, wanted[0][column]] - histogram[column, wanted[0][column]]
        lower, upper = (values[np.searchsorted(counts.cumsum(), rank - before, side="right")] for rank in ranks)
        result.append(float(lower + (upper - lower) * (position - ranks[0])))
    return result


class _Counts:
    """How often each distinct value came; merged when as many are pending as are known, so that the work stays in proportion."""

    def __init__(self) -> None:
        self._values, self._counts = np.empty(0), np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray) -> None:
        self._pending.append(values)
        self._size += len(values)
        if self._size > max(BLOCK, len(self._values)):
            self.merged()

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct values in order, and their counts."""
        new = np.concatenate([np.empty(0), *self._pending])
        values, where = np.unique(np.concatenate([self._values, new]), return_inverse=True)
        weights = np.concatenate([self._counts, np.ones(len(new), np.int64)])
        self._values, self._counts = values, np.bincount(where, weights, len(values)).astype(np.int64)
        self._pending, self._size = [], 0
        return self._values, self._counts
