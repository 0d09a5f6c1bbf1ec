"""Rules: Bridge's conventions, datasets described by a JSON file, and those that nothing describes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Episode, InputError, RldsWriter, open_dataset, read_episodes
from data.formats.rlds import RldsDataset
from data.open_x.parts import binarize_gripper
from data.open_x.rule import rule_for
from data.open_x.standardize import real_cameras
from tests.data.reading import fails


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ([1, 0.5, 0.2, 0], [1, 0, 0, 0]),
        ([0, 0.5, 1, 0.4], [0, 1, 1, 0]),
        ([0.96, 0.94, 0.04, 0.3], [1, 0, 0, 0]),
        ([0.5, 0.7], [1, 1]),
    ],
)
def test_gripper_takes_the_next_settled_value(given_values: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(binarize_gripper(np.float32(given_values)), expected)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
def test_gripper_agrees_with_a_scan_from_the_end(values: list[float]) -> None:
    carry, expected = round(values[-1]) if values[-1] != 0.5 else 0, []
    for value in reversed(np.float32(values)):
        carry = 1 if value > 0.95 else 0 if value < 0.05 else carry
        expected.append(carry)
    np.testing.assert_array_equal(binarize_gripper(np.float32(values)), expected[::-1])


def test_bridge_episode(bridge: Path) -> None:
    raw = next(RldsDataset.open(bridge).episodes("train", range(1)))
    episode = next(read_episodes(open_dataset(bridge)))
    state = raw.step("observation/state")
    assert len(episode) == 9
    np.testing.assert_array_equal(episode.observations["proprio"], state)
    np.testing.assert_array_equal(episode.actions[:, :6], state[1:, :6] - state[:-1, :6])
    np.testing.assert_array_equal(episode.observations["image_primary"], raw.step("observation/image_0"))
    assert episode.instruction_embedding is not None
    assert episode.instruction_embedding.shape == (512,)
    assert episode.success is None


def test_flags_that_are_set_say_which_cameras_are_real(bridge: Path) -> None:
    dataset = RldsDataset.open(bridge)
    raw, rule = next(dataset.episodes("train", range(1))), rule_for(dataset)
    assert real_cameras(raw, rule) == ["image_primary", "image_secondary", "image_tertiary"]
    raw.values["episode_metadata/has_image_1"] = [1]
    assert real_cameras(raw, rule) == ["image_secondary"]


def test_what_we_write_we_read_back(written: Path, episodes: list[Episode]) -> None:
    read = list(read_episodes(open_dataset(written)))
    for ours, episode in zip(read, episodes, strict=True):
        np.testing.assert_array_equal(ours.actions, episode.actions)
        assert set(ours.observations) == set(episode.observations)
        for key, value in episode.observations.items():
            np.testing.assert_array_equal(ours.observations[key], value)
        assert (ours.instruction, ours.success) == (episode.instruction, episode.success)
        assert ours.info == {"source": episode.source, **episode.info}
        np.testing.assert_array_equal(ours.instruction_embedding, episode.instruction_embedding)


def test_rewards_and_ends_of_its_own_come_back(tmp_path: Path, make_episode: Callable[..., Episode], action: dict) -> None:
    given = [
        replace(make_episode(seed, 5), rewards=np.linspace(-1, seed, 5, dtype=np.float32), terminated=seed == 1, success=None)
        for seed in range(2)
    ]
    with RldsWriter(tmp_path / "out", action) as writer:
        for episode in given:
            writer.add(episode)
    for ours, episode in zip(read_episodes(open_dataset(tmp_path / "out")), given, strict=True):
        np.testing.assert_array_equal(ours.rewards, episode.rewards)
        assert (ours.terminated, ours.success) == (episode.terminated, None)


def test_what_an_episode_does_not_say_is_not_made_up(written: Path) -> None:
    for episode in read_episodes(open_dataset(written), images=False):
        assert episode.rewards is None
        assert episode.terminated is None


@pytest.fixture
def foreign(tmp_path: Path, written: Path) -> Path:
    """A dataset that nothing describes."""
    shutil.copytree(written, tmp_path / "foreign")
    (tmp_path / "foreign/1.0.0/robot_rl.json").unlink()
    return tmp_path / "foreign"


def test_unknown_dataset_says_how_to_describe_it(foreign: Path) -> None:
    with pytest.raises(InputError, match=r"no description of dataset 'made_dataset'.*robot_rl.json.*observation/proprio"):
        open_dataset(foreign)


def test_a_dataset_described_beside_it_needs_no_code(foreign: Path, action: dict) -> None:
    description = {
        "action": action,
        "observations": {"image_primary": "observation/image_wrist", "proprio": "observation/state"},
    }
    (foreign / "1.0.0/robot_rl.json").write_text(json.dumps(description))
    episode = next(read_episodes(open_dataset(foreign)))
    assert {key: value.shape[1:] for key, value in episode.observations.items()} == {
        "image_primary": (8, 8, 3),
        "proprio": (9,),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, "the action description is missing"),
        ({"action": {"names": ["x"]}}, "lacks units, low, high, frame, control_hz; it needs names"),
        ({"action": "xyz"}, "is 'xyz'; it must be an object"),
        ({"observations": None}, "`observations` must map"),
        ({"observations": {"proprio": "observation/joints"}}, "needs step features observation/joints, has action"),
    ],
)
def test_bad_descriptions(foreign: Path, action: dict, change: dict, message: str) -> None:
    good = {"action": action, "observations": {"proprio": "observation/proprio"}}
    file = foreign / "1.0.0/robot_rl.json"
    file.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(foreign)
    assert str(caught.value).startswith(f"{file}: ")
    elsewhere = foreign / "elsewhere.json"
    file.rename(elsewhere)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(foreign, description=elsewhere)
    assert str(caught.value).startswith(f"{elsewhere}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_hz": 0}, "has control_hz 0; it must be a positive number"),
        ({"control_hz": "5"}, "has control_hz '5'; it must be a positive number"),
        ({"names": ["x", "y", "x", "gripper"]}, "names x twice"),
        ({"low": [0, 0, 0]}, "as lists of one length .names 4, units 4, low 3, high 4."),
        ({"low": [0, 5, 0, 0]}, "bounds y by 5 and 0.1; they must be finite numbers"),
        ({"high": [1, 1, None, 1]}, "bounds z by -0.1 and None"),
    ],
)
def test_bad_actions(foreign: Path, action: dict, change: dict, message: str) -> None:
    test_bad_descriptions(foreign, action, {"action": {**action, **change}}, message)


def test_a_description_that_is_not_there(foreign: Path) -> None:
    missing = foreign / "none.json"
    fails(
        lambda: open_dataset(foreign, description=missing), f"{missing}: ", "No such file or directory", "give a robot_rl.json"
    )


def test_writer_refuses_an_episode_of_another_kind(tmp_path: Path, make_episode: Callable[..., Episode], action: dict) -> None:
    other = make_episode(1, 4)
    other.observations["proprio"] = other.observations["proprio"][:, :2]

    def write(*episodes: Episode) -> None:
        with RldsWriter(tmp_path / "out", action) as writer:
            for episode in episodes:
                writer.add(episode)

    with pytest.raises(InputError, match="made #1: differs from the first episode in observation/proprio"):
        write(make_episode(0, 4), other)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no episode was written"):
        write()
    assert not list(tmp_path.iterdir())
