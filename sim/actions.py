"""What an action of our arms means: Bridge's seven numbers, as changes in the robot's base frame, and the gripper's opening."""

from __future__ import annotations

from typing import Any

import numpy as np

ACTION_HIGH = np.array([0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0], np.float32)
ACTION_LOW = np.array([-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0], np.float32)
ACTION_METADATA: dict[str, Any] = {
    "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    "action_units": ("m", "m", "m", "rad", "rad", "rad", "open"),
    "action_frame": "end_effector_delta_base",
}


def bounded(action: np.ndarray) -> np.ndarray:
    """The action within its bounds, float32 [7]. ValueError unless it is seven finite numbers."""
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (7,) or not np.isfinite(action).all():
        raise ValueError(f"an action is 7 finite numbers (x, y, z, roll, pitch, yaw, gripper), got {action.tolist()}")
    return np.clip(action, ACTION_LOW, ACTION_HIGH)
