"""Maps: what each preset states of the robot or the data set that it is named after."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.errors import InputError
from policies.maps import StickyGripper, load_map
from tests.policies.map_examples import PICTURE, our_actions


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
