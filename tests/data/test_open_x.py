"""Open-X: every dataset of the registry standardises, some by value; parts, mixes, and drafts of descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data import Episode, InputError, open_dataset, read_episodes
from data.formats import open_format
from data.formats.base import Feature
from data.open_x.draft import draft
from data.open_x.mix import named_mixes, parse_mix
from data.open_x.parts import Part, Slice, absolute_gripper, assemble, parse_parts
from data.open_x.registry import registry
from data.open_x.rule import make_rule
from tests.data.rlds_files import Zlib, write_rlds

STEPS = 8
# Where slices count from the end, the size of the feature matters.
SIZES = {
    "nyu_franka_play_dataset_converted_externally_to_rlds": {"action": 15, "observation/state": 13},
    "stanford_hydra_dataset_converted_externally_to_rlds": {"observation/state": 27},
    "furniture_bench_dataset_converted_externally_to_rlds": {"action": 8, "observation/state": 35},
    "kaist_nonprehensile_converted_externally_to_rlds": {"observation/state": 21},
    "cmu_playing_with_food": {"action": 8},
    "cmu_play_fusion": {"action": 9},
    "language_table": {"observation/instruction": 512},
}


def synthetic(name: str, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """An episode with the features that the registry's entry reads, under the dataset's own names."""
    rng, entry = np.random.default_rng(seed), registry()[name]
    parts = parse_parts(entry["actions"], name)
    for ours, theirs in entry["observations"].items():
        parts += () if ours.startswith("image_") else parse_parts(theirs, name)
    slices = [item for part in parts for item in (part.key, part.delta) if item is not None and item.name != "next"]
    episode: dict[str, Any] = {"is_first": np.arange(steps) == 0, "reward": np.float32(np.arange(steps) == steps - 1)}
    for item in slices:
        sizes = [max(abs(other.start or 0), abs(other.stop or 0)) for other in slices if other.name == item.name]
        last = any(other.name == item.name and (other.start or 0) < 0 for other in slices)
        size = SIZES.get(name, {}).get(item.name, max(sizes) + last)
        whole_action = item.name.startswith("action/") and not size
        shape = (steps,) if whole_action else (steps, size or 8)
        episode[item.name] = rng.uniform(0, 1, shape).astype(np.float32)
    for ours, theirs in entry["observations"].items():
        if ours.startswith("image_"):
            episode[theirs] = rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)
    instruction = entry.get("instruction", "language_instruction")
    if name == "language_table":
        episode[instruction] = np.tile(np.pad([ord(c) for c in "push the cube"], (0, 499)).astype(np.int32), (steps, 1))
    else:
        episode[instruction] = ["push the cube"] * steps
    if "step" in entry.get("success", {}):
        episode[entry["success"]["step"]] = np.arange(steps) > steps - 3
    return episode


def read(folder: Path, name: str, episode: dict[str, Any], **metadata: str) -> Episode:
    return next(read_episodes(open_dataset(write_rlds(folder, name, [episode], [metadata]))))


def test_registry_is_large_and_its_mixes_are_in_it() -> None:
    assert len(registry()) >= 25
    for mix in named_mixes().values():
        assert set(mix) <= set(registry())


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_dataset_standardises(tmp_path: Path, name: str) -> None:
    source = open_dataset(write_rlds(tmp_path, name, [synthetic(name, seed, 16) for seed in range(2)]))
    entry = registry()[name]
    for episode in read_episodes(source):
        steps = len(range(16)[entry.get("first_step", 0) :: entry.get("every", 1)])
        assert episode.actions.shape == (steps - 1, len(entry["action"]["names"]))
        assert set(episode.observations) == set(entry["observations"])
        assert episode.instruction == "push the cube"
        gripper = episode.actions[:, entry["action"]["names"].index("gripper")] if "gripper" in entry["action"]["names"] else 0
        assert ((gripper >= 0) & (gripper <= 1)).all() if isinstance(gripper, np.ndarray) else True
    assert source.changes
    assert all("\n" not in line for line in source.changes)


def relative_to_absolute(command: np.ndarray) -> list[float]:
    """Octo's scan, step by step."""
    sign = [1 if value < -0.1 else -1 if value > 0.1 else 0 for value in command]
    carry = next((-value for value in sign if value), 1)
    result = []
    for value in sign:
        carry = value or carry
        result.append(carry / 2 + 0.5)
    return result


