"""Maps: through every preset and back again nothing changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.rotations import angle_between, convert, to_quaternion
from policies.maps import PolicyMap, load_map, presets
from policies.maps.entries import Image, Text
from tests.policies.map_examples import PICTURE, our_actions, rests

WITH_ACTIONS = [name for name in presets() if load_map(name).actions is not None]
TURNING = [name for name in WITH_ACTIONS if "roll" in load_map(name).action_spec(1).names]
seeds = st.integers(0, 2**32 - 1)


def their_actions(policy_map: PolicyMap, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Made without the map: affine numbers in their range, rotations from scipy."""
    assert policy_map.actions is not None
    theirs = np.zeros((*shape, policy_map.actions.size))
    for segment in policy_map.actions.segments:
        place, count = slice(*segment.theirs), math.prod(shape)
        if segment.rotation:
            turns = Rotation.from_rotvec(rng.uniform(-0.6, 0.6, (count, 3)))
            values = {
                "axis_angle": turns.as_rotvec(),
                "euler_xyz": turns.as_euler("xyz"),
                "rotation_6d_rows": turns.as_matrix()[:, :2].reshape(count, 6),
            }[segment.rotation[0]]
            theirs[..., place] = values.reshape(*shape, -1)
        elif segment.sticky:
            opened = np.concatenate([np.ones((*shape[:-1], 1)), rests(rng, shape, segment.sticky)], axis=-1)
            changes = -np.diff(opened, axis=-1)
            for step in range(1, segment.sticky):
                changes[..., step:] += -np.diff(opened, axis=-1)[..., :-step]
            theirs[..., place] = changes[..., None]
        else:
            ends = [(np.array(end) - np.array(segment.offset)) / np.array(segment.scale) for end in (segment.low, segment.high)]
            values = rng.uniform(*np.sort(ends, axis=0), (*shape, len(ends[0])))
            theirs[..., place] = np.where(values > np.mean(ends, axis=0), *ends) if segment.threshold else values
    return theirs


def proprio_of(policy_map: PolicyMap, rng: np.random.Generator) -> np.ndarray:
    size = policy_map.observation_spec.vectors.get("proprio", 8)
    values = rng.uniform(-0.5, 0.5, size)
    for segment in policy_map.actions.segments if policy_map.actions else ():
        if segment.reference and segment.reference.rotation:
            turn = Rotation.random(rng=rng).as_matrix().reshape(9)
            values[slice(*segment.reference.proprio)] = convert(turn, "matrix", segment.reference.rotation)
    return values


@pytest.mark.parametrize("preset", WITH_ACTIONS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, shape=st.sampled_from([(), (4,), (1, 40), (3, 2, 5)]), double=st.booleans())
def test_ours_come_back_exactly(preset, seed, shape, double):
    policy_map, rng = load_map(preset), np.random.default_rng(seed)
    if policy_map.has_memory():
        shape = (40,)
    session = policy_map.session()
    ours = our_actions(policy_map, rng, shape).astype(np.float64 if double else np.float32)
    proprio = proprio_of(policy_map, rng)
    theirs = session.actions_to_theirs(ours, proprio)
    back = session.actions_from_theirs(theirs, proprio)
    assert theirs.dtype == back.dtype == ours.dtype
    assert back.shape == ours.shape
    # In float32 theirs, positions and degrees among them, are rounded on the way.
    precision = 1e-9 if double else 1e-6 * max(1.0, np.abs(theirs).max(initial=0) if shape else 1.0)
    assert np.abs(back - ours).max() < precision


@pytest.mark.parametrize("preset", WITH_ACTIONS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, shape=st.sampled_from([(), (4,), (1, 40), (3, 2, 5)]))
def test_theirs_come_back_exactly(preset, seed, shape):
    policy_map, rng = load_map(preset), np.random.default_rng(seed)
    if policy_map.has_memory():
        shape = (40,)
    session = policy_map.session()
    theirs, proprio = their_actions(policy_map, rng, shape), proprio_of(policy_map, rng)
    back = session.actions_to_theirs(session.actions_from_theirs(theirs, proprio), proprio)
    assert back.shape == theirs.shape
    assert np.abs(back - theirs).max() < 1e-9 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize("preset", [name for name in TURNING if not load_map(name).has_memory()])
