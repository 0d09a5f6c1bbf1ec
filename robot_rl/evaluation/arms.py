"""The three arms of an evaluation: the policy alone, steered by the critic, and steered by chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from policies import Policy, load_policy
from policies.checkpoint import resolve_checkpoint
from robot_rl.critic import load_critic
from robot_rl.steering import RandomChoice, SteeredPolicy, SteeringConfig


@dataclass(frozen=True)
class Arm:
    """Builds one arm's policy from folders that `robot-rl train` wrote; picklable, so that workers can."""

    kind: Literal["base", "steered", "random"]
    policy: str
    critic: str
    steering: SteeringConfig

    def __call__(self) -> Policy:
        policy = load_policy(self.policy)
        if self.kind == "base":
            return policy
        critic = load_critic(self.critic)
        if self.kind == "random":
            return RandomChoice(policy, critic, self.steering.num_samples)
        return SteeredPolicy(policy, critic, self.steering)


def make_arms(policy: Path | str, critic: Path | str, steering: SteeringConfig) -> dict[str, Callable[[], Policy]]:
    """base, steered and random, all of which carry out as many actions of a chunk as the critic scores."""
    kinds: tuple[Literal["base", "steered", "random"], ...] = ("base", "steered", "random")
    return {kind: Arm(kind, str(policy), str(critic), steering) for kind in kinds}


def checkpoint_digest(path: Path | str) -> str:
    """What identifies a checkpoint's weights: the first 16 hex digits of their SHA-256."""
    weights = resolve_checkpoint(path) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def cameras_of(*models: Any) -> tuple[str, ...]:
    """The cameras that these policies and critics look at, without the `image_` prefix; environments render no others."""
    return tuple(sorted({key.removeprefix("image_") for model in models for key in model.contract.images}))