@given(st.lists(st.sampled_from([-1.0, -0.05, 0.0, 0.05, 1.0]), min_size=1, max_size=20))
def test_relative_grippers_agree_with_the_published_scan(values: list[float]) -> None:
    np.testing.assert_array_equal(absolute_gripper(np.float32(values)), relative_to_absolute(np.float32(values)))


def test_fractal_by_value(tmp_path: Path) -> None:
    raw = synthetic("fractal20220817_data")
    raw["action/gripper_closedness_action"] = np.float32([0, 0, 1, 0, 0, -1, 0, 0])[:, None]
    episode = read(tmp_path, "fractal20220817_data", raw)
    np.testing.assert_array_equal(episode.actions[:, :3], raw["action/world_vector"][:-1])
    np.testing.assert_array_equal(episode.actions[:, 3:6], raw["action/rotation_delta"][:-1])
    np.testing.assert_array_equal(episode.actions[:, 6], [1, 1, 0, 0, 0, 1, 1])
    proprio = [*raw["observation/base_pose_tool_reached"].T, *raw["observation/gripper_closed"].T]
    np.testing.assert_array_equal(episode.observations["proprio"].T, proprio)
    np.testing.assert_array_equal(episode.observations["image_primary"], raw["observation/image"])
    assert episode.success is True


def test_kuka_by_value_with_its_compressed_poses(tmp_path: Path) -> None:
    raw = synthetic("kuka")
    for key in ("observation/clip_function_input/base_pose_tool_reached", "observation/gripper_closed"):
        raw[key] = raw[key].view(Zlib)
    raw["action/gripper_closedness_action"] = np.float32([0, -1, 0, 1, 0, 0, 0, 0])[:, None]
    episode = read(tmp_path, "kuka", raw)
    np.testing.assert_array_equal(episode.actions[:, 6], [0, 1, 1, 0, 0, 0, 0])
    pose, closed = raw["observation/clip_function_input/base_pose_tool_reached"], raw["observation/gripper_closed"]
    np.testing.assert_array_equal(episode.observations["proprio"], np.concatenate([pose, closed], axis=1))
    assert episode.success is True


def test_roboturk_by_value(tmp_path: Path) -> None:
    raw = synthetic("roboturk")
    raw["action/gripper_closedness_action"] = np.float32([-1, 1, 0.25, 2, 0, 0.5, 1, 1])[:, None]
    np.testing.assert_array_equal(read(tmp_path, "roboturk", raw).actions[:, 6], [1, 0, 0.75, 0, 1, 0.5, 0])


def test_bc_z_by_value(tmp_path: Path) -> None:
    raw = synthetic("bc_z")
    raw["action/future/xyz_residual"] = np.random.default_rng(1).normal(size=(STEPS, 30)).astype(np.float32)
    raw["action/future/target_close"] = np.int64([0, 0, 1, 1, 0, 1, 0, 0])[:, None].repeat(10, axis=1)
    episode = read(tmp_path, "bc_z", raw)
    np.testing.assert_array_equal(episode.actions[:, :3], raw["action/future/xyz_residual"][:-1, :3])
    np.testing.assert_array_equal(episode.actions[:, 3:6], raw["action/future/axis_angle_residual"][:-1, :3])
    np.testing.assert_array_equal(episode.actions[:, 6], [1, 1, 0, 0, 1, 0, 1])


def test_droid_by_value_and_which_of_it_succeeded(tmp_path: Path) -> None:
    raw = synthetic("droid")
    episode = read(tmp_path, "droid", raw, file_path="/r2d2/ILIAD/failure/2023/trajectory.h5")
    np.testing.assert_array_equal(episode.actions[:, :6], raw["action_dict/cartesian_velocity"][:-1])
    np.testing.assert_allclose(episode.actions[:, 6], 1 - raw["action_dict/gripper_position"][:-1, 0], atol=1e-7)
    assert episode.success is False


