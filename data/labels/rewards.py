"""The reward convention of V-GPS: -1 a step, 0 once the task is done, terminal from there on. Pure functions over one episode."""

from __future__ import annotations

import numpy as np


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
