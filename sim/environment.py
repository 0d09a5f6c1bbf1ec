"""What the environments of our own suites have in common: the arm's actions, the cameras, and the spaces. Not the physics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sim.actions import ACTION_HIGH, ACTION_LOW
from sim.suite import Task


class ArmEnv(gym.Env[dict[str, Any], np.ndarray]):
    """An arm's task whose `metadata` names the numbers of `state`; see the suites' own environments."""

    task: Task

    def __init__(
        self,
        instructions: spaces.Text,
        known_cameras: Collection[str],
        image_size: int | tuple[int, int],
        cameras: Sequence[str],
        render_mode: str | None,
    ) -> None:
        """image_size: side, or (height, width), in pixels. cameras: those to render. ValueError for one that is not known."""
        if not set(cameras) <= set(known_cameras):
            unknown = sorted(set(cameras) - set(known_cameras))
            raise ValueError(f"unknown cameras {unknown}; there are {', '.join(known_cameras)}")
        self.cameras = tuple(cameras)
        self.render_mode = render_mode
        self._image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.action_space = spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        box = {f"image_{camera}": spaces.Box(0, 255, (*self._image_size, 3), np.uint8) for camera in cameras}
        self.observation_space = spaces.Dict(
            {
                **box,
                "proprio": spaces.Box(-4.0, 4.0, (7,), np.float32),
                "state": spaces.Box(-4.0, 4.0, (len(self.metadata["state_names"]),), np.float32),
                "instruction": instructions,
            }
        )

    def _info(self, success: bool, applied: np.ndarray) -> dict[str, Any]:
        return {"success": success, "applied_action": applied, "task": self.task.name}
