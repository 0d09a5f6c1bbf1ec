"""What steering costs: time of one decision, steered with K candidates, as a multiple of the unsteered policy's in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from policies.base import Policy
from robot_rl.critic import Critic
from robot_rl.steering.config import SteeringConfig
from robot_rl.steering.steered_policy import SteeredPolicy

CANDIDATES = (1, 10, 50, 100)


def bench(policy: Policy, critic: Critic, repeats: int = 50) -> list[dict[str, Any]]:
    """Median milliseconds a decision on one thread, and the ratio to the policy alone: one row a variant, JSON-ready.

    The variants take turns, so that a machine whose speed drifts slows them all alike.
    """
    torch.set_num_threads(1)
    seen = SteeredPolicy(policy, critic).observation_spec.example()
    generator = torch.Generator(device=critic.device).manual_seed(0)
    z, chunk = critic.encode(seen), policy.sample(seen, CANDIDATES[-1], generator)[:, :, : critic.action_spec.chunk]
    variants: dict[str, Callable[[], Any]] = {"policy alone": lambda: policy.sample(seen, 1, generator)}
    for k in CANDIDATES:
        variants[f"steered, K={k}"] = _decider(policy, critic, SteeringConfig(num_samples=k), seen, generator)
    ascent = SteeringConfig(num_samples=50, ascent_steps=10)
    variants["steered, K=50, 10 ascent steps"] = _decider(policy, critic, ascent, seen, generator)
    variants["encode the observation, critic"] = lambda: critic.encode(seen)
    for k in CANDIDATES:
        variants[f"score {k}, observation encoded"] = lambda k=k: critic.values(z, chunk[:, :k])  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for name, run in variants.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    alone = medians["policy alone"]
    return [{"what": name, "milliseconds": 1e3 * value, "ratio": value / alone} for name, value in medians.items()]


def _decider(
    policy: Policy, critic: Critic, config: SteeringConfig, seen: dict[str, Any], generator: torch.Generator
) -> Callable[[], Any]:
    steered = SteeredPolicy(policy, critic, config)
    return lambda: steered.sample(seen, 1, generator)