def test_furniture_bench_turns_quaternions_into_angles(tmp_path: Path) -> None:
    raw = synthetic("furniture_bench_dataset_converted_externally_to_rlds")
    episode = read(tmp_path, "furniture_bench_dataset_converted_externally_to_rlds", raw)
    expected = Rotation.from_quat(raw["action"][:-1, 3:7]).as_euler("xyz")
    np.testing.assert_allclose(episode.actions[:, 3:6], expected, atol=1e-6)


def test_berkeley_rpt_is_read_at_a_third_of_its_rate(tmp_path: Path) -> None:
    raw = synthetic("berkeley_rpt_converted_externally_to_rlds", steps=12)
    episode = read(tmp_path, "berkeley_rpt_converted_externally_to_rlds", raw)
    joints = raw["observation/joint_pos"][::3]
    np.testing.assert_array_equal(episode.actions[:, :7], joints[1:] - joints[:-1])
    np.testing.assert_array_equal(episode.observations["image_wrist"], raw["observation/hand_image"][::3])


def apply(part: Any, **features: np.ndarray) -> np.ndarray:
    return Part.parse(part, "test")(lambda name: features[name], len(next(iter(features.values()))))


def test_bridge_differences_wrap_their_angles() -> None:
    state = np.float32([[3.1], [-3.1], [-3.0]])
    np.testing.assert_allclose(
        apply({"key": "s", "delta": "next", "angles": True}, s=state)[:, 0], [2 * np.pi - 6.2, 0.1], atol=1e-6
    )


def test_absolute_targets_become_motions() -> None:
    rng = np.random.default_rng(0)
    target, state = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(apply({"key": "a", "delta": "s"}, a=target, s=state), target - state, atol=1e-6)
    after, before = Rotation.random(5, random_state=1), Rotation.random(5, random_state=2)
    part = {"key": "a", "delta": "s", "rotation": ["quaternion_wxyz", "axis_angle"]}
    found = apply(part, a=np.roll(after.as_quat(), 1, axis=1), s=np.roll(before.as_quat(), 1, axis=1))
    np.testing.assert_allclose(found, (after * before.inv()).as_rotvec(), atol=1e-6)


