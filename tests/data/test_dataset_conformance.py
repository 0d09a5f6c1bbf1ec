"""What every reader promises, whoever wrote the data: Episodes by number, and the stores converted from them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import (
    ChunkSampler,
    Episode,
    EpisodeSource,
    LanguageEncoder,
    LeRobotWriter,
    RldsWriter,
    RobomimicWriter,
    Store,
    compute_statistics,
    convert,
    inspect,
    open_dataset,
    read_episodes,
)
from data.episode import check_action
from data.labels.rewards import RewardConfig
from tests.data.conftest import ACTION
from tests.data.minari_environment import record

FIXTURES = Path(__file__).parent / "fixtures"


def _written(writer: Any, name: str, **options: Any) -> Callable[[Path, list[Episode]], Path]:
    def write(folder: Path, episodes: list[Episode]) -> Path:
        with writer(folder / name, ACTION, **options) as out:
            for episode in episodes:
                out.add(episode)
        return folder / name

    return write


def _zarr(folder: Path, episodes: list[Episode], zipped: bool = False) -> Path:
    """As diffusion_policy's replay buffer saves it: every observation has an action."""
    import zarr

    path = folder / ("made_replay.zarr.zip" if zipped else "made_replay.zarr")
    store = zarr.storage.ZipStore(str(path), mode="w") if zipped else str(path)
    group = zarr.open_group(store, mode="w", zarr_format=2)
    arrays = {key: np.concatenate([episode.observations[key] for episode in episodes]) for key in episodes[0].observations}
    arrays["action"] = np.concatenate([np.concatenate([episode.actions, episode.actions[-1:]]) for episode in episodes])
    for key, value in arrays.items():
        array = group.create_array(f"data/{key}", shape=value.shape, chunks=(7, *value.shape[1:]), dtype=value.dtype)
        array[:] = value
    ends = np.cumsum([len(episode) + 1 for episode in episodes])
    group.create_array("meta/episode_ends", shape=ends.shape, chunks=ends.shape, dtype=ends.dtype)[:] = ends
    if zipped:
        store.close()
    observations = {key: key for key in episodes[0].observations}
    description = {"action": ACTION, "observations": observations, "instruction": {"text": "push the block"}}
    (folder / "robot_rl.json").write_text(json.dumps(description))
    return path


MEMBERS: dict[str, Callable[[Path, list[Episode]], Path]] = {
    "rlds": _written(RldsWriter, "made_dataset"),
    "lerobot, images": _written(LeRobotWriter, "made_lerobot", image_format="png"),
    "lerobot, video": _written(LeRobotWriter, "made_video"),
    "lerobot v2.1, theirs": lambda folder, _: FIXTURES / "lerobot_v21",
    "lerobot v3.0, theirs": lambda folder, _: FIXTURES / "lerobot_v30",
    "robomimic": _written(RobomimicWriter, "made_robomimic.hdf5"),
    "zarr": _zarr,
    "zarr, zipped": lambda folder, episodes: _zarr(folder, episodes, zipped=True),
    "minari, hdf5": lambda folder, _: record(folder, "hdf5"),
    "minari, arrow": lambda folder, _: record(folder, "arrow"),
}


@pytest.fixture(scope="module", params=["bridge", *MEMBERS])
def member(
    request: pytest.FixtureRequest, episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Store]:
    """A dataset and the store converted from it."""
    if request.param == "bridge":
        return request.getfixturevalue("bridge"), request.getfixturevalue("bridge_store")
    folder = tmp_path_factory.mktemp("member")
    path = MEMBERS[request.param](folder, episodes)
    language = LanguageEncoder("dataset") if request.param == "rlds" else LanguageEncoder()
    return path, convert(open_dataset(path), folder / "store", language=language).store


@pytest.fixture
def source(member: tuple[Path, Store]) -> EpisodeSource:
    return open_dataset(member[0])


@pytest.fixture
def read(source: EpisodeSource) -> list[Episode]:
    return list(read_episodes(source))


def test_episodes_are_valid(source: EpisodeSource, read: list[Episode]) -> None:
    check_action(source.action, "test")
    assert len(read) == source.length
    for episode in read:
        episode.validate()
        assert episode.actions.dtype == np.float32
        assert episode.actions.shape[1] == len(source.action["names"])
        assert episode.instruction
        assert source.name in episode.source
        for key, value in episode.observations.items():
            assert value.dtype == (np.uint8 if key.startswith("image_") else np.float32)
            assert len(value) == len(episode) + 1


def assert_same(a: Episode, b: Episode) -> None:
    assert (a.instruction, a.success, a.source, len(a)) == (b.instruction, b.success, b.source, len(b))
    np.testing.assert_array_equal(a.actions, b.actions)
    assert set(a.observations) == set(b.observations)
    for key, value in a.observations.items():
        np.testing.assert_array_equal(value, b.observations[key])


