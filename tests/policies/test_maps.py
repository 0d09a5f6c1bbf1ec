"""Maps: every preset and its inverse, what each states, motions from positions, and what is said of wrong files and data."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.rotations import angle_between, convert, to_quaternion
from policies import ActionSpec, Encodes, HasLogProb, ObservationSpec, Policy, Trainable, load_policy
from policies.config import GaussianConfig
from policies.mapped import MappedPolicy
from policies.maps import PolicyMap, StickyGripper, load_map, presets
from policies.maps.entries import Image, Text
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.recipes import train_policy
from tests.policies.families import VECTORS, make

WITH_ACTIONS = [name for name in presets() if load_map(name).actions is not None]
TURNING = [name for name in WITH_ACTIONS if "roll" in load_map(name).action_spec(1).names]
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
seeds = st.integers(0, 2**32 - 1)


def rests(rng: np.random.Generator, shape: tuple[int, ...], steps: int) -> np.ndarray:
    """Openness that begins at 1 and rests `steps` actions or more between changes."""
    values, at = np.ones(shape), rng.integers(1, steps)
    while at < shape[-1]:
        values[..., at:] = 1 - values[..., at:]
        at += rng.integers(steps, 2 * steps)
    return values


def our_actions(policy_map: PolicyMap, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Anywhere in the bounds, pitch a little short of where Euler angles have two names; rounded grippers open or closed."""
    parts = []
    assert policy_map.actions is not None
    for segment in policy_map.actions.segments:
        low, high = (np.array(bound) * (0.9 if segment.rotation else 1) for bound in (segment.low, segment.high))
        values = rng.uniform(low, high, (*shape, len(low)))
        if segment.threshold is not None:
            values = np.where(rng.random(values.shape) > 0.5, high, low)
        if segment.sticky:
            values = rests(rng, shape, segment.sticky)[..., None]
        parts.append(values)
    return np.concatenate(parts, axis=-1)


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


def test_libero_as_openpi_speaks_it():
    libero = load_map("libero")
    state = np.arange(8) / 10
    theirs = {
        "observation/image": PICTURE,
        "observation/wrist_image": PICTURE[:2],
        "observation/state": state,
        "prompt": "stack",
    }
    ours = libero.observation_from_theirs(theirs)
    assert np.array_equal(ours["image_primary"], PICTURE)
    assert np.array_equal(ours["image_wrist"], PICTURE[:2])
    assert np.array_equal(ours["proprio"], state.astype(np.float32))
    assert ours["instruction"] == "stack"
    nested = {"observation": {"image": PICTURE, "wrist_image": PICTURE, "state": state}, "prompt": np.array("stack")}
    assert libero.observation_from_theirs(nested)["instruction"] == "stack"
    # One in each direction of robosuite's OSC_POSE is 5 cm and half a radian; -1 opens.
    full = libero.actions_from_theirs(np.array([[1, 0, -1, 0, 0, 1, -1], [0, 0, 0, 0.5, 0, 0, 1.0]]))
    assert np.allclose(full, [[0.05, 0, -0.05, 0, 0, 0.5, 1], [0, 0, 0, 0.25, 0, 0, 0]])
    turned = libero.actions_from_theirs(np.array([0, 0, 0, 0.4, -0.6, 0.9, 0]))[3:6]
    assert np.allclose(turned, Rotation.from_rotvec([0.2, -0.3, 0.45]).as_euler("xyz"))
    spec = libero.action_spec(10)
    assert (spec.names, spec.units) == (
        ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        ("m",) * 3 + ("rad",) * 3 + ("open",),
    )
    assert (spec.frame, spec.control_hz, spec.chunk) == ("end_effector_delta_base", 20, 10)


