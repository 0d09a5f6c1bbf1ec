"""What steering costs: time of one decision, steered with K candidates, as a multiple of the unsteered policy's in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from policies.base import Policy
from robot_rl.critic import Critic
from robot_rl.steering.ascent import ascend
from robot_rl.steering.config import SteeringConfig
from robot_rl.steering.steered_policy import SteeredPolicy

CANDIDATES = (1, 10, 50, 100)
ASCENT = (5, 10)  # gradient steps, for 50 candidates
ALONE = "policy alone"
ENCODE = "the critic encodes an observation"
VARIANTS = {
    **{f"steered, K={k}": SteeringConfig(num_samples=k) for k in CANDIDATES},
    **{f"steered, K=50, {n} ascent steps": SteeringConfig(num_samples=50, ascent_steps=n) for n in ASCENT},
}
"""What a decision is measured as."""


def bench(policy: Policy, critic: Critic, repeats: int = 50) -> list[dict[str, Any]]:
    """Median milliseconds a decision on one thread, and the ratio to the policy alone: one row a variant, JSON-ready.

    Then what a decision is made of, with its ratio to encoding (`encodings`). The variants take turns, so that a machine whose speed
    drifts slows them all alike.
    """
    torch.set_num_threads(1)
    seen = SteeredPolicy(policy, critic).observation_spec.example()
    generator = torch.Generator(device=critic.device).manual_seed(0)
    decisions: dict[str, Callable[[], Any]] = {ALONE: lambda: policy.sample(seen, 1, generator)}
    for name, config in VARIANTS.items():
        decisions[name] = _decider(SteeredPolicy(policy, critic, config), seen, generator)
    with torch.no_grad():
        z, chunk = critic.encode(seen), policy.sample(seen, CANDIDATES[-1], generator)[:, :, : critic.action_spec.chunk]
    kept = critic.normalize(chunk[:, : SteeringConfig().keep])
    parts: dict[str, Callable[[], Any]] = {ENCODE: lambda: critic.encode(seen)}
    for k in (CANDIDATES[0], CANDIDATES[-1]):
        parts[f"... scores {k} candidates of it"] = lambda k=k: critic.values(z, chunk[:, :k])  # type: ignore[misc]
        parts[f"... encodes and scores {k}"] = lambda k=k: critic.values(critic.encode(seen), chunk[:, :k])  # type: ignore[misc]
    for n in ASCENT:
        parts[f"... ascends {SteeringConfig().keep} by {n} steps"] = lambda n=n: ascend(  # type: ignore[misc]
            lambda u: critic.decode(critic.outputs(z, u)).min(dim=0).values, kept, n, SteeringConfig().step_size
        )
    medians = _medians({**decisions, **parts}, repeats)
    rows: list[dict[str, Any]] = [{"what": name, "milliseconds": 1e3 * value} for name, value in medians.items()]
    for row in rows:
        alone = row["what"] in parts
        row["encodings" if alone else "ratio"] = row["milliseconds"] / (1e3 * medians[ENCODE if alone else ALONE])
    return rows


def _medians(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for name, run in variants.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _decider(steered: SteeredPolicy, seen: dict[str, Any], generator: torch.Generator) -> Callable[[], Any]:
    return lambda: steered.sample(seen, 1, generator)
