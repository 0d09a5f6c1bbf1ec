"""Settings of steering. Free of heavy imports. The comments are what `--help` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.errors import NONNEGATIVE, POSITIVE, RATE, check_settings


@dataclass(frozen=True)
class SteeringConfig:
    """How a candidate is chosen and improved. Ascent is off by default, because unguarded it harms."""

    num_samples: int = 32  # candidates a decision, K
    aggregate: Literal["min", "mean"] = "min"  # over ensemble members: min as in V-GPS, mean as in PA-RL
    smoothing: float = 0.3  # width of a candidate's neighbourhood, in median distances; 0 judges each candidate by itself
    temperature: float = 4.0  # of pi exp(Q / temperature), whose mode is acted on; without smoothing a draw, or at 0 the best
    ascent_steps: int = 0  # of gradient ascent on the kept candidates
    keep: int = 8  # candidates that are ascended
    step_size: float = 3e-4  # of the ascent, in the critic's units (the data fill [-1, 1])
    normalized_step: bool = False  # scale the gradient so that step_size is the largest move, instead of PA-RL's plain step
    trust_region: float = 0.05  # the farthest an entry may move from where it was sampled, in the critic's units

    def __post_init__(self) -> None:
        check_settings(self, num_samples=POSITIVE, temperature=NONNEGATIVE, ascent_steps=NONNEGATIVE, keep=POSITIVE)
        check_settings(self, step_size=RATE, trust_region=RATE, smoothing=NONNEGATIVE)


@dataclass(frozen=True)
class RandomConfig:
    """The control."""

    num_samples: int = 32  # candidates a decision, K

    def __post_init__(self) -> None:
        check_settings(self, num_samples=POSITIVE)


@dataclass(frozen=True)
class ModeConfig:
    """The control that knows the policy's distribution and no critic."""

    num_samples: int = 32  # candidates a decision, K
    smoothing: float = 0.3  # width of a candidate's neighbourhood, in median distances

    def __post_init__(self) -> None:
        check_settings(self, num_samples=POSITIVE, smoothing=RATE)


@dataclass(frozen=True)
class VotingConfig:
    """A proposal distribution around few samples of the policy, as RoboMonkey makes it."""

    policy_samples: int = 5  # drawn from the policy, M
    num_samples: int = 16  # drawn from the proposal distribution, K

    def __post_init__(self) -> None:
        check_settings(self, policy_samples=POSITIVE, num_samples=POSITIVE)