def test_libero_itself_is_upside_down_and_its_gripper_is_told():
    libero = load_map("libero_env")
    quaternion = np.array([0.99, 0.05, 0.1, -0.05]) / np.linalg.norm([0.99, 0.05, 0.1, -0.05])
    theirs = {
        "agentview_image": PICTURE,
        "robot0_eye_in_hand_image": PICTURE,
        "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
        "robot0_eef_quat": quaternion,
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
        "language": "stack",
    }
    ours = libero.observation_from_theirs(theirs)
    assert np.array_equal(ours["image_primary"], PICTURE[::-1, ::-1])
    # The data sets' states were made so: the angle is 2 acos(w), above pi where w is negative.
    turn = quaternion[:3] * 2 * math.acos(quaternion[3]) / math.sqrt(1 - quaternion[3] ** 2)
    assert np.allclose(ours["proprio"], [0.1, 0.2, 0.3, *turn, 0.04, -0.04], atol=1e-6)
    grippers = libero.actions_to_theirs(np.array([[0.0] * 6 + [openness] for openness in (0.0, 0.3, 0.51, 1.0)]))[:, 6]
    assert grippers.tolist() == [1, 1, -1, -1]
    # A checkpoint of OpenVLA says 1 for open; through both maps its action is what its evaluation sends to the environment.
    action = np.array([0.3, -0.2, 0.9, 0.1, 0.2, -0.3, 0.8])
    sent = libero.actions_to_theirs(load_map("openvla_libero").actions_from_theirs(action))
    assert np.allclose(sent, [*action[:6], -np.sign(2 * action[6] - 1)])


def test_droid_as_openpi_speaks_it():
    droid = load_map("droid")
    theirs = {
        "observation/exterior_image_1_left": PICTURE,
        "observation/wrist_image_left": PICTURE,
        "observation/joint_position": np.arange(7) / 10,
        "observation/gripper_position": np.float64(0.25),
        "prompt": b"open the drawer",
    }
    ours = droid.observation_from_theirs(theirs)
    assert np.allclose(ours["proprio"], [*np.arange(7) / 10, 0.25])
    assert ours["instruction"] == "open the drawer"
    assert np.allclose(droid.actions_from_theirs(np.array([1.0] * 7 + [1.0])), [0.2] * 7 + [0.0])
    assert droid.observation_to_theirs(ours)["observation/gripper_position"].shape == (1,)


def test_aloha_as_openpi_speaks_it():
    aloha = load_map("aloha")
    chw = np.ascontiguousarray(PICTURE.transpose(2, 0, 1))
    theirs = {"state": np.arange(14.0), "images": {"cam_high": chw, "cam_left_wrist": chw[:, :3]}}
    ours = aloha.observation_from_theirs(theirs)
    assert np.array_equal(ours["image_primary"], PICTURE)
    assert ours["image_wrist"].shape == (3, 7, 3)
    assert "image_cam_low" not in ours
    assert ours["instruction"] == ""
    back = aloha.observation_to_theirs({**ours, "instruction": "fold"})
    assert back["prompt"] == "fold"
    assert np.array_equal(back["images"]["cam_high"], chw)
    actions = np.random.default_rng(0).normal(size=(3, 14))
    assert np.array_equal(aloha.actions_to_theirs(actions), actions)


def test_lerobots_pictures_are_floats():
    theirs = {
        "observation.images.top": (PICTURE.transpose(2, 0, 1) / 255).astype(np.float32),
        "observation.state": np.zeros(5, np.float32),
        "task": "push",
    }
    lerobot = load_map("lerobot")
    ours = lerobot.observation_from_theirs(theirs)
    assert np.array_equal(ours["image_primary"], PICTURE)
    assert np.array_equal(lerobot.observation_to_theirs(ours)["observation.images.top"], theirs["observation.images.top"])
    assert lerobot.actions_to_theirs(np.ones((2, 9))).shape == (2, 9)
    with pytest.raises(InputError, match="does not say what actions mean"):
        lerobot.action_spec(1)
    degrees = load_map("lerobot_so100").actions_from_theirs(np.array([90.0, -90, 0, 180, 0, 25]))
    assert np.allclose(degrees, [math.pi / 2, -math.pi / 2, 0, math.pi, 0, 0.25])


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


def simpler_gripper(openness: list[float], steps: int) -> list[float]:
    """SimplerEnv's rule for the Google robot as VLA_FORMATS.md has it, written down once more."""
    commands, previous, held, repeated, sticky = [], None, 0.0, 0, False
    for current in openness:
        relative = 0.0 if previous is None else previous - current
        previous = current
        if abs(relative) > 0.5 and not sticky:
            sticky, held = True, relative
        if sticky:
            repeated += 1
            relative = held
        if repeated == steps:
            sticky, repeated, held = False, 0, 0.0
        commands.append(relative)
    return commands


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=60), st.sampled_from([1, 3, 15]), st.integers(1, 7))
def test_the_google_robots_gripper_is_simplers(openness, steps, chunk):
    gripper = StickyGripper(steps)
    pieces = [gripper.commands(np.array(openness[at : at + chunk])) for at in range(0, len(openness), chunk)]
    assert [value for piece in pieces for value in piece] == simpler_gripper(openness, steps)


