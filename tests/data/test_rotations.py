"""Rotations against scipy's, and round trips between every two representations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.rotations import (
    angle_between,
    convert,
    from_quaternion,
    inverse,
    multiply,
    representation_size,
    to_quaternion,
)

EULER = [
    f"euler_{''.join(axes)}"
    for letters in ("xyz", "XYZ")
    for axes in itertools.product(letters, repeat=3)
    if axes[0] != axes[1] != axes[2]
]
NAMES = [
    "matrix",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "axis_angle",
    "axis_angle_unwrapped",
    "rotation_6d",
    "rotation_6d_rows",
    *EULER,
]
quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 1e-3).map(np.array)


def by_scipy(rotation: Rotation, name: str) -> np.ndarray:
    if name == "quaternion_xyzw":
        return rotation.as_quat(canonical=True)
    if name == "quaternion_wxyz":
        return np.roll(rotation.as_quat(canonical=True), 1, axis=-1)
    if name.startswith("axis_angle"):
        return rotation.as_rotvec()
    matrix = rotation.as_matrix()
    if name == "rotation_6d":
        return np.swapaxes(matrix, -1, -2)[..., :2, :].reshape(*matrix.shape[:-2], 6)
    if name == "rotation_6d_rows":
        return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)
    if name == "matrix":
        return matrix.reshape(*matrix.shape[:-2], 9)
    return rotation.as_euler(name.removeprefix("euler_"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_scipys(name):
    rotation = Rotation.random(500, rng=np.random.default_rng(0))
    expected, ours = by_scipy(rotation, name), convert(rotation.as_matrix().reshape(-1, 9), "matrix", name)
    assert ours.shape == (500, representation_size(name))
    assert np.abs(ours - expected).max() < 1e-10
    assert np.abs(convert(expected, name, "matrix") - rotation.as_matrix().reshape(-1, 9)).max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(quaternion=quaternions)
def test_there_and_back_is_the_same_rotation(name, quaternion):
    quaternion = quaternion / np.linalg.norm(quaternion)
    there = from_quaternion(quaternion, name)
    assert there.shape == (representation_size(name),)
    # Where two Euler axes coincide, what is between them is known to the root of a float's precision only.
    assert angle_between(to_quaternion(there, name), quaternion) < (1e-7 if name.startswith("euler") else 1e-12)


@pytest.mark.parametrize("name", EULER)
@pytest.mark.parametrize("middle", [0, np.pi / 2, -np.pi / 2, np.pi, 1e-12, np.pi / 2 - 1e-9])
def test_euler_angles_where_axes_coincide(name, middle):
    for first, last in ((0.3, -1.1), (2.5, 2.9), (0.0, 0.0)):
        quaternion = to_quaternion(np.array([first, middle, last]), name)
        assert angle_between(to_quaternion(from_quaternion(quaternion, name), name), quaternion) < 1e-7


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(np.array), st.sampled_from([1e-300, 1e-20, 1e-9, 1e-3, 1, 1.7]))
def test_turns_however_small_keep_their_numbers(direction, size):
    vector = direction * size
    for name in ("quaternion_xyzw", "quaternion_wxyz", "axis_angle_unwrapped"):
        assert np.allclose(convert(convert(vector, "axis_angle", name), name, "axis_angle"), vector, rtol=1e-12, atol=1e-15)
    small = vector / 2
    back = convert(convert(small, "euler_xyz", "axis_angle"), "axis_angle", "euler_xyz")
    assert np.allclose(back, small, rtol=0, atol=1e-12)


def test_a_quaternions_sign_is_kept_where_it_can_be():
    negative = np.array([0.9, 0.1, 0.2, -0.3]) / np.linalg.norm([0.9, 0.1, 0.2, -0.3])
    for name in ("quaternion_wxyz", "axis_angle_unwrapped"):
        assert np.allclose(convert(convert(negative, "quaternion_xyzw", name), name, "quaternion_xyzw"), negative)
    robosuite = negative[:3] * 2 * np.arccos(negative[3]) / np.sqrt(1 - negative[3] ** 2)
    assert np.allclose(convert(negative, "quaternion_xyzw", "axis_angle_unwrapped"), robosuite)
    assert np.linalg.norm(convert(negative, "quaternion_xyzw", "axis_angle")) < np.pi < np.linalg.norm(robosuite)


def test_six_numbers_need_not_be_orthonormal():
    noisy = np.random.default_rng(0).normal(size=(50, 6))
    for name in ("rotation_6d", "rotation_6d_rows"):
        matrix = convert(noisy, name, "matrix").reshape(-1, 3, 3)
        assert np.allclose(matrix @ np.swapaxes(matrix, 1, 2), np.eye(3))
        assert np.allclose(np.linalg.det(matrix), 1)


def test_products_and_inverses_are_scipys():
    left, right = (Rotation.random(50, rng=np.random.default_rng(seed)) for seed in (1, 2))
    product = multiply(left.as_quat(), right.as_quat())
    assert angle_between(product, (left * right).as_quat()).max() < 1e-12
    assert angle_between(inverse(left.as_quat()), left.inv().as_quat()).max() < 1e-12
    assert np.allclose(angle_between(left.as_quat(), right.as_quat()), (left.inv() * right).magnitude())


@pytest.mark.parametrize(
    ("values", "source", "target", "says"),
    [
        (np.zeros(4), "quaternion_xyzw", "matrix", "length zero"),
        (np.ones(6), "rotation_6d", "matrix", "length zero"),
        (np.zeros(4), "euler_xyz", "matrix", "3 numbers"),
        (np.zeros(3), "euler_xxz", "matrix", "no representation"),
        (np.zeros(3), "euler_xYz", "matrix", "no representation"),
        (np.zeros(3), "axis_angle", "rpy", "no representation"),
    ],
)
def test_wrong_ones_are_one_line(values, source, target, says):
    with pytest.raises(InputError, match=says) as caught:
        convert(values, source, target)
    assert "\n" not in str(caught.value)
