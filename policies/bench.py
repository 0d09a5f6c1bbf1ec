"""What K samples cost: each family as it samples, against the naive ways, K calls of K = 1 or K copies of the observation in one batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from policies.base import Observations, Policy, observation_spec

CANDIDATES = (1, 10, 50, 100)


def bench_sampling(policy: Policy, repeats: int = 5, naive: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each K on one thread, JSON-ready: milliseconds (median), ratio to K = 1, and how many times dearer the naive ways are.

    The variants of K take turns, so that a machine whose speed drifts slows them all alike. The naive ways are timed once.
    """
    torch.set_num_threads(1)
    seen = observation_spec(policy).example()
    policy.sample(seen, 2)
    times: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    for _ in range(repeats):
        for k, spent in times.items():
            spent.append(_seconds(lambda k=k: policy.sample(seen, k)))  # type: ignore[misc]
    one = statistics.median(times[CANDIDATES[0]])
    for k, spent in times.items():
        median = statistics.median(spent)
        row = {"k": k, "milliseconds": 1e3 * median, "ratio": median / one}
        if naive and k > 1:
            calls = _seconds(lambda k=k: [policy.sample(seen, 1) for _ in range(k)])  # type: ignore[misc]
            copies = _seconds(lambda k=k: policy.sample(_copies(seen, k), 1))  # type: ignore[misc]
            row |= {"calls_milliseconds": 1e3 * calls, "copies_milliseconds": 1e3 * copies}
            row |= {"calls_ratio": calls / median, "copies_ratio": copies / median}
        yield row


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _copies(observations: Observations, k: int) -> dict[str, Any]:
    return {key: value * k if key == "instruction" else np.repeat(value, k, axis=0) for key, value in observations.items()}


# What the benchmark measures when it is given no policy: an untrained one of each family, of a size that people run.
EXAMPLES: Mapping[str, Callable[[], Policy]] = {}
