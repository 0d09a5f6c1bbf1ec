"""robomimic's files: what they hold, and what robosuite's settings say of their actions."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data.episode import Episode
from data.formats import open_format
from data.open_x.draft import draft
from data.rotations import convert
from data.source import open_dataset, read_episodes
from tests.data import robomimic_files as files
from tests.data.reading import fails


def test_episodes_hold_what_is_in_the_file(robomimic_file: Path) -> None:
    source = open_dataset(robomimic_file)
    assert source.length == 12
    for number, episode in enumerate(read_episodes(source)):
        length = 4 + number
        theirs, actions = files.observations(number, length), files.actions(number, length)
        assert episode.source == f"square train #{number} (square.hdf5 demo_{number})"
        assert len(episode) == length
        np.testing.assert_array_equal(episode.observations["image_primary"], theirs["agentview_image"])
        np.testing.assert_array_equal(episode.observations["image_wrist"], theirs["robot0_eye_in_hand_image"])
        proprio = np.concatenate([theirs[f"robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")], axis=1)
        np.testing.assert_array_equal(episode.observations["proprio"], proprio.astype(np.float32))
        np.testing.assert_array_equal(episode.observations["state"], theirs["object"].astype(np.float32))
        np.testing.assert_allclose(episode.actions[:, :3], 0.05 * actions[:, :3], rtol=1e-6)
        turns = convert(0.5 * actions[:, 3:6], "axis_angle", "euler_xyz")
        np.testing.assert_allclose(episode.actions[:, 3:6], turns, atol=1e-6)
        np.testing.assert_array_equal(episode.actions[:, 6], actions[:, 6] < 0)
        assert episode.instruction == "nut assembly square"
        assert episode.success is bool(number % 2)
        assert episode.rewards is not None
        assert episode.rewards.tolist() == [0.0] * (length - 1) + [float(number % 2)]
        # `dones` mark the end of each recording, failed ones too.
        assert episode.terminated is None


def test_without_next_observations_the_last_action_has_no_outcome(tmp_path: Path) -> None:
    files.write(tmp_path / "old.hdf5", count=3, args=files.env_args(), next_obs=False)
    for number, episode in enumerate(read_episodes(open_dataset(tmp_path / "old.hdf5"))):
        assert len(episode) == 3 + number
        theirs = files.observations(number, 4 + number)["object"][:-1]
        np.testing.assert_array_equal(episode.observations["state"], theirs.astype(np.float32))
        assert episode.rewards is not None
        assert episode.rewards.sum() == number % 2


def test_masks_are_splits_in_the_order_of_numbers(tmp_path: Path) -> None:
    masks = {"valid": ["demo_10", "demo_2"], "20_percent": ["demo_1"]}
    file = files.write(tmp_path / "a.hdf5", args=files.env_args(), masks=masks)
    assert open_format(file).splits == {"train": 12, "valid": 2, "20_percent": 1}
    assert [len(episode) for episode in read_episodes(open_dataset(file, "valid"))] == [6, 14]
    file = files.write(tmp_path / "b.hdf5", args=files.env_args(), masks={**masks, "train": ["demo_0", "demo_11"]})
    assert open_format(file).splits == {"train": 2, "valid": 2, "20_percent": 1, "all": 12}
    assert [len(episode) for episode in read_episodes(open_dataset(file))] == [4, 15]


def test_a_dataset_travels_to_other_processes_and_reads_ranges(robomimic_file: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_format(robomimic_file)))
    episodes = list(dataset.episodes("train", range(5, 8)))
    # After the last of them was given out, they still read.
    assert [len(episode.step("actions")) for episode in episodes] == [9, 10, 11]
    assert episodes[0].step("obs/agentview_image", limit=2).shape == (2, 20, 24, 3)


def describe(tmp_path: Path, args: dict[str, Any] | None, size: int = 7) -> dict[str, Any]:
    path = files.write(tmp_path / "described.hdf5", count=2, args=args, size=size, shapes={"object": (3,)})
    return open_format(path).description


def test_controllers(tmp_path: Path) -> None:
    """What robosuite 1.4 and 1.5 do with the numbers that they are given."""
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    composite = {key: value for key, value in files.OSC_POSE.items() if key != "control_delta"}
    composite |= {"input_type": "delta", "input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    for parts in ({"right": composite}, {"arms": {"right": composite}}):
        action = describe(tmp_path, files.env_args({"type": "BASIC", "body_parts": parts}))["action"]
        assert (action["names"], action["frame"]) == (names, "end_effector_delta_world")
        assert (action["low"][:4], action["high"][3:]) == ([-0.05, -0.05, -0.05, -0.5], [0.5, 0.5, 0.5, 1.0])

    position = {**files.OSC_POSE, "type": "OSC_POSITION", "output_max": 0.1, "output_min": -0.1, "input_max": 2, "input_min": 0}
    description = describe(tmp_path, files.env_args(position), 4)
    assert description["actions"][0] == {"key": "actions[0:3]", "scale": 0.1, "offset": -0.1}
    assert description["action"]["names"] == ["x", "y", "z", "gripper"]

    joints = {**files.OSC_POSE, "type": "JOINT_VELOCITY", "output_max": [1.0] * 7, "output_min": [-1.0] * 7}
    description = describe(tmp_path, files.env_args(joints), 8)
    assert description["actions"] == ["actions[0:7]", {"key": "actions[7:8]", "scale": -0.5, "offset": 0.5}]
    assert description["action"]["units"] == ["rad/s"] * 7 + ["open"]
    assert description["action"]["frame"] == "joint_velocity"

    two = describe(tmp_path, files.env_args(robots=["Panda", "Panda"]), 14)["action"]
    assert two["names"] == [f"robot{arm}_{name}" for arm in (0, 1) for name in names]

    mobile = describe(tmp_path, files.env_args({"type": "HYBRID_MOBILE_BASE", "body_parts": {"right": composite}}), 12)
    assert mobile["action"]["names"] == [*names, *(f"action_{index}" for index in range(7, 12))]
    assert mobile["notes"] == ["actions 7 to 11 (base, torso, mode) are unnamed; their limits are those of the data"]


def test_absolute_and_unknown_controllers_are_limited_by_the_data(tmp_path: Path) -> None:
    values = np.concatenate([files.actions(number, 4 + number) for number in range(2)])
    description = describe(tmp_path, files.env_args({**files.OSC_POSE, "control_delta": False}))
    assert description["action"]["frame"] == "end_effector_base"
    np.testing.assert_array_equal(description["action"]["high"][:6], values.max(axis=0)[:6])
    assert description["actions"][0] == "actions[0:3]"
    for controller in ({"type": "WHOLE_BODY_IK"}, {**files.OSC_POSE, "impedance_mode": "variable"}, {}, None):
        description = describe(tmp_path, files.env_args(controller))
        assert description["action"]["names"] == [f"action_{index}" for index in range(7)]
        assert (description["action"]["frame"], description["actions"]) == ("unknown", ["actions[0:7]"])
        np.testing.assert_array_equal(description["action"]["low"], values.min(axis=0))
        assert "the file does not say what the actions are" in description["notes"][0]


def test_what_the_file_lacks_can_be_said_beside_it(tmp_path: Path) -> None:
    file = files.write(tmp_path / "real.hdf5", count=2)
    fails(lambda: open_dataset(file), "no description of dataset 'real'", "robot_rl.json", "obs/agentview_image")
    assert draft(open_format(file))["instruction"] == {"text": None}  # none of the places of a text has one
    beside = tmp_path / "real.robot_rl.json"
    beside.write_text(json.dumps({"action": {"control_hz": 10.0}, "instruction": {"text": "put the nut on"}}))
    episode = next(read_episodes(open_dataset(file)))
    assert episode.instruction == "put the nut on"
    np.testing.assert_array_equal(episode.actions, files.actions(0, 4).astype(np.float32))
    beside.rename(tmp_path / "robot_rl.json")
    assert open_dataset(file).action["control_hz"] == 10.0
    (tmp_path / "robot_rl.json").write_text('{"action": {"names": ["a"]}}')
    fails(lambda: open_dataset(file), "action description")
    (tmp_path / "robot_rl.json").write_text("{")
    fails(lambda: open_dataset(file), "robot_rl.json: not a readable description")


def test_a_folder_of_tasks_as_libero_comes(tmp_path: Path) -> None:
    shapes = {"agentview_rgb": (8, 8, 3), "eye_in_hand_rgb": (8, 8, 3), "ee_pos": (3,), "ee_ori": (3,), "gripper_states": (2,)}
    tasks = {"KITCHEN_open_demo.hdf5": "open the drawer", "STUDY_pick_demo.hdf5": "pick up the book"}
    for name, task in tasks.items():
        problem = json.dumps({"problem_name": "libero", "language_instruction": task})
        args = files.env_args(name=name.split("_")[0])
        attributes = {"problem_info": problem, "bddl_file_name": "open.bddl", "macros_image_convention": "opengl"}
        files.write(tmp_path / name, 3, args, next_obs=False, shapes=shapes, attributes=attributes)
    source = open_dataset(tmp_path)
    assert [episode.instruction for episode in read_episodes(source)] == [task for task in tasks.values() for _ in range(3)]
    first = next(read_episodes(source))
    assert set(first.observations) == {"image_primary", "image_wrist", "proprio"}
    # LIBERO's pictures are upside down.
    theirs = files.observations(0, 4, shapes)["agentview_rgb"][:-1]
    np.testing.assert_array_equal(first.observations["image_primary"], theirs[:, ::-1, ::-1])
    assert "image_wrist: obs/eye_in_hand_rgb: turned by 180 degrees" in source.changes
    assert [len(episode) for episode in source.read(range(2, 4)) if isinstance(episode, Episode)] == [5, 3]
    files.write(tmp_path / "other.hdf5", 1, files.env_args({**files.OSC_POSE, "output_max": 1, "control_delta": False}))
    fails(lambda: open_dataset(tmp_path), "other.hdf5: has other actions")


def test_instructions_of_episodes(robomimic_file: Path) -> None:
    with h5py.File(robomimic_file, "a") as opened:
        opened["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": "open the left door", "layout_id": 3})
        opened["data/demo_1"].attrs["language_instruction"] = "öffne die Tür"
    instructions = [episode.instruction for episode in read_episodes(open_dataset(robomimic_file))]
    assert instructions[:3] == ["open the left door", "öffne die Tür", "nut assembly square"]
