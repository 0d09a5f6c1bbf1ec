"""What K samples cost: each family as it samples, against the naive ways, K calls of one or K copies of the observation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from policies.base import Observations, Policy, observation_spec

CANDIDATES = (1, 10, 50, 100)


def bench_sampling(policy: Policy, repeats: int = 5, naive: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each K on one thread, JSON-ready: milliseconds (median), ratio to K = 1, and how much dearer the naive ways are.

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
            copies = _seconds(lambda k=k: naive_copies(policy, seen, k))  # type: ignore[misc]
            row |= {"calls_milliseconds": 1e3 * calls, "copies_milliseconds": 1e3 * copies}
            row |= {"calls_ratio": calls / median, "copies_ratio": copies / median}
        yield row


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def naive_copies(policy: Policy, observations: Observations, k: int) -> Any:
    """K samples as the originals draw them: K copies of the observation in one batch. OpenVLA's way is transformers' `generate`."""
    seen = {key: value * k if key == "instruction" else np.repeat(value, k, axis=0) for key, value in observations.items()}
    if getattr(policy, "family", None) != "openvla":
        return policy.sample(seen, 1)
    openvla: Any = policy
    embeddings, mask, _ = openvla._sequence(seen)
    count = policy.action_spec.chunk * policy.action_spec.dim
    with torch.no_grad():
        return openvla.model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2]) if mask is None else mask,
            do_sample=True,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