def test_actions_in_the_frame_of_the_hand() -> None:
    """DROID's published transform into the wrist's frame: R^-1 v and R^-1 dR R."""
    rng = np.random.default_rng(0)
    velocity, turn = rng.normal(size=(5, 3)), Rotation.from_euler("xyz", rng.normal(0, 0.3, (5, 3)))
    pose = rng.uniform(-1, 1, (5, 6))
    hand = Rotation.from_euler("xyz", pose[:, 3:])
    into = {"key": "pose[3:6]", "rotation": "euler_xyz"}
    np.testing.assert_allclose(apply({"key": "v", "into": into}, v=velocity, pose=pose), hand.inv().apply(velocity), atol=1e-6)
    part = {"key": "r", "rotation": ["euler_xyz", "rotation_6d_rows"], "into": into}
    expected = (hand.inv() * turn * hand).as_matrix()[:, :2].reshape(5, 6)
    np.testing.assert_allclose(apply(part, r=turn.as_euler("xyz"), pose=pose), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "start", "stop"), [("a/b", None, None), ("a[3]", 3, 4), ("a[-1]", -1, None), ("a[-3]", -3, -2), ("a[:2]", None, 2)]
)
def test_slices(text: str, start: int | None, stop: int | None) -> None:
    assert Slice.parse(text) == Slice(text.split("[")[0], start, stop)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("a[", "'a\\[' is no feature"),
        ("a[]", "is no feature"),
        (3, "is no part"),
        ({"key": "a", "scales": 2}, "is no part"),
        ({"key": "a", "size": 2}, "is no part"),
        ({"key": "a", "rotation": ["euler_xyz", "rot"]}, "'rot' is no representation"),
        ({"key": "a", "gripper": "maybe"}, '"binarize" or "relative"'),
        ({"key": "a", "clip": [1]}, "is no part"),
        ([], "an empty list of parts"),
    ],
)
def test_bad_parts(part: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_parts(part, "here")
    assert str(caught.value).startswith("here")


def test_a_slice_outside_its_feature_and_a_missing_row() -> None:
    with pytest.raises(InputError, match=r"a\[2:5\] does not lie within the 4 numbers of a"):
        apply("a[2:5]", a=np.zeros((3, 4)))
    with pytest.raises(InputError, match="a has 4 numbers, its scale or offset 3"):
        apply({"key": "a", "scale": [1, 2, 3]}, a=np.zeros((3, 4)))
    with pytest.raises(InputError, match="quaternion_xyzw has 4 numbers"):
        apply({"key": "a", "rotation": ["quaternion_xyzw", "euler_xyz"]}, a=np.zeros((3, 3)))
    with pytest.raises(InputError, match="rotation of length zero"):
        apply({"key": "a", "rotation": ["quaternion_xyzw", "euler_xyz"]}, a=np.zeros((3, 4)))
    with pytest.raises(InputError, match="a gives 2 rows, 3 are needed"):
        assemble(parse_parts({"key": "a", "delta": "next"}, "test"), lambda _: np.zeros((3, 4)), 3, 3)


ACTION = {"names": ["x"], "units": ["m"], "low": [-1], "high": [1], "frame": "base", "control_hz": 5}
FEATURES = {
    "action": Feature("action", "tensor", "float32", (1,)),
    "text": Feature("text", "text", "string"),
    "state": Feature("state", "tensor", "float32", (3,)),
    "language_instruction": Feature("language_instruction", "text", "string"),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actionss": 1}, "unknown field 'actionss'; there are action, actions, "),
        ({"observations": {"image_primary": "state"}}, "image_primary is state, which holds no images"),
        ({"observations": {"image_primary": ["state"]}}, "is no camera; it must be one step feature"),
        ({"observations": {"image_primary": {"key": "state", "rotate180": 1}}}, "is no camera; it must be one step feature"),
        ({"observations": {"proprio": "text"}}, "text holds texts, a part needs numbers"),
        ({"instruction": 3}, "`instruction` is 3"),
        ({"reward": "score"}, "needs step features score, has action"),
        ({"success": {"x": 1}}, "`success` is"),
        ({"skip": ["bad ones"]}, "`skip` is"),
        ({"every": 0}, "`every` is 0; it must be a whole number of at least 1"),
    ],
)
def test_bad_descriptions_name_the_field(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_rule({"action": ACTION, "observations": {"proprio": "state"}, **change}, FEATURES, "here")
    assert "\n" not in str(caught.value)


def test_episodes_that_a_rule_leaves_out(tmp_path: Path) -> None:
    told, untold = ({**synthetic("dobbe"), "language_instruction": [text] * STEPS} for text in ("open the door", " "))
    folder = write_rlds(
        tmp_path, "dobbe", [untold, told, untold], [{"outcome": "good"}, {"outcome": "bad"}, {"outcome": "bad"}]
    )

    def instructions(**change: Any) -> list[str]:
        (folder / "1.0.0/robot_rl.json").write_text(json.dumps({**registry()["dobbe"], **change}))
        return [episode.instruction for episode in read_episodes(open_dataset(folder))]

    assert instructions(skip=["no instruction"]) == ["open the door"]
    assert instructions(skip=["failures"], success={"metadata": "outcome", "contains": "good"}) == [" "]
    assert instructions(instruction={"text": "as always"}) == ["as always"] * 3


def test_mixes() -> None:
    assert parse_mix("bridge:1.0,fractal:0.54") == [("bridge_dataset", 1.0), ("fractal20220817_data", 0.54)]
    assert parse_mix("mine, viola:2") == [("mine", 1.0), ("viola", 2.0)]
    assert dict(parse_mix("oxe_magic_soup:2,mine"))["language_table"] == 0.2
    assert len(parse_mix("oxe_magic_soup")) == 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no dataset"),
        ("bridge:1,,", "names no dataset"),
        ("bridge:x", "weight of 'bridge:x' must be a positive number"),
        ("bridge:0", "must be a positive number"),
        ("bridge:inf", "must be a positive number"),
        ("bridge:1,bridge_dataset:2", "bridge_dataset comes twice"),
    ],
)
def test_bad_mixes(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_mix(text)


def recording(kind: str, seed: int) -> dict[str, Any]:
    """A smooth motion of a hand whose actions are what it moves by, or where it is to arrive."""
    rng = np.random.default_rng(seed)
    motion = np.cumsum(rng.normal(0, 0.004, (40, 6)), axis=0).astype(np.float32)
    place = np.cumsum(np.concatenate([np.zeros((1, 6)), motion[:-1]]), axis=0).astype(np.float32)
    gripper = np.float32(np.arange(40) > 20)[:, None]
    return {
        "is_terminal": np.arange(40) == 39,
        "reward": np.float32(np.arange(40) == 39),
        "observation/front_camera": np.zeros((40, 8, 8, 3), np.uint8),
        "observation/eye_in_hand": np.zeros((40, 8, 8, 3), np.uint8),
        "observation/state": np.concatenate([place, gripper], axis=1),
        "observation/object_pose": np.zeros((40, 7), np.float32),
        "action": np.concatenate([motion if kind == "delta" else place + motion, gripper], axis=1),
        "task_description": ["close the drawer"] * 40,
    }


@pytest.mark.parametrize("kind", ["delta", "absolute"])
def test_a_draft_opens_the_dataset_it_was_drafted_from(tmp_path: Path, kind: str) -> None:
    folder = write_rlds(tmp_path, "unheard_of", [recording(kind, seed) for seed in range(6)])
    with pytest.raises(InputError, match=r"no description of dataset 'unheard_of'.*--draft"):
        open_dataset(folder)
    drafted = draft(open_format(folder))
    assert drafted["observations"] == {
        "image_primary": "observation/front_camera",
        "image_wrist": "observation/eye_in_hand",
        "proprio": "observation/state",
        "state": "observation/object_pose",
    }
    assert drafted["action"]["names"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert drafted["action"]["frame"] == {"delta": "end_effector_delta_base", "absolute": "end_effector_pose"}[kind]
    assert drafted["instruction"] == "task_description"
    assert drafted["notes"]
    file = tmp_path / "out.json"
    file.write_text(json.dumps(drafted))
    # What nothing tells is left open, and must be filled in.
    with pytest.raises(InputError, match="control_hz None; it must be a positive number"):
        open_dataset(folder, description=file)
    drafted["action"]["control_hz"] = 5
    for text in (None, " "):
        file.write_text(json.dumps({**drafted, "instruction": {"text": text}}))
        with pytest.raises(InputError, match=r"`instruction` is .*; it must be a step feature or"):
            open_dataset(folder, description=file)
    file.write_text(json.dumps(drafted))
    source = open_dataset(folder, description=file)
    episodes = list(read_episodes(source))
    assert len(episodes) == 6
    assert episodes[0].instruction == "close the drawer"
    assert episodes[0].terminated is True
    actions = np.concatenate([episode.actions for episode in episodes])
    low, high = np.array(source.action["low"]), np.array(source.action["high"])
    assert ((actions >= low) & (actions <= high)).mean() > 0.98


def test_joints_and_their_gripper_are_told_apart(tmp_path: Path) -> None:
    episodes = [recording("absolute", seed) for seed in range(4)]
    for episode in episodes:
        arm = episode["action"]
        episode["action"] = np.concatenate([arm[:, :6], arm[:, :1] * 0.5, arm[:, 6:]], axis=1)
    drafted = draft(open_format(write_rlds(tmp_path, "joints", episodes)))
    assert drafted["action"]["names"] == [*(f"joint_{i}" for i in range(7)), "gripper_7"]
    assert drafted["action"]["frame"] == "joint_position"


def test_what_is_described_already_is_drafted_as_it_is(tmp_path: Path) -> None:
    drafted = draft(open_format(write_rlds(tmp_path, "viola", [synthetic("viola")])))
    assert drafted["action"] == registry()["viola"]["action"]
    assert "registry" in drafted["notes"][-1]
