"""Episodes of a suite's demonstrator, for the tests of demonstrators."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import sim


def demonstrate(env_id: str, quality: float, episodes: int, disturb: bool = False) -> tuple[float, list[np.ndarray]]:
    """Success rate, and each episode's actions [T,7]."""
    env = gym.make(env_id, cameras=(), disable_env_checker=True)
    expert, wins, actions = sim.make_expert(env_id, env, quality, seed=0), 0, []
    for seed in range(episodes):
        env.reset(seed=seed)
        taken, done = [], False
        while not done:
            taken.append(expert.act())
            _, _, terminated, truncated, info = env.step(taken[-1])
            done = terminated or truncated
            if disturb and len(taken) in (5, 9):  # somebody pushes the arm aside
                env.step(np.array([0.04, -0.04, 0.04, 0, 0, 0.2, 1.0], np.float32))
        wins += info["success"]
        actions.append(np.array(taken))
    env.close()
    return wins / episodes, actions