def test_simpler_google_robot_remembers_for_an_episode():
    policy_map = load_map("simpler_google_robot")
    rng = np.random.default_rng(0)
    ours = our_actions(policy_map, rng, (30,))
    ours[:, 6] = [1] * 4 + [0] * 8 + [1] * 18
    session = policy_map.session()
    theirs = np.concatenate([session.actions_to_theirs(chunk) for chunk in np.split(ours, 6)])
    assert np.allclose(theirs[:, :3], ours[:, :3])
    assert np.allclose(theirs[:, 3:6], Rotation.from_euler("xyz", ours[:, 3:6]).as_rotvec())
    # Held for 15 steps: the opening at step 12 came too early and is lost.
    assert theirs[:, 6].tolist() == [0] * 4 + [1] * 15 + [0] * 11
    # Another episode begins anew; alternatives side by side begin alike, and the first one is what happens.
    session, alternatives = policy_map.session(), np.zeros((2, 3, 7))
    session.actions_to_theirs(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    alternatives[1, :, 6] = 1
    assert session.actions_to_theirs(alternatives)[:, :, 6].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert session.actions_to_theirs(alternatives[1])[:, 6].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="session"):
        policy_map.actions_to_theirs(ours)
    assert load_map("libero").session() == load_map("libero")


def test_simpler_widowx_rounds_its_gripper():
    widowx = load_map("simpler_widowx")
    ours = np.array([[0.01, 0, 0, 0.1, -0.2, 0.2, openness] for openness in (0.0, 0.5, 0.500001, 0.9)])
    theirs = widowx.actions_to_theirs(ours)
    assert theirs[:, 6].tolist() == [-1, -1, 1, 1]
    assert np.allclose(theirs[:, 3:6], Rotation.from_euler("xyz", [0.1, -0.2, 0.2]).as_rotvec())
    observation = {"image": {"3rd_view_camera": {"rgb": PICTURE}}, "agent": {}, "instruction": "put"}
    assert np.array_equal(widowx.observation_from_theirs(observation)["image_primary"], PICTURE)


