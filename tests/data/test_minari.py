"""Minari datasets that Minari wrote, in each of its storages, compared with what Minari reads; and damaged ones."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.episode import Episode
from data.formats import open_format
from data.source import open_dataset, read_episodes

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")
pytest.importorskip("pyarrow")

from tests.data.minari_environment import LENGTHS, record  # noqa: E402
from tests.data.reading import fails, read  # noqa: E402

STORAGES = ("hdf5", "arrow", "parquet")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {storage: record(tmp_path_factory.mktemp(storage), storage) for storage in STORAGES}


@pytest.fixture
def copy(tmp_path: Path, recorded: dict[str, Path]) -> Path:
    """A copy of the HDF5 one, to be damaged."""
    return Path(shutil.copytree(recorded["hdf5"], tmp_path / "copy-v0"))


@pytest.mark.parametrize("storage", STORAGES)
def test_episodes_are_those_that_minari_reads(recorded: dict[str, Path], storage: str) -> None:
    original = list(minari.MinariDataset(recorded[storage] / "data").iterate_episodes())
    for place in (recorded[storage], recorded[storage] / "data"):
        source = open_dataset(place)
        assert (source.name, source.length) == (f"tests/{storage}-v0", 3)
        for number, (episode, theirs) in enumerate(zip(read_episodes(source), original, strict=True)):
            assert len(episode) == LENGTHS[number]
            arm = theirs.observations["arm"]
            state = np.concatenate([np.asarray(arm["mode"])[:, None], arm["pos"]], axis=1).astype(np.float32)
            np.testing.assert_array_equal(episode.observations["state"], state)
            np.testing.assert_array_equal(episode.observations["image_primary"], theirs.observations["camera"])
            np.testing.assert_array_equal(episode.actions, theirs.actions)
            np.testing.assert_array_equal(episode.rewards, theirs.rewards)
            assert episode.instruction == "go left"
            assert (episode.success, episode.terminated) == ((True, True) if number == 1 else (False, False))


def test_description_is_of_the_environment(recorded: dict[str, Path], tmp_path: Path) -> None:
    assert open_dataset(recorded["hdf5"]).action == {
        "names": ["action_0", "action_1"],
        "units": ["1", "1"],
        "low": [-0.05, -0.1],
        "high": [0.05, 0.1],
        "frame": "unknown",
        "control_hz": 20.0,
    }
    pendulum = open_dataset(record(tmp_path, "hdf5", "Pendulum-v1", (5, 6)))
    assert (pendulum.action["low"], pendulum.action["control_hz"]) == ([-2.0], 30.0)
    first = next(read_episodes(pendulum))
    assert (first.instruction, first.observations["state"].shape, first.success) == ("pendulum", (6, 3), None)


def test_what_the_dataset_lacks_can_be_said_within_it(copy: Path) -> None:
    file = copy / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    # One whose environment is not installed: it is not imported, whatever its entry point.
    specification = {**json.loads(metadata["env_spec"]), "id": "somebody/Arm-v3", "entry_point": "no_such_module:Arm"}
    file.write_text(json.dumps({**metadata, "env_spec": json.dumps(specification)}))
    fails(lambda: open_dataset(copy), "no description of dataset 'tests/hdf5-v0'", "observations/camera")
    description = {"action": {"control_hz": 5, "names": ["x", "y"]}, "instruction": {"text": "move"}}
    (copy / "robot_rl.json").write_text(json.dumps(description))
    source = open_dataset(copy)
    assert (source.action["names"], source.action["high"], source.action["control_hz"]) == (["x", "y"], [0.05, 0.1], 5)
    assert next(read_episodes(source)).instruction == "move"


@pytest.mark.parametrize("storage", STORAGES)
def test_it_travels_and_reads_ranges(recorded: dict[str, Path], storage: str) -> None:
    dataset = pickle.loads(pickle.dumps(open_format(recorded[storage])))
    assert dataset.splits == {"train": 3}
    episodes = list(dataset.episodes("train", range(1, 3)))
    assert [episode.num_steps for episode in episodes] == [8, 4]
    assert episodes[0].step("observations/camera", limit=2).shape == (2, 48, 64, 3)
    assert [episode.metadata("seed") for episode in episodes] == [1, 2]


def test_a_bad_episode_is_named_and_the_others_come(copy: Path) -> None:
    import h5py

    with h5py.File(copy / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations/camera"]
        rewards = file["episode_2/rewards"][:-1]
        del file["episode_2/rewards"]
        file["episode_2/rewards"] = rewards
    first, second, third = read(copy)
    assert isinstance(second, Episode)
    assert "tests/hdf5-v0 train #0" in str(first)
    # The camera is missing from what there is.
    assert "observations/camera" in str(first)
    assert "tests/hdf5-v0 train #2" in str(third)
    assert "steps, expected 2" in str(third)


def test_nan_and_undecodable_images(copy: Path) -> None:
    import h5py

    with h5py.File(copy / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/actions"][3, 0] = np.nan
        frames = file["episode_2/observations/camera"]
        frames[1] = np.zeros_like(frames[1])
    first, second, third = read(copy)
    assert isinstance(first, Episode)
    assert "train #1" in str(second)
    assert "action is not finite at step 3" in str(second)
    assert "train #2" in str(third)
    assert "cannot be read" in str(third)


def test_a_damaged_file_of_an_arrow_episode(recorded: dict[str, Path], tmp_path: Path) -> None:
    for storage in ("arrow", "parquet"):
        copy = Path(shutil.copytree(recorded[storage], tmp_path / storage))
        file = next(file for file in (copy / "data" / "1").iterdir() if file.name != "metadata.json")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        items = read(copy)
        assert [isinstance(item, Episode) for item in items] == [True, False, True]
        assert f"tests/{storage}-v0 train #1 ({copy / 'data'} episode 1): cannot be read" in str(items[1])
        assert "\n" not in str(items[1])


def test_folders_that_are_damaged(copy: Path, tmp_path: Path) -> None:
    file, metadata = copy / "data" / "main_data.hdf5", copy / "data" / "metadata.json"
    text, content = metadata.read_text(), file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert [str(item).partition(": cannot be read")[0] for item in read(copy)] == [
        f"tests/hdf5-v0 train #{number} ({copy / 'data'} episode {number})" for number in range(3)
    ]
    file.unlink()
    fails(lambda: open_dataset(copy), f"{copy / 'data'}: not a readable Minari dataset")
    file.write_bytes(content)
    metadata.write_text("{")
    fails(lambda: open_dataset(copy), f"{copy / 'data'}: not a readable Minari dataset")
    spaceless = {key: value for key, value in json.loads(text).items() if key != "action_space"}
    metadata.write_text(json.dumps(spaceless))
    fails(lambda: open_dataset(copy), "metadata.json has no action_space")
    metadata.write_text(json.dumps({**json.loads(text), "total_episodes": "many"}))
    fails(lambda: open_dataset(copy), "metadata.json: does not describe a Minari dataset")
    metadata.write_text(json.dumps({**json.loads(text), "data_format": "pickle"}))
    fails(lambda: open_dataset(copy), "not a readable Minari dataset")
