"""Faults of single numbers: finite, but none that a robot can have sent. Mostly memory that was never written, or a lost packet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.quality.finding import Finding
from data.quality.survey import Survey

# Above it float32 cannot count by ones: no length, angle, force, encoder or camera clock that is meant to be learned from goes there.
LARGEST = 2.0**24
FAR = 1000.0  # times the largest number of the usual episode, or of 1: what lies between is a spike, not nonsense


def value_faults(found: Survey) -> Iterator[Finding]:
    subnormal: dict[str, str] = {}
    for facts in found.episodes:
        for key, extreme in facts.extremes.items():
            # A simulator's state is no sensor's: what comes to rest in it does so by halves.
            if extreme.subnormal is not None and key != "state":
                subnormal.setdefault(facts.source, f"{key} is all but 0, under 1e-38, at step {extreme.subnormal}")
    yield from Finding.told(
        "error",
        "absurd-value",
        absurd_values(found),
        "memory that was never written, or a lost packet: repair or drop them, one such number ruins every normaliser",
    )
    yield from Finding.told(
        "warning",
        "subnormal-value",
        subnormal,
        "no sensor says that, memory that was never written does: look at what fills this signal",
    )


def absurd_values(found: Survey) -> dict[str, str]:
    """Episode -> the first of its numbers that cannot be meant."""
    sizes: dict[str, list[float]] = {}
    for facts in found.episodes:
        for key, extreme in facts.extremes.items():
            sizes.setdefault(key, []).append(abs(extreme.value))
    limits = {key: min(LARGEST, FAR * max(float(np.median(size)), 1.0)) for key, size in sizes.items()}
    absurd: dict[str, str] = {}
    for facts in found.episodes:
        for key, extreme in facts.extremes.items():
            if abs(extreme.value) > limits[key]:
                absurd.setdefault(facts.source, f"{key}{extreme.index} is {extreme.value:.3g} at step {extreme.step}")
    return absurd
