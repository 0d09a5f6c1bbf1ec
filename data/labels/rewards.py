"""Rewards of an episode: V-GPS's convention (-1 a step, 0 once the task is done, terminal from there on), or the data's own.

Pure functions over one episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.errors import InputError

Labels = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RewardConfig:
    """kind: `success`, V-GPS's convention with the last `success_steps` steps of a success terminal; `given`, the data's own rewards.

    discount: per control step.
    """

    kind: Literal["success", "given"] = "success"
    success_steps: int = 3
    discount: float = 0.98

    def __post_init__(self) -> None:
        if self.success_steps < 1 or not 0 < self.discount <= 1:
            raise InputError(
                f"success_steps is {self.success_steps} and discount {self.discount}; they must be >= 1 and in (0, 1]"
            )

    def to_json(self) -> dict[str, Any]:
        """As it stands in a store and in a critic's checkpoint."""
        convention = {"step": -1.0, "success": 0.0, "success_steps": self.success_steps} if self.kind == "success" else {}
        return {"kind": self.kind, **convention, "discount": self.discount}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RewardConfig:
        return cls(values["kind"], values.get("success_steps", cls.success_steps), values["discount"])

    def label(
        self, length: int, success: bool | None, rewards: np.ndarray | None, terminated: bool | None, source: str
    ) -> Labels:
        """reward, mask and mc_return, float32 [T] each, of an episode. InputError where its own rewards are wanted and missing."""
        if self.kind == "success":
            return label(length, success, self.success_steps, self.discount)
        if rewards is None:
            raise InputError(
                f"{source}: carries no rewards; convert with --reward success, or name its reward in robot_rl.json"
            )
        mask = np.ones(length)
        mask[-1] = 0.0 if terminated else 1.0
        mc_return = monte_carlo(rewards, mask, self.discount)
        return rewards.astype(np.float32), mask.astype(np.float32), mc_return.astype(np.float32)


def label(length: int, success: bool | None, success_steps: int, discount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """reward, mask and mc_return, float32 [T] each, of an episode of `length` T transitions.

    A success (None, an unlabelled demonstration, counts as one) has reward 0 and mask 0 on its last `success_steps` steps; every
    other step has reward -1 and mask 1. A failure is never terminal: its mask is 1 throughout, so a TD target bootstraps past its
    end, and its Monte-Carlo return is the finite sum over what was recorded.
    """
    reward, mask = np.full(length, -1.0), np.ones(length)
    if success is not False:
        reward[-success_steps:] = 0.0
        mask[-success_steps:] = 0.0
    return reward.astype(np.float32), mask.astype(np.float32), monte_carlo(reward, mask, discount).astype(np.float32)


def monte_carlo(reward: np.ndarray, mask: np.ndarray, discount: float) -> np.ndarray:
    """mc_t = r_t + discount * mask_t * mc_{t+1}, float64 [T], with mc = 0 after the last recorded step."""
    result, following = np.empty(len(reward)), 0.0
    for t in range(len(reward) - 1, -1, -1):
        following = float(reward[t]) + discount * float(mask[t]) * following
        result[t] = following
    return result