def test_bridge_and_google_robot_states():
    bridge = load_map("widowx").observation_from_theirs(
        {"full_image": PICTURE, "proprio": np.array([1.0, 2, 3, 4, 5, 6, 0, 7]), "instruction": "put"}
    )
    assert bridge["proprio"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    google = load_map("google_robot").observation_to_theirs(
        {"image_primary": PICTURE, "proprio": np.arange(8, dtype=np.float32), "instruction": "pick"}
    )
    assert google["observation"]["base_pose_tool_reached"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert google["observation"]["gripper_closed"].tolist() == [7]


def position_map(absolute: str, start: str, frame: str) -> PolicyMap:
    place = {"absolute": absolute, "from": start}
    segments = [
        {
            "theirs": [0, 3],
            "names": ["x", "y", "z"],
            "unit": "m",
            "low": -1,
            "high": 1,
            "reference": {**place, "proprio": [0, 3]},
        },
        {
            "theirs": [3, 7],
            "names": ["roll", "pitch", "yaw"],
            "unit": "rad",
            "low": -3,
            "high": 3,
            "rotation": "quaternion_wxyz",
            "reference": {**place, "proprio": [3, 6], "rotation": "euler_xyz", "frame": frame},
        },
    ]
    actions = {"frame": "made", "control_hz": 5, "segments": segments}
    return PolicyMap.from_json({"observation": {}, "actions": actions})


@pytest.mark.parametrize("absolute", ["theirs", "ours"])
@pytest.mark.parametrize("start", ["previous", "observed"])
@pytest.mark.parametrize("frame", ["base", "tool"])
def test_motions_and_positions(absolute, start, frame):
    """Against scipy, for a chunk of three, with a state for each of two observations and four samples of each."""
    policy_map, rng = position_map(absolute, start, frame), np.random.default_rng(0)
    proprio = rng.uniform(-0.5, 0.5, (2, 6))
    motions = rng.uniform(-0.3, 0.3, (2, 4, 3, 6))
    positions = np.zeros_like(motions)
    for b, k in np.ndindex(2, 4):
        at, turn = proprio[b, :3], Rotation.from_euler("xyz", proprio[b, 3:])
        for step in range(3):
            motion = Rotation.from_euler("xyz", motions[b, k, step, 3:])
            moved, turned = at + motions[b, k, step, :3], motion * turn if frame == "base" else turn * motion
            positions[b, k, step] = [*moved, *turned.as_euler("xyz")]
            if start == "previous":
                at, turn = moved, turned
    ours, expected = (positions, motions) if absolute == "ours" else (motions, positions)
    theirs = policy_map.actions_to_theirs(ours, proprio)
    quaternions = convert(expected[..., 3:], "euler_xyz", "quaternion_wxyz")
    assert np.allclose(theirs[..., :3], expected[..., :3])
    assert angle_between(theirs[..., 3:][..., [1, 2, 3, 0]], quaternions[..., [1, 2, 3, 0]]).max() < 1e-9
    assert np.allclose(policy_map.actions_from_theirs(theirs, proprio), ours)
    # A single action is a chunk of one.
    assert np.allclose(policy_map.actions_to_theirs(ours[1, 2, 0], proprio[1]), theirs[1, 2, 0])


def test_a_missing_or_misshapen_proprio_is_one_line():
    policy_map = position_map("theirs", "previous", "base")
    for proprio, says in (
        (None, "'proprio', which the observation lacks"),
        (np.zeros(4), "6 numbers"),
        (np.zeros((3, 6)), "shape"),
    ):
        with pytest.raises(InputError, match=says):
            policy_map.actions_from_theirs(np.ones((2, 5, 7)), proprio)


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


@pytest.mark.parametrize("preset", presets())
def test_a_map_is_its_file(preset, tmp_path):
    policy_map = load_map(preset)
    assert PolicyMap.from_json(policy_map.to_json(), preset) == policy_map
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(policy_map.to_json()))
    mine = load_map(path)
    assert (mine.observation, mine.actions) == (policy_map.observation, policy_map.actions)
    if policy_map.actions is not None:
        assert ActionSpec.from_json(policy_map.action_spec(4).to_json()) == policy_map.action_spec(4)


def test_the_maps_own_example(tmp_path):
    """The map file of the documentation: an arm that takes absolute poses with quaternions, and a gripper of 0 (open) to 255."""
    text = """{
      "observation": {
        "image_primary": {"key": "cameras/front", "layout": "CHW", "values": "0..1"},
        "proprio": {"parts": [
          {"key": "tcp", "slice": [0, 3]},
          {"key": "tcp", "slice": [3, 7], "rotation": "quaternion_wxyz"},
          {"key": "width", "size": 1, "scale": 12.5}]},
        "instruction": {"key": ["task", "prompt"]}
      },
      "actions": {"frame": "end_effector_delta_base", "control_hz": 10, "segments": [
        {"theirs": [0, 3], "names": ["x", "y", "z"], "unit": "m", "low": -0.05, "high": 0.05,
         "scale": 0.001, "reference": {"absolute": "theirs", "proprio": [0, 3]}},
        {"theirs": [3, 7], "names": ["roll", "pitch", "yaw"], "unit": "rad", "low": -0.25, "high": 0.25,
         "rotation": "quaternion_wxyz", "reference": {"absolute": "theirs", "proprio": [3, 6], "rotation": "euler_xyz"}},
        {"theirs": [7, 8], "names": ["gripper"], "unit": "open", "low": 0, "high": 1,
         "scale": -0.00392156862745098, "offset": 1, "threshold": 0.5}]}
    }"""
    (tmp_path / "arm.json").write_text(text)
    arm = load_map(tmp_path / "arm.json")
    tcp = np.array([0.4, 0.1, 0.3, 0, 1, 0, 0])
    theirs = {"cameras": {"front": np.zeros((3, 4, 4), np.float32)}, "tcp": tcp, "width": 0.08, "prompt": "pour"}
    ours = arm.observation_from_theirs(theirs)
    assert np.allclose(ours["proprio"], [0.4, 0.1, 0.3, math.pi, 0, 0, 1], atol=1e-6)
    step = np.array([[0.01, 0, 0, 0, 0, 0.1, 1], [0.01, 0, 0, 0, 0, 0.1, 0]])
    sent = arm.actions_to_theirs(step, ours["proprio"])
    assert np.allclose(sent[:, :3], [[410, 100, 300], [420, 100, 300]], atol=1e-4)
    assert np.allclose(sent[:, 7], [0, 255])
    assert np.allclose(arm.actions_from_theirs(sent, ours["proprio"]), step)


def libero_file() -> dict[str, Any]:
    return load_map("libero").to_json()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(colour=1), "unknown entry 'colour'"),
        (lambda m: m.pop("observation"), "no 'observation'"),
        (lambda m: m.update(observation=[]), "observation: must be an object"),
        (lambda m: m.update(nested="yes"), "nested is 'yes'; it must be true or false"),
        (lambda m: m["observation"].update(image={}), "ours are named image_"),
        (lambda m: m["observation"].update(image_primary="camera"), "image_primary: must be an object"),
        (lambda m: m["observation"]["image_primary"].pop("key"), "image_primary: has no 'key'"),
        (lambda m: m["observation"]["image_primary"].update(layout="WHC"), "layout is 'WHC'; it must be one of HWC, CHW"),
        (lambda m: m["observation"]["image_primary"].update(values="float"), "values is 'float'"),
        (lambda m: m["observation"]["image_primary"].update(colour="BGR"), "image_primary: has an unknown entry 'colour'"),
        (lambda m: m["observation"]["proprio"].update(slice=[3, 3]), r"slice is \[3, 3\]"),
        (lambda m: m["observation"]["proprio"].update(size=0), "size is 0"),
        (lambda m: m["observation"]["proprio"].update(scale=0), "proprio.scale is .* other than 0"),
        (lambda m: m["observation"].update(proprio={"parts": [{"key": "a"}, {"key": "b"}]}), "each needs a 'slice'"),
        (lambda m: m["observation"].update(proprio={"parts": []}), r"parts is \[\]"),
        (lambda m: m["observation"].update(proprio={"key": "a", "rotation": "rpy"}), "'rpy' is no representation"),
        (lambda m: m["observation"].update(proprio={"key": "a", "slice": [0, 4], "rotation": "axis_angle"}), "3 numbers"),
        (lambda m: m["observation"].update(instruction={"key": []}), "text or a list of texts"),
        (lambda m: m["actions"].pop("frame"), "actions: has no 'frame'"),
        (lambda m: m["actions"].update(control_hz=-1), "control_hz is -1"),
        (lambda m: m["actions"].update(segments=[]), r"segments is \[\]"),
        (lambda m: m["actions"].update(size=5), r"segments\[1\].theirs is \[3, 6\]"),
        (lambda m: m["actions"]["segments"][1].update(theirs=[2, 5]), r"segments\[1\].theirs is \[2, 5\].*apart"),
        (lambda m: m["actions"]["segments"][0].update(names=["x", "y"]), "3 numbers of theirs and 2 names"),
        (lambda m: m["actions"]["segments"][0].update(names=["x", "y", "yaw"]), "one name"),
        (lambda m: m["actions"]["segments"][0].update(scale=[1, 0, 1]), "scale is .* other than 0"),
        (lambda m: m["actions"]["segments"][0].update(low=[1, 2]), r"low is \[1, 2\].*a list of 3"),
        (lambda m: m["actions"]["segments"][0].update(low=1), "'low' must be below 'high'"),
        (lambda m: m["actions"]["segments"][0].update(high=float("nan")), "high is nan"),
        (lambda m: m["actions"]["segments"][0].update(speed=1), r"segments\[0\]: has an unknown entry 'speed'"),
        (lambda m: m["actions"]["segments"][1].update(rotation="yaw"), "'yaw' is no representation"),
        (lambda m: m["actions"]["segments"][1].update(rotation="rotation_6d"), "must have 6 and 3"),
        (lambda m: m["actions"]["segments"][1].update(threshold=0.5), "'threshold' goes with no 'rotation'"),
        (lambda m: m["actions"]["segments"][2].update(sticky=15), "'sticky' gripper"),
        (
            lambda m: m["actions"]["segments"][0].update(reference={"absolute": "theirs", "proprio": [0, 2]}),
            "must be 3 numbers",
        ),
        (lambda m: m["actions"]["segments"][0].update(reference={"absolute": "mine", "proprio": [0, 3]}), "absolute is 'mine'"),
        (lambda m: m["actions"]["segments"][1].update(reference={"absolute": "theirs", "proprio": [0, 3]}), "no 'rotation'"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, change, says):
    values = libero_file()
    change(values)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=says) as caught:
        load_map(str(path))
    assert "\n" not in str(caught.value)
    assert "mine.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", "\x00"])
