"""Writing robomimic's files: what is written reads back, robomimic finds what it looks for, all or nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.formats import open_format
from data.formats.robomimic_writer import RobomimicWriter
from data.source import open_dataset, read_episodes
from tests.data.conftest import ACTION
from tests.data.reading import fails


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


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, episodes: list[Episode], robomimic_file: Path) -> None:
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
    foreign = shutil.copy(robomimic_file, tmp_path / "foreign.hdf5")
    fails(lambda: RobomimicWriter(foreign, ACTION, overwrite=True).__enter__(), "exists and is not a file of robot-rl")
    fails(lambda: RobomimicWriter(tmp_path / "made.zarr", ACTION), "end in .hdf5")
