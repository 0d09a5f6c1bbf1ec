"""Roll, pitch and yaw, as both suites use them: rotations about the base frame's x, then y, then z axis, in radians."""

from __future__ import annotations

import math

import numpy as np


def rotation_from_rpy(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), [3,3]."""
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rpy_from_rotation(rotation: np.ndarray) -> tuple[float, float, float]:
    """The inverse of `rotation_from_rpy`, with pitch in [-pi/2, pi/2]."""
    roll = math.atan2(rotation[2, 1], rotation[2, 2])
    pitch = math.asin(min(1.0, max(-1.0, -rotation[2, 0])))
    return roll, pitch, math.atan2(rotation[1, 0], rotation[0, 0])