def test_a_file_that_is_no_map(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.json") as caught:
        load_map(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match=r"'libera' is neither.*aloha, bridge, .*simpler_widowx"):
        load_map("libera")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observation/image": None}, "no 'observation/image'; it has observation/wrist_image, observation/state, prompt"),
        ({"prompt": None}, "no 'prompt'"),
        ({"prompt": 3}, "'prompt' must be text, not int"),
        ({"observation/state": None}, "no 'observation/state'"),
        ({"observation/state": np.zeros(7)}, r"'observation/state' has shape \[7\]; the map says 8 numbers"),
        ({"observation/state": np.zeros((1, 8))}, "shape"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": ["a"] * 8}, "array of numbers"),
        ({"observation/state": [[1], [2, 3]]}, "array of numbers"),
        ({"observation/image": PICTURE.transpose(2, 0, 1)}, r"shape \[3, 5, 7\]; the map says HWC"),
        ({"observation/image": PICTURE[0]}, "the map says HWC"),
        ({"observation/image": PICTURE[None]}, "the map says HWC"),
        ({"observation/image": PICTURE.astype(np.float32)}, "is float32; the map says uint8"),
    ],
)
def test_a_wrong_observation_is_one_line(change, says):
    whole = {"observation/image": PICTURE, "observation/wrist_image": PICTURE, "observation/state": np.zeros(8), "prompt": "go"}
    theirs = {key: value for key, value in {**whole, **change}.items() if value is not None}
    with pytest.raises(InputError, match=says) as caught:
        load_map("libero").observation_from_theirs(theirs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.full((3, 2, 2), 200.0, np.float32), "values in 200..200; the map says 0..1"),
        (np.full((3, 2, 2), np.nan, np.float32), "values in nan..nan"),
        (np.zeros((3, 2, 2), np.uint8), "is uint8; the map says float"),
        (np.zeros((2, 2, 3), np.float32), "the map says CHW"),
    ],
)
def test_a_wrong_float_picture_is_one_line(picture, says):
    with pytest.raises(InputError, match=says):
        load_map("lerobot").observation_from_theirs({"observation.images.top": picture})


