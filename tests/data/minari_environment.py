"""A small environment with cameras, nested observations and a text, of which Minari itself records datasets."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np

ID = "robot-rl-tests/GoLeft-v0"
LENGTHS = (4, 7, 3)
"""Of the episodes: the last step of the second is a success, the others are cut off."""


class GoLeft(gymnasium.Env):
    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012

    def __init__(self) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "camera": box(0, 255, (48, 64, 3), np.uint8),
                "arm": gymnasium.spaces.Dict({"pos": box(-1, 1, (3,)), "mode": gymnasium.spaces.Discrete(4)}),
                "mission": gymnasium.spaces.Text(40),
            }
        )
        self.action_space = box(np.float32([-0.05, -0.1]), np.float32([0.05, 0.1]))
        self._time = 0

    def _observe(self) -> dict[str, Any]:
        rows, columns = np.mgrid[:48, :64]
        camera = np.stack([rows * 5, columns * 3, np.full_like(rows, 20 * self._time)], axis=-1).astype(np.uint8)
        arm = {"pos": self.np_random.uniform(-1, 1, 3).astype(np.float32), "mode": self._time % 4}
        return {"camera": camera, "arm": arm, "mission": "go left"}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self._time += 1
        success = self._time == 7
        return self._observe(), float(success), success, False, {"success": success}


def record(root: Path, storage: str, environment: str = ID, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """A dataset written by Minari in a storage ("hdf5", "arrow", "parquet"); the dataset's folder."""
    import minari

    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=f"{__name__}:GoLeft")
    env = gymnasium.make(environment)
    name = f"tests/{storage}-v0"
    with patch.dict(os.environ, MINARI_DATASETS_PATH=str(root)), warnings.catch_warnings():
        # Of an author, a link and a reference score that are not given.
        warnings.simplefilter("ignore")
        buffers = [_play(env, seed, length) for seed, length in enumerate(lengths)]
        minari.create_dataset_from_buffers(name, buffers, env=env, data_format=storage)
    env.close()
    return root / name


def _play(env: gymnasium.Env, seed: int, length: int) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    observations, infos, actions, results = [observation], [info], [], []
    for _ in range(length):
        action = env.action_space.sample()
        observation, *result, info = env.step(action)
        observations.append(observation)
        infos.append(info)
        actions.append(action)
        results.append(result)
    rewards, terminations, truncations = map(list, zip(*results, strict=True))
    truncations[-1] = not terminations[-1]
    return EpisodeBuffer(
        None, seed, None, _by_key(observations), actions, rewards, terminations, truncations, _by_key(infos) or None
    )


def _by_key(values: list[Any]) -> Any:
    """Steps of dicts -> dicts of steps, as Minari collects them."""
    return {key: _by_key([value[key] for value in values]) for key in values[0]} if isinstance(values[0], dict) else values
