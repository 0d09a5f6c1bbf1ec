"""Rotations in radians, as both suites use them: roll, pitch and yaw about the base frame's x, y and z axis, and rotation vectors."""

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


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """The rotations [...,3,3] about each `vector` [...,3] by its length."""
    angle = np.linalg.norm(vector, axis=-1)
    x, y, z = np.moveaxis(vector / np.maximum(angle, 1e-9)[..., None], -1, 0)
    zero = np.zeros_like(x)
    cross = np.moveaxis(np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), (0, 1), (-2, -1))
    sine, versine = np.sin(angle)[..., None, None], (1 - np.cos(angle))[..., None, None]
    return np.eye(3) + sine * cross + versine * (cross @ cross)


def vector_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """The inverse of `rotation_from_vector` for angles well below pi."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = math.sqrt(float(axis @ axis)) / 2, (float(np.trace(rotation)) - 1) / 2
    return axis / 2 if sine < 1e-9 else axis * (math.atan2(sine, cosine) / (2 * sine))