def test_what_ours_lacks_is_said_too():
    libero = load_map("libero")
    ours = {"image_primary": PICTURE, "image_wrist": PICTURE, "proprio": np.zeros(8, np.float32), "instruction": "go"}
    for change, says in (
        ({"image_wrist": None}, "no 'image_wrist'"),
        ({"instruction": None}, "no 'instruction'"),
        ({"proprio": np.zeros(6)}, "'proprio' has shape"),
        ({"image_primary": PICTURE / 255}, "'image_primary' must be uint8"),
    ):
        given_observation = {key: value for key, value in {**ours, **change}.items() if value is not None}
        with pytest.raises(InputError, match=says):
            libero.observation_to_theirs(given_observation)
    for wrong in (np.zeros((4, 6)), np.zeros(8), np.array("a"), np.zeros(())):
        with pytest.raises(InputError, match=r"the map says \[..., 7\]"):
            libero.actions_from_theirs(wrong)
        with pytest.raises(InputError, match=r"the map says \[..., 7\]"):
            libero.actions_to_theirs(wrong)


class Theirs:
    """A policy of LIBERO's convention: half of full scale forward, closing the gripper; it moves as far as its proprio says."""

    action_spec = ActionSpec(tuple("abcdefg"), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "unknown", 0.0, 3)
    observation_spec = ObservationSpec(vectors={"proprio": 8})

    def sample(self, observations, num_samples, generator=None):
        return torch.tensor([0.5, 2.0, 0, 0, 0, 0, 1]).expand(len(observations["instruction"]), num_samples, 3, 7)

    def reset(self):
        pass


def test_a_mapped_policy_is_one_of_ours():
    mapped = MappedPolicy(Theirs(), load_map("libero"))
    assert isinstance(mapped, Policy)
    assert not isinstance(mapped, Encodes)
    assert not isinstance(mapped, Trainable)
    assert mapped.action_spec == load_map("libero").action_spec(3)
    actions = mapped.sample(mapped.observation_spec.example(2), 4)
    assert actions.shape == (2, 4, 3, 7)
    torch.testing.assert_close(actions[1, 3, 2], torch.tensor([0.025, 0.05, 0, 0, 0, 0, 0]))
    for wrong, says in (("droid", "have 8 numbers, the policy's 7"), ("simpler_google_robot", "remembers")):
        with pytest.raises(InputError, match=says):
            MappedPolicy(Theirs(), load_map(wrong))
    assert MappedPolicy(Theirs(), load_map("lerobot")).action_spec == Theirs.action_spec


