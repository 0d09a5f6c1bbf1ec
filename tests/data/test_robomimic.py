"""robomimic's files: what they hold, what robosuite's settings say of their actions, damage, and the writer."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.episode import Episode
from data.errors import InputError
from data.formats import open_format
from data.formats.robomimic_writer import RobomimicWriter
from data.open_x.draft import draft
from data.quality.check import check
from data.rotations import convert
from data.source import open_dataset, read_episodes
from tests.data import robomimic_files as files
from tests.data.reading import fails

ACTION = {
    "names": ["x", "y", "z", "gripper"],
    "units": ["m", "m", "m", "open"],
    "low": [-0.1, -0.1, -0.1, 0.0],
    "high": [0.1, 0.1, 0.1, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 10.0,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return files.write(tmp_path / "square.hdf5", args=files.env_args())


def read(path: Path, split: str = "train", indices: range | None = None) -> list[Episode | InputError]:
    source = open_dataset(path, split)
    return list(source.read(indices or range(source.length)))


def test_episodes_hold_what_is_in_the_file(file: Path) -> None:
    source = open_dataset(file)
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


def test_a_dataset_travels_to_other_processes_and_reads_ranges(file: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_format(file)))
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


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_file_of_a_folder_is_left_out_alone(tmp_path: Path, content: bytes | None) -> None:
    for name in ("a.hdf5", "b.hdf5", "c.hdf5"):
        files.write(tmp_path / name, 3, files.env_args())
    damaged = tmp_path / "b.hdf5"
    damaged.write_bytes(damaged.read_bytes()[:5000] if content is None else content)
    source = open_dataset(tmp_path)
    items = list(source.read(range(source.length)))
    assert [isinstance(item, Episode) for item in items] == [True] * 3 + [False] + [True] * 3
    for part in (str(damaged), "not a readable HDF5 file", "--skip-bad"):
        assert part in str(items[3])
    (finding,) = (finding for finding in check(source) if finding.fault == "unusable-episode")
    assert "b.hdf5" in str(finding)
    for name in ("a.hdf5", "c.hdf5"):
        (tmp_path / name).write_bytes(b"")
    fails(lambda: open_dataset(tmp_path), "none of its 3 files can be read", "a.hdf5: not a readable HDF5 file")


@pytest.mark.parametrize("known", [True, False])
def test_demonstrations_of_other_sizes_are_named_and_left_out(tmp_path: Path, known: bool) -> None:
    file = files.write(tmp_path / "mixed.hdf5", 6, files.env_args(*([] if known else [None])))
    with h5py.File(file, "a") as opened:
        for number, name, width in ((2, "actions", 6), (3, "obs/object", 11), (4, "next_obs/robot0_eef_pos", 2)):
            demo = opened[f"data/demo_{number}"]
            del demo[name]
            demo[name] = np.zeros((4 + number, width))
    items = read(file)
    assert [number for number, item in enumerate(items) if isinstance(item, InputError)] == [2, 3, 4]
    for item, name in zip(items[2:5], ("actions is [6]", "obs/object is [11]", "next_obs/robot0_eef_pos is [2]"), strict=True):
        assert f"{name} a step" in str(item)
        assert "(mixed.hdf5 demo_" in str(item)
        assert str(item).endswith("drop it with --skip-bad")


def test_instructions_of_episodes(file: Path) -> None:
    with h5py.File(file, "a") as opened:
        opened["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": "open the left door", "layout_id": 3})
        opened["data/demo_1"].attrs["language_instruction"] = "öffne die Tür"
    instructions = [episode.instruction for episode in read_episodes(open_dataset(file))]
    assert instructions[:3] == ["open the left door", "öffne die Tür", "nut assembly square"]


def _remove_observation(demo: h5py.Group) -> None:
    del demo["obs/agentview_image"]


def _ragged(demo: h5py.Group) -> None:
    value = demo["obs/object"][:-1]
    del demo["obs/object"]
    demo["obs/object"] = value


def _ragged_next(demo: h5py.Group) -> None:
    del demo["next_obs/robot0_eef_pos"]


def _short_rewards(demo: h5py.Group) -> None:
    del demo["rewards"]
    demo["rewards"] = [0.0]


def _not_a_number(demo: h5py.Group) -> None:
    demo["actions"][2, 1] = np.nan


def _text_actions(demo: h5py.Group) -> None:
    count = len(demo["actions"])
    del demo["actions"]
    demo["actions"] = np.array([[b"a"] * 7] * count)


def _float_images(demo: h5py.Group) -> None:
    for group in ("obs", "next_obs"):
        values = demo[f"{group}/agentview_image"][:] / 255.0
        del demo[f"{group}/agentview_image"]
        demo[f"{group}/agentview_image"] = values


def _declared_longer(demo: h5py.Group) -> None:
    demo.attrs["num_samples"] = 99


def _empty(demo: h5py.Group) -> None:
    for name in list(demo):
        del demo[name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_observation, "no 'obs/agentview_image'"),
        (_ragged, "obs/object has 6 steps, actions 7"),
        (_ragged_next, "no 'next_obs/robot0_eef_pos'"),
        (_short_rewards, "rewards has 1 steps, actions 7"),
        (_not_a_number, "action is not finite at step 2"),
        (_text_actions, "actions is of |S1, not numbers"),
        (_float_images, "image_primary is float64"),
        (_declared_longer, "has 7 actions, its num_samples says 99"),
        (_empty, "no 'actions'"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_come(file: Path, damage: Callable[[Any], None], message: str) -> None:
    with h5py.File(file, "a") as opened:
        damage(opened["data/demo_3"])
    episodes = read(file)
    assert [number for number, item in enumerate(episodes) if isinstance(item, InputError)] == [3]
    assert message in str(episodes[3])
    assert "square train #3 (square.hdf5 demo_3)" in str(episodes[3])
    assert "\n" not in str(episodes[3])


def test_a_corrupt_chunk_is_named(file: Path) -> None:
    with h5py.File(file) as opened:
        chunk = opened["data/demo_5/obs/agentview_image"].id.get_chunk_info(0)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset + 2 : chunk.byte_offset + 60] = bytes(58)
    file.write_bytes(content)
    episodes = read(file)
    assert [number for number, item in enumerate(episodes) if isinstance(item, InputError)] == [5]
    assert "demo_5): obs/agentview_image cannot be read" in str(episodes[5])


def test_a_mask_may_name_what_is_not_there(tmp_path: Path) -> None:
    file = files.write(tmp_path / "a.hdf5", 3, files.env_args(), masks={"valid": ["demo_1", "demo_7"]})
    first, second = read(file, "valid")
    assert isinstance(first, Episode)
    assert str(second).startswith("a valid #1 (a.hdf5 demo_7): the mask 'valid' names it, but it is not in the file")


def test_files_that_are_none(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(content[: len(content) // 2])
    fails(lambda: open_dataset(tmp_path / "cut.hdf5"), "cut.hdf5: not a readable HDF5 file", "truncated", "copy it again")
    (tmp_path / "text.hdf5").write_text("hello")
    fails(lambda: open_dataset(tmp_path / "text.hdf5"), "text.hdf5: not a readable HDF5 file")
    with h5py.File(tmp_path / "aloha.hdf5", "w") as opened:
        opened["action"], opened["observations/qpos"] = np.zeros((5, 14)), np.zeros((5, 14))
    fails(lambda: open_dataset(tmp_path / "aloha.hdf5"), "no episodes under `data` (action, observations)")
    with h5py.File(tmp_path / "states.hdf5", "w") as opened:
        opened["data/demo_1/actions"], opened["data/demo_1/states"] = np.zeros((5, 7)), np.zeros((5, 32))
    fails(lambda: open_dataset(tmp_path / "states.hdf5"), "dataset_states_to_obs.py")
    fails(lambda: open_dataset(file, "test"), "no split 'test'")
    with h5py.File(file, "a") as opened:
        opened["data"].attrs["env_args"] = "{"
    fails(lambda: open_dataset(file), "attribute env_args is not valid JSON")


def same(a: Episode, b: Episode) -> None:
    assert (a.instruction, a.success, a.terminated) == (b.instruction, b.success, b.terminated)
    assert set(a.observations) == set(b.observations)
    for ours, theirs in [(a.actions, b.actions), *((a.observations[key], b.observations[key]) for key in a.observations)]:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert {**a.info, "source": a.source}.items() <= b.info.items()
    for ours, theirs in ((a.instruction_embedding, b.instruction_embedding), (a.rewards, b.rewards)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_written_reads_back(tmp_path: Path, episodes: list[Episode]) -> None:
    told = [
        replace(e, rewards=np.arange(len(e), dtype=np.float32), terminated=bool(i % 2), info={"note": "odd" * (i % 2)})
        for i, e in enumerate(episodes)
    ]
    for name, given in (("plain.hdf5", episodes), ("told.hdf5", told)):
        with RobomimicWriter(tmp_path / name, ACTION) as writer:
            for number, episode in enumerate(given):
                writer.add(episode, "valid" if number % 4 == 0 else "train")
        assert open_format(tmp_path / name).splits == {"train": 9, "valid": 3}
        for split, chosen in (("valid", given[::4]), ("train", [e for i, e in enumerate(given) if i % 4])):
            source = open_dataset(tmp_path / name, split)
            assert source.action == ACTION
            for episode, back in zip(chosen, read_episodes(source), strict=True):
                same(episode, back)


def test_the_file_is_what_robomimic_looks_for(tmp_path: Path, episodes: list[Episode]) -> None:
    """The reads of robomimic 0.3's SequenceDataset and get_env_metadata_from_dataset."""
    with RobomimicWriter(tmp_path / "out.hdf5", ACTION) as writer:
        for episode in episodes:
            writer.add(episode)
    with h5py.File(tmp_path / "out.hdf5", "r", swmr=True, libver="latest") as file:
        metadata = json.loads(file["data"].attrs["env_args"])
        assert set(metadata) == {"env_name", "type", "env_kwargs"}
        demos = [element.decode("utf-8") for element in np.array(file["mask/train"][:])]
        assert sorted(demos) == sorted(file["data"])
        assert file["data"].attrs["total"] == sum(map(len, episodes))
        for name, episode in zip(demos, episodes, strict=True):
            demo = file[f"data/{name}"]
            length = demo.attrs["num_samples"]
            assert length == len(episode)
            for key in ("actions", "rewards", "dones", "states"):
                assert len(demo[key][()].astype("float32")) == length
            assert set(demo["obs"]) == set(demo["next_obs"]) == set(episode.observations)
            for key, value in episode.observations.items():
                np.testing.assert_array_equal(demo[f"obs/{key}"][1:], demo[f"next_obs/{key}"][:-1])
                np.testing.assert_array_equal(demo[f"next_obs/{key}"][-1], value[-1])
            assert demo["rewards"][-1] == demo["dones"][-1] == bool(episode.success)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, episodes: list[Episode], file: Path) -> None:
    out = tmp_path / "out" / "made.hdf5"

    def stop() -> None:
        with RobomimicWriter(out, ACTION, overwrite=True) as writer:
            writer.add(episodes[0])
            raise InputError("stopped")

    fails(stop, "stopped")
    assert list(out.parent.iterdir()) == []
    fails(lambda: RobomimicWriter(out, ACTION).__enter__().__exit__(None, None, None), "no episode was written")
    with RobomimicWriter(out, ACTION) as writer:
        writer.add(episodes[0])
        different = Episode({"proprio": np.zeros((4, 2), np.float32)}, np.zeros((3, 4), np.float32), "x", source="other #1")
        fails(lambda: writer.add(different), "other #1: differs from the first episode in", "proprio")
        fails(lambda: writer.add(Episode({}, np.zeros((3, 2), np.float32), "x", source="other #2")), "other #2: 2 action")
    before = out.read_bytes()
    fails(lambda: RobomimicWriter(out, ACTION).__enter__(), "exists", "--overwrite")
    fails(stop, "stopped")
    assert out.read_bytes() == before
    foreign = shutil.copy(file, tmp_path / "foreign.hdf5")
    fails(lambda: RobomimicWriter(foreign, ACTION, overwrite=True).__enter__(), "exists and is not a file of robot-rl")
    fails(lambda: RobomimicWriter(tmp_path / "made.zarr", ACTION), "end in .hdf5")
