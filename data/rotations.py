"""Rotations in the representations that robots and data sets use, converted by `convert`: numpy, float64, any leading axes.

Names: `matrix` (9 numbers, row by row), `quaternion_xyzw`, `quaternion_wxyz`, `axis_angle` (angle in [0, pi] times unit axis),
`axis_angle_unwrapped` (as robosuite computes it: angle 2 acos(w) in [0, 2 pi], so that a quaternion's sign is kept), `rotation_6d` (the
first two columns, Zhou et al. 1812.07035), `rotation_6d_rows` (the first two rows, as pytorch3d, diffusion_policy and DROID have it)
and `euler_` with three axes in the order of the numbers: small letters turn about the fixed axes (`euler_xyz` is roll, pitch, yaw),
capitals about the moving ones (`euler_XYZ`). Everything passes through a unit quaternion xyzw.
"""

from __future__ import annotations

import re

import numpy as np

from data.errors import InputError

_SIZES = {
    "matrix": 9,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "axis_angle": 3,
    "axis_angle_unwrapped": 3,
    "rotation_6d": 6,
    "rotation_6d_rows": 6,
}
_EULER = re.compile(r"euler_([xyz]{3}|[XYZ]{3})")
_SHORTEST = 1e-8


def representation_size(name: str) -> int:
    """How many numbers a representation has; InputError for an unknown name."""
    axes = name.removeprefix("euler_").lower()
    if _EULER.fullmatch(name) and axes[0] != axes[1] != axes[2]:
        return 3
    if name not in _SIZES:
        raise InputError(
            f"{name!r} is no representation of rotations; there are {', '.join(_SIZES)}, euler_xyz, euler_XYZ, ..."
        )
    return _SIZES[name]


def convert(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """[..., n] in one representation -> [..., m] in the other, float64. InputError for a quaternion or 6-D vector of length zero."""
    size = representation_size(source)
    representation_size(target)
    values = np.asarray(values, np.float64)
    if values.shape[-1:] != (size,):
        raise InputError(f"{source} has {size} numbers, not the last axis of {values.shape}")
    return values if source == target else from_quaternion(to_quaternion(values, source), target)


def to_quaternion(values: np.ndarray, source: str) -> np.ndarray:
    """Unit quaternions xyzw [..., 4]; with w >= 0 unless the source tells two signs apart."""
    if source.startswith("quaternion"):
        return _unit(values if source == "quaternion_xyzw" else np.roll(values, -1, axis=-1))
    if source.startswith("axis_angle"):
        half = np.linalg.norm(values, axis=-1, keepdims=True) / 2
        # sin(half)/angle, which numpy's sinc gives without a division by zero.
        quaternion = np.concatenate([values * np.sinc(half / np.pi) / 2, np.cos(half)], axis=-1)
        return quaternion if source == "axis_angle_unwrapped" else _canonical(quaternion)
    if source.startswith("euler"):
        return _canonical(_from_euler(values, source.removeprefix("euler_")))
    if source == "matrix":
        return _canonical(_from_matrix(values.reshape(*values.shape[:-1], 3, 3)))
    first = _unit(values[..., :3])
    second = _unit(values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdims=True) * first)
    matrix = np.stack([first, second, np.cross(first, second)], axis=-1 if source == "rotation_6d" else -2)
    return _canonical(_from_matrix(matrix))


def from_quaternion(quaternion: np.ndarray, target: str) -> np.ndarray:
    """The other way: unit quaternions xyzw [..., 4] -> [..., m]."""
    if target.startswith("quaternion"):
        return quaternion if target == "quaternion_xyzw" else np.roll(quaternion, 1, axis=-1)
    if target.startswith("axis_angle"):
        quaternion = _canonical(quaternion) if target == "axis_angle" else quaternion
        sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
        angle = 2 * np.arctan2(sine, quaternion[..., 3:])
        return quaternion[..., :3] * np.where(sine > 0, angle / np.where(sine > 0, sine, 1), 2)
    if target.startswith("euler"):
        return _to_euler(quaternion, target.removeprefix("euler_"))
    matrix = _to_matrix(quaternion)
    if target == "matrix":
        return matrix.reshape(*quaternion.shape[:-1], 9)
    if target == "rotation_6d":
        matrix = np.swapaxes(matrix, -1, -2)
    return matrix[..., :2, :].reshape(*quaternion.shape[:-1], 6)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The rotation `right`, then `left`: Hamilton's product of quaternions xyzw [..., 4]."""
    (a, d), (b, e) = (left[..., :3], left[..., 3:]), (right[..., :3], right[..., 3:])
    vector = d * b + e * a + np.cross(a, b)
    return np.concatenate([vector, d * e - (a * b).sum(-1, keepdims=True)], axis=-1)


