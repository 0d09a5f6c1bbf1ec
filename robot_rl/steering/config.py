"""Settings of steering. Free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SteeringConfig:
    """How candidates are ranked and improved.

    num_samples: K. aggregate: over ensemble members; `min` as in V-GPS, `mean` as in PA-RL. temperature: 0 acts on the best,
    otherwise on a draw from softmax(Q / temperature). ascent_steps: 0 is off, the default, because unguarded ascent harms. keep:
    candidates that are ascended. step_size: in the critic's units (data in [-1, 1]), times the gradient as in the paper, or with
    normalized_step the largest move of one step. trust_region: the farthest an entry may move from where it was sampled.
    """

    num_samples: int = 32
    aggregate: Literal["min", "mean"] = "min"
    temperature: float = 0.0
    ascent_steps: int = 0
    keep: int = 8
    step_size: float = 3e-4
    normalized_step: bool = False
    trust_region: float = 0.05
