"""Rewards of an episode: V-GPS's convention (-1 a step, 0 once the task is done, terminal from there on), or the data's own.

The one place where rewards, masks and returns are defined. Pure functions over one episode, or over draws from some.
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
        self,
        length: int,
        success: bool | None,
        rewards: np.ndarray | None = None,
        terminated: bool | None = None,
        source: str = "episode",
    ) -> Labels:
        """reward, mask and mc_return, float32 [T] each, of an episode of `length` T transitions.

        `success`: a success (None, an unlabelled demonstration, counts as one) has reward 0 and mask 0 on its last `success_steps`
        steps; every other step has reward -1 and mask 1. A failure is never terminal: its mask is 1 throughout, so a TD target
        bootstraps past its end, and its Monte-Carlo return is the finite sum over what was recorded. `given`: `rewards` [T] as they
        are, and mask 0 on the last step of an episode that has `terminated`; InputError, which names `source`, without rewards.
        """
        if self.kind == "success":
            paid = self._paid(np.arange(length, 0, -1), success is not False)
            reward, mask = np.where(paid, -1.0, 0.0), np.where(paid, 1.0, 0.0)
        elif rewards is None:
            raise InputError(
                f"{source}: carries no rewards; convert with --reward success, or name its reward in robot_rl.json"
            )
        else:
            reward, mask = rewards, np.where(np.arange(length) == length - 1, 0.0 if terminated else 1.0, 1.0)
        mc_return = monte_carlo(reward, mask, self.discount)
        return reward.astype(np.float32), mask.astype(np.float32), mc_return.astype(np.float32)

    def assumptions(self, success: np.ndarray, lengths: np.ndarray) -> list[str]:
        """What these rewards take for granted, a line each, of episodes with labels success [E] (-1 unlabelled) and transitions [E]."""
        if self.kind == "given":
            return []
        lines, steps = [], self.success_steps
        if (success < 0).any():
            lines.append(f"{int((success < 0).sum())} episodes without a label of success count as successes")
        whole = int(((lengths <= steps) & (success != 0)).sum())
        if whole:
            lines.append(
                f"{whole} of {len(success)} episodes have no more than the {steps} steps that end a success (--success-steps): "
                "nothing in them leads to it"
            )
        return lines

    def backup(self, steps: np.ndarray, success: bool, n_step: int, discount: float) -> dict[str, np.ndarray]:
        """reward, discount and mc_return [B] of an N-step backup in an episode that succeeds or fails, `steps` [B] before its end.

        In closed form what `label` (of kind `success`) and the sampler's backup give.
        """
        paid = self._paid(steps, success)
        within = np.minimum(steps, n_step)
        return {
            "reward": -_geometric(np.minimum(paid, n_step), discount),
            # A backup that goes on to a step that is not paid for has reached a terminal one.
            "discount": np.where(paid < within, 0.0, discount**within),
            "mc_return": -_geometric(paid, discount),
        }

    def _paid(self, steps: np.ndarray, success: bool) -> np.ndarray:
        """How many of the `steps` that are left cost -1; those after them are terminal."""
        return np.maximum(steps - self.success_steps, 0) if success else steps


def monte_carlo(reward: np.ndarray, mask: np.ndarray, discount: float) -> np.ndarray:
    """mc_t = r_t + discount * mask_t * mc_{t+1}, float64 [T], with mc = 0 after the last recorded step."""
    result, following = np.empty(len(reward)), 0.0
    for t in range(len(reward) - 1, -1, -1):
        following = float(reward[t]) + discount * float(mask[t]) * following
        result[t] = following
    return result


def _geometric(count: np.ndarray, ratio: float) -> np.ndarray:
    """sum_{i<count} ratio^i"""
    return count if ratio == 1 else (1 - ratio**count) / (1 - ratio)