@settings(deadline=None, max_examples=20)
@given(angles=st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
def test_any_turn_comes_back_as_a_turn(preset, angles):
    """Gimbal lock and half turns included."""
    policy_map = load_map(preset)
    spec = policy_map.action_spec(1)
    ours, at, proprio = np.zeros(spec.dim), spec.names.index("roll"), proprio_of(policy_map, np.random.default_rng(0))
    ours[at : at + 3] = angles
    back = policy_map.actions_from_theirs(policy_map.actions_to_theirs(ours, proprio), proprio)
    turns = (to_quaternion(each[at : at + 3], "euler_xyz") for each in (ours, back))
    assert angle_between(*turns) < 1e-7


def our_observation(policy_map: PolicyMap, rng: np.random.Generator, height: int, width: int, everything: bool) -> dict:
    ours: dict[str, Any] = {}
    for key, entry in policy_map.observation.entries.items():
        if isinstance(entry, Text):
            ours[key] = "put the cup down"
        elif everything or not entry.optional:
            if isinstance(entry, Image):
                ours[key] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            else:
                ours[key] = rng.uniform(-1.5, 1.5, entry.size or 6).astype(np.float32)
    return ours


@pytest.mark.parametrize("preset", presets())
@settings(deadline=None, max_examples=15)
@given(seed=seeds, height=st.integers(1, 9), width=st.integers(1, 9), everything=st.booleans())
def test_observations_come_back_exactly(preset, seed, height, width, everything):
    policy_map = load_map(preset)
    ours = our_observation(policy_map, np.random.default_rng(seed), height, width, everything)
    theirs = policy_map.observation_to_theirs(ours)
    back = policy_map.observation_from_theirs(theirs)
    assert back.keys() == ours.keys()
    for key, value in ours.items():
        if isinstance(value, str):
            assert back[key] == value
            continue
        assert back[key].dtype == value.dtype
        if value.dtype == np.uint8:
            assert np.array_equal(back[key], value)
        else:
            assert np.abs(back[key] - value).max() < 2e-6
    again = policy_map.observation_to_theirs(back)
    assert flat(again).keys() == flat(theirs).keys()
    for key, value in flat(theirs).items():
        if isinstance(value, str):
            assert flat(again)[key] == value
        elif key.endswith("quat"):
            # Their sign is the only one of theirs that rounding could turn.
            assert angle_between(flat(again)[key].astype(float), value.astype(float)) < 2e-6
        else:
            assert np.abs(flat(again)[key].astype(float) - value).max() < 2e-6


def flat(nested: dict, prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result.update(flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result


@settings(deadline=None)
@given(st.integers(0, 255), st.sampled_from(["0..1", "-1..1"]), st.sampled_from([np.float16, np.float32, np.float64]))
def test_every_grey_survives_as_a_float(grey, values, dtype):
    camera = PolicyMap.from_json({"observation": {"image_primary": {"key": "a", "values": values}}})
    picture = np.full((1, 1, 3), grey, np.uint8)
    theirs = camera.observation_to_theirs({"image_primary": picture})
    assert theirs["a"].dtype == np.float32
    low = 0 if values == "0..1" else -1
    assert np.allclose(theirs["a"], low + (1 - low) * grey / 255)
    assert np.array_equal(camera.observation_from_theirs({"a": theirs["a"].astype(dtype)})["image_primary"], picture)


def test_history_passes_through():
    ours = {
        "image_primary": np.stack([PICTURE] * 3),
        "image_wrist": np.stack([PICTURE] * 3),
        "proprio": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32),
        "instruction": "stack",
        "timestep_pad_mask": np.array([False, True, True]),
    }
    for preset in ("libero", "lerobot_libero", "libero_env"):
        policy_map = load_map(preset)
        back = policy_map.observation_from_theirs(policy_map.observation_to_theirs(ours))
        assert np.array_equal(back["image_primary"], ours["image_primary"])
        assert np.allclose(back["proprio"], ours["proprio"], atol=2e-6)
        assert back["timestep_pad_mask"].tolist() == [False, True, True]
