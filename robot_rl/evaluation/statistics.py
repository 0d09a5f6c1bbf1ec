"""Statistics of success rates: one proportion, two paired proportions, and means over tasks. Pure functions of counts.

Episodes of two arms are paired by their environment seed, so a comparison is a 2x2 table of pairs: both succeed, only the first,
only the second, neither. Nothing here knows about policies or environments.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
Interval = tuple[float, float]


class PairedCounts(NamedTuple):
    """How the n pairs of two binary arms fell out; `first` is the arm whose gain is asked for (steered), `second` the base."""

    both: int
    first_only: int
    second_only: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
        """Count pairs i = 0..n-1 of two equally long sequences of outcomes; ValueError when they are not."""
        if len(first) != len(second) or not len(first):
            raise ValueError(f"paired outcomes need two equally long, non-empty sequences, not {len(first)} and {len(second)}")
        x, y = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
        return cls(int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum()))

    @property
    def pairs(self) -> int:
        return sum(self)

    @property
    def rates(self) -> tuple[float, float]:
        """Success rates of the first and of the second arm."""
        return (self.both + self.first_only) / self.pairs, (self.both + self.second_only) / self.pairs

    @property
    def difference(self) -> float:
        """Rate of the first arm minus rate of the second; exact zero when equal."""
        return (self.first_only - self.second_only) / self.pairs


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion, without continuity correction.

    Wilson (1927), J. Am. Stat. Assoc. 22:209-212; method 3 of Newcombe (1998), Stat. Med. 17:857-872. ValueError unless
    0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    centre = successes + z * z / 2
    half = z * math.sqrt(successes * (1 - rate) + z * z / 4)
    # At 0 and at n successes one end equals the rate exactly; rounding must not push it past.
    return min(max(0.0, (centre - half) / (trials + z * z)), rate), max(min(1.0, (centre + half) / (trials + z * z)), rate)


def paired_difference_interval(counts: PairedCounts, confidence: float = CONFIDENCE) -> Interval:
    """Interval of `counts.difference`: two Wilson intervals, squared and added with the pairs' correlation phi.

    Method 10 of Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Stat. Med. 17:2635-2650: hybrid score with a phi shrunk by n/2 when it is positive, 0 when a margin is empty.
    """
    both, first_only, second_only, neither = counts
    n = counts.pairs
    p1, p2 = counts.rates
    l1, u1 = wilson_interval(both + first_only, n, confidence)
    l2, u2 = wilson_interval(both + second_only, n, confidence)

    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    covariance: float = both * neither - first_only * second_only
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def hypotenuse(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = counts.difference
    return max(-1.0, difference - hypotenuse(p1 - l1, u2 - p2)), min(1.0, difference + hypotenuse(u1 - p1, p2 - l2))


def mcnemar_p(counts: PairedCounts) -> float:
    """Exact two-sided McNemar p: the discordant pairs are Binomial(m, 1/2) under "no difference"; 1.0 when there are none.

    McNemar (1947), Psychometrika 12:153-157, in its conditional exact form. Integers throughout, one rounding at the end.
    """
    discordant = counts.first_only + counts.second_only
    smaller = min(counts.first_only, counts.second_only)
    term, tail = 1, 1
    for k in range(smaller):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**discordant)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, so that with all hypotheses true one falls below a level that often only.

    Holm (1979), Scand. J. Stat. 6:65-70, step-down: the i-th smallest of m times m - i + 1, monotone, at most 1.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Gains:
    """What the first arm gains over the second in the mean over cells, with percentile bootstrap intervals."""

    difference: float
    difference_interval: Interval
    relative_gain: float
    relative_gain_interval: Interval


Pairs = tuple[Sequence[bool], Sequence[bool]]
"""Outcomes of two arms in the episodes of one cell, in the order of their seeds."""


def mean_gains(
    cells: Sequence[Pairs],
    seed: int,
    strata: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Gains:
    """Mean over cells of the difference p1 - p2 and of the relative gain (p1 - p2) / p2.

    The bootstrap resamples episodes within each stratum (Efron and Tibshirani 1993, ch. 8). strata: one for each cell; cells of the
    same one, several policies in one task, ran from the same initial states, so the same resampled seeds count in all of them. By
    default each cell is its own: tasks are what was asked for, not a sample of tasks. A p2 of zero makes the relative gain infinite;
    it is counted as one success there, in the denominator only, which understates the gain.
    """
    if not cells:
        raise ValueError("a mean over cells needs a cell")
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(range(len(cells)) if strata is None else strata):
        members.setdefault(stratum, []).append(index)
    means = np.zeros((2, 1 + resamples))
    for number, indices in enumerate(members.values()):
        counts = _resampled(seed, number, max(len(cells[index][0]) for index in indices), resamples)
        for index in indices:
            outcomes = np.array(cells[index], dtype=np.float32).T  # [episodes, 2]
            drawn = counts[:, : len(outcomes)]  # a cell that was decided early has the first of the seeds
            pairs = np.maximum(drawn.sum(axis=1), 1)
            first, second = (drawn @ outcomes).T
            means += np.stack([first - second, (first - second) / np.maximum(second, 1) * pairs]) / pairs / len(cells)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    (difference_low, difference_high), (gain_low, gain_high) = np.quantile(means[:, 1:], tails, axis=1).T.tolist()
    return Gains(float(means[0, 0]), (difference_low, difference_high), float(means[1, 0]), (gain_low, gain_high))


@lru_cache(maxsize=64)
def _resampled(seed: int, stratum: int, episodes: int, resamples: int) -> np.ndarray:
    """How often each episode is drawn, float32 [1+resamples, episodes]; row 0 is what was observed: one formula serves both."""
    drawn = np.random.default_rng([seed, stratum]).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    return np.vstack([np.ones(episodes), drawn]).astype(np.float32)