def test_any_range_gives_the_same_episodes(source: EpisodeSource, read: list[Episode]) -> None:
    for start, stop in ((0, 1), (len(read) - 1, len(read)), (len(read) // 3, len(read) // 2 + 1), (2, 2)):
        part = list(source.read(range(start, stop)))
        assert len(part) == stop - start
        for episode, expected in zip(part, read[start:stop], strict=True):
            assert isinstance(episode, Episode)
            assert_same(episode, expected)


def test_other_processes_read_it_too(source: EpisodeSource, read: list[Episode]) -> None:
    # What conversion sends to its workers, which open the files themselves.
    copy = pickle.loads(pickle.dumps(source))
    assert_same(next(iter(copy.read(range(1, 2)))), read[1])


def test_without_images_everything_else_is_the_same(source: EpisodeSource, read: list[Episode]) -> None:
    for blind, episode in zip(read_episodes(source, images=False), read, strict=True):
        assert_same(blind, episode.without_images())


def test_store_holds_the_episodes(member: tuple[Path, Store], read: list[Episode]) -> None:
    store = member[1]
    lengths = np.array([len(episode) for episode in read])
    np.testing.assert_array_equal(store.episode_ends, np.cumsum(lengths + 1))
    counts = {"episodes": len(read), "steps": int(lengths.sum()) + len(read), "transitions": int(lengths.sum()), "skipped": 0}
    assert store.counts == counts
    start = 0
    for number, (episode, end) in enumerate(zip(read, store.episode_ends, strict=True)):
        rows = np.arange(start, end)
        for key, value in episode.observations.items():
            np.testing.assert_array_equal(store.gather(key, rows), value)
        np.testing.assert_array_equal(store.gather("action", rows), np.concatenate([episode.actions, episode.actions[-1:]]))
        for key, value in zip(
            ("reward", "mask", "mc_return"), RewardConfig().label(len(episode), episode.success), strict=True
        ):
            np.testing.assert_array_equal(store.gather(key, rows), np.append(value, 0))
        index = store.gather("instruction_index", rows)
        assert [store.instructions[i] for i in index] == [episode.instruction] * len(rows)
        assert store.success[number] == {True: 1, False: 0, None: -1}[episode.success]
        start = end


def test_statistics_are_those_of_the_transitions(member: tuple[Path, Store], read: list[Episode]) -> None:
    store = member[1]
    assert store.statistics["action"] == compute_statistics(np.concatenate([episode.actions for episode in read]))
    for key in store.statistics:
        if key != "action":
            values = np.concatenate([episode.observations[key][:-1] for episode in read])
            assert store.statistics[key] == compute_statistics(values)


def test_inspect_agrees_on_the_dataset_and_its_store(member: tuple[Path, Store]) -> None:
    found, store = inspect(open_dataset(member[0])), inspect(member[1])
    same = ("episodes", "steps", "transitions", "instructions", "episode_length", "cameras", "vectors", "action", "success")
    for key in same:
        assert found[key] == store[key]
    for name, values in found["statistics"].items():
        np.testing.assert_allclose(values, store["statistics"][name], rtol=1e-5, atol=1e-7)


def test_language_table_covers_every_instruction(member: tuple[Path, Store]) -> None:
    store = member[1]
    embeddings = store.language.encode(store.instructions)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_sampler_draws_from_it(member: tuple[Path, Store]) -> None:
    store = member[1]
    batch = ChunkSampler(store, 2).batch(np.random.default_rng(0), 64)
    assert batch["actions"].shape == (64, 2, len(store.action["names"]))
    for part in ("observations", "next_observations"):
        for key in store.observation_keys:
            assert batch[part][key].shape == (64, *store.shape(key))
        assert batch[part]["instruction_embedding"].shape == (64, store.language.dim)
    assert ((batch["discount"] >= 0) & (batch["discount"] < 1)).all()


def test_bridge_figures(bridge: Path) -> None:
    for split in ("train", "val"):
        report = inspect(open_dataset(bridge, split))
        assert (report["episodes"], report["steps"], report["transitions"]) == (25, 250, 225)
        assert report["instructions"] == {
            "put carrot on plate": 8,
            "put cup from counter or drying rack into sink": 6,
            "turn lever vertical to front": 6,
            "flip pot upright which is in sink": 5,
        }
        # All of has_image_k are False in this slice; image_3 is black.
        assert report["cameras"] == {f"image_{name}": [64, 64] for name in ("primary", "secondary", "tertiary")}
        np.testing.assert_allclose(report["statistics"]["mean"][:3], [0.00159512, -0.00105687, -0.00456975], atol=1e-7)
        assert report["success"] == {"true": 0, "false": 0, "unlabelled": 25}