def inverse(quaternion: np.ndarray) -> np.ndarray:
    return quaternion * np.array([-1.0, -1.0, -1.0, 1.0])


def angle_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The angle in [0, pi] from one rotation to the other, quaternions xyzw [..., 4] -> [...]."""
    difference = multiply(inverse(left), right)
    return 2 * np.arctan2(np.linalg.norm(difference[..., :3], axis=-1), np.abs(difference[..., 3]))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if (length < _SHORTEST).any():
        raise InputError(
            "a rotation of length zero: a quaternion or 6-D rotation must not be all zeros (or two parallel halves)"
        )
    return vector / length


def _canonical(quaternion: np.ndarray) -> np.ndarray:
    return np.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def _from_matrix(matrix: np.ndarray) -> np.ndarray:
    """By the largest of the four components (Shepperd 1978), which divides by no small number."""
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    trace = diagonal.sum(-1)
    # Row k is 4 q_k times q, for every component k.
    rows = np.empty((*trace.shape, 4, 4))
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        rows[..., i, i] = 1 - trace + 2 * diagonal[..., i]
        rows[..., 3, i] = rows[..., i, 3] = matrix[..., k, j] - matrix[..., j, k]
        rows[..., j, k] = rows[..., k, j] = matrix[..., k, j] + matrix[..., j, k]
    rows[..., 3, 3] = 1 + trace
    largest = np.diagonal(rows, axis1=-2, axis2=-1).argmax(-1)
    return _unit(np.take_along_axis(rows, largest[..., None, None], axis=-2)[..., 0, :])


def _to_matrix(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _from_euler(angles: np.ndarray, axes: str) -> np.ndarray:
    turns = []
    for index, axis in enumerate(axes.lower()):
        turn = np.zeros((*angles.shape[:-1], 4))
        turn[..., "xyz".index(axis)] = np.sin(angles[..., index] / 2)
        turn[..., 3] = np.cos(angles[..., index] / 2)
        turns.append(turn)
    # About fixed axes a later turn stands on the left, about moving ones on the right.
    first, second, third = turns if axes.isupper() else turns[::-1]
    return multiply(multiply(first, second), third)


def _to_euler(quaternion: np.ndarray, axes: str) -> np.ndarray:
    """Bernardes and Viollet 2022, for every sequence of axes; where two axes coincide, the turn about the last of them is zero."""
    fixed = axes.islower()
    i, j, k = ("xyz".index(axis) for axis in (axes if fixed else axes[::-1]).lower())
    proper = i == k
    k = 3 - i - j if proper else k
    sign = (i - j) * (j - k) * (k - i) / 2
    x, y, z, w = quaternion[..., i], quaternion[..., j], quaternion[..., k] * sign, quaternion[..., 3]
    a, b, c, d = (w, x, y, z) if proper else (w - y, x + z, y + w, z - x)
    middle = 2 * np.arctan2(np.hypot(c, d), np.hypot(a, b))
    total, difference = np.arctan2(b, a), np.arctan2(d, c)
    first, last = total - difference, total + difference
    flat, upright = middle < _SHORTEST, np.pi - middle < _SHORTEST
    # Only the sum or the difference is determined there; all of it is given to the turn that comes first in the numbers.
    whole = np.where(flat, 2 * total, 2 * difference)
    lone = flat | upright
    if fixed:
        first, last = np.where(lone, np.where(flat, whole, -whole), first), np.where(lone, 0.0, last)
    else:
        first, last = np.where(lone, 0.0, first), np.where(lone, whole, last)
    if not proper:
        last, middle = last * sign, middle - np.pi / 2
    angles = np.stack([first, middle, last] if fixed else [last, middle, first], axis=-1)
    return np.where(np.abs(angles) > np.pi, (angles + np.pi) % (2 * np.pi) - np.pi, angles)
