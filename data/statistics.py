"""Per-dimension statistics of a dataset, as JSON; what normalisers are made from. Exact, in flat memory, whatever the values are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data.errors import InputError

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
BLOCK = 2**16
_DIGITS = (11, 11, 10)
"""Bits of a float32, from the highest: what a quantile is narrowed down by, a pass each."""
Blocks = Callable[[], Iterator[np.ndarray]]


def compute_statistics(values: np.ndarray, leave_out: np.ndarray | None = None) -> dict[str, list[float]]:
    """mean, std, min, max, q01 and q99 of [N,D] over N, as JSON-ready lists of D. Quantiles are those of the values as float32.

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
    mean, squares = total / count, np.zeros(columns)
    for block in blocks():
        squares += np.square(block - mean).sum(0)
    quantiles = _quantiles(blocks, columns, np.array([0.01, 0.99]) * (count - 1))
    result = dict(zip(STATISTICS, (mean, np.sqrt(squares / count), low, high, *quantiles), strict=True))
    return {name: np.asarray(result[name], np.float64).tolist() for name in STATISTICS}


def _quantiles(blocks: Blocks, columns: int, positions: np.ndarray) -> np.ndarray:
    """The values [P,D] at fractional positions [P] of each sorted column, linearly between their neighbours, as numpy's quantile."""
    below = np.floor(positions).astype(int)
    lower, upper = np.split(_select(blocks, columns, [*below, *np.ceil(positions).astype(int)]), 2)
    return lower + (upper - lower) * (positions - below)[:, None]


def _select(blocks: Blocks, columns: int, ranks: Sequence[int]) -> np.ndarray:
    """The values [R,D], float64, at `ranks` of each sorted column, by radix selection.

    Each pass counts the next digit of those values that share the digits found so far, so it is exact and its memory depends neither on
    how many values there are nor on how they are spread, where a sketch would have an error, and bins of equal width one outlier to
    stretch them.
    """
    found, left, shift = np.zeros((len(ranks), columns), np.uint32), np.tile(np.array(ranks)[:, None], columns), sum(_DIGITS)
    for bits in _DIGITS:
        shift -= bits
        counts = np.zeros((len(ranks), columns, 2**bits), np.int64)
        for block in blocks():
            prefixes = _ordered(block) >> shift
            for rank, column in np.ndindex(found.shape):
                prefix = prefixes[:, column]
                digits = prefix[prefix >> bits == found[rank, column]] & (2**bits - 1)
                counts[rank, column] += np.bincount(digits, minlength=2**bits)
        ends = counts.cumsum(2)
        digit = (ends > left[..., None]).argmax(2)
        left -= np.take_along_axis(ends - counts, digit[..., None], 2)[..., 0]
        found = found << bits | digit.astype(np.uint32)
    bits_of = np.where(found >> 31, found ^ np.uint32(1 << 31), ~found)
    return bits_of.astype(np.uint32).view(np.float32).astype(np.float64)


def _ordered(values: np.ndarray) -> np.ndarray:
    """float -> uint32 of the same order: a float32's bits, the negative ones upside down. Zero has one sign."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