def affine(store: Any, scale: float = 2.0) -> PolicyMap:
    """For the actions of the store: ours are `scale` times theirs, its gripper turned round."""
    names, size = store.action["names"], len(store.action["names"])
    low, high = np.array(store.action["low"]), np.array(store.action["high"])
    scales, offsets = [scale] * (size - 1) + [-1.0], [0.0] * (size - 1) + [1.0]
    ends = np.sort([low * scales + offsets, high * scales + offsets], axis=0)
    segment = {"theirs": [0, size], "names": names, "unit": "m", "low": ends[0].tolist(), "high": ends[1].tolist()}
    actions = {"frame": "renamed", "control_hz": 5, "segments": [{**segment, "scale": scales, "offset": offsets}]}
    return PolicyMap.from_json({"observation": {}, "actions": actions})


def test_what_a_policy_can_do_its_mapped_one_can(store):
    policy = make(store, GaussianConfig(VECTORS, hidden=16))
    policy_map = affine(store)
    mapped = MappedPolicy(policy, policy_map)
    assert all(isinstance(mapped, ability) for ability in (Policy, Encodes, Trainable, HasLogProb))
    assert list(mapped.parameters()) == list(policy.parameters())
    seen = {**mapped.observation_spec.example(3), "instruction": ["go left", "go right", "go left"]}
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    ours, theirs = mapped.sample(seen, 4, generators[0]), policy.sample(seen, 4, generators[1])
    expected = torch.from_numpy(policy_map.actions_from_theirs(theirs.numpy()))
    torch.testing.assert_close(ours, expected)
    assert torch.equal(mapped.sample_encoded(mapped.encode(seen), 4, generators[2]), ours)
    weights = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(mapped.loss(seen, ours[:, 0], weights), policy.loss(seen, theirs[:, 0], weights))
    # Twice as large in every dimension but the gripper is half as dense.
    dimensions = ours.shape[2] * (ours.shape[3] - 1)
    torch.testing.assert_close(
        mapped.log_prob(seen, ours), policy.log_prob(seen, theirs) - dimensions * math.log(2), rtol=1e-4, atol=1e-3
    )


def test_no_density_where_turns_are_converted():
    class Likely(Theirs):
        def log_prob(self, observations, actions):
            return actions.sum((-1, -2))

    assert not isinstance(MappedPolicy(Likely(), load_map("libero")), HasLogProb)
    assert isinstance(MappedPolicy(Likely(), load_map("bridge")), HasLogProb)


def test_a_mapped_policy_starts_from_its_proprio():
    class Poses(Theirs):
        action_spec = ActionSpec(tuple("abcdefg"), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "unknown", 0.0, 2)

        def sample(self, observations, num_samples, generator=None):
            pose = torch.tensor([[0.1, 0, 0, 1, 0, 0, 0], [0.3, 0, 0, 1, 0, 0, 0]])
            return pose.expand(len(observations["instruction"]), num_samples, 2, 7)

    mapped = MappedPolicy(Poses(), position_map("theirs", "previous", "base"))
    proprio = np.zeros((2, 6), np.float32)
    proprio[1, 0] = 0.5
    actions = mapped.sample({"proprio": proprio, "instruction": ["a", "b"]}, 3)
    torch.testing.assert_close(actions[:, 2, :, 0], torch.tensor([[0.1, 0.2], [-0.4, 0.2]]))
    windowed = {"proprio": proprio[:, None], "instruction": ["a", "b"], "timestep_pad_mask": np.ones((2, 1), bool)}
    torch.testing.assert_close(mapped.sample(windowed, 3), actions)


def test_a_spec_names_its_map(store, tmp_path):
    training = TrainingConfig(steps=1, batch_size=4)
    train_policy(store.path, tmp_path / "run", GaussianConfig(VECTORS, hidden=8), CloningConfig(), training)
    (tmp_path / "mine.json").write_text(json.dumps(affine(store, 1.0).to_json()))
    policy = load_policy(f"{tmp_path / 'run'}?map={tmp_path / 'mine.json'}")
    assert policy.action_spec.frame == "renamed"
    with pytest.raises(InputError, match="neither a map file nor a preset"):
        load_policy(f"{tmp_path / 'run'}?map=liberty")
