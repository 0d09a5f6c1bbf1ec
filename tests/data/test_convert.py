"""convert: what it makes of episodes, what it refuses and what it skips, and how the store is read again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from data import (
    ConversionConfig,
    Episode,
    InputError,
    LanguageEncoder,
    LeRobotWriter,
    Preparation,
    RewardConfig,
    RldsWriter,
    RobomimicWriter,
    Store,
    convert,
    open_dataset,
    read_episodes,
    relabel,
)
from data.quality.check import check
from data.store.array import CHUNK_BYTES, chunk_rows
from tests.data.stores import go, source


def test_any_zarr_reader_opens_it(made_store: Store) -> None:
    group = zarr.open_group(str(made_store.path), mode="r")
    assert group.attrs["counts"]["episodes"] == 12
    np.testing.assert_array_equal(group["meta"]["episode_ends"][:], made_store.episode_ends)
    for key in made_store.arrays:
        np.testing.assert_array_equal(group["data"][key][:], made_store.load(key))
    assert (made_store.path / "dataset_statistics.json").exists()


@pytest.mark.parametrize("size", [1000, 4096])
def test_many_chunks_read_alike(
    written: Path, made_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also where chunks are not, or not all, whole pages."""
    monkeypatch.setattr("data.store.array.CHUNK_BYTES", size)
    monkeypatch.setattr("data.store.array.PAGE", 4096)
    small = go(written, tmp_path / "small").store
    assert len(list((small.path / "data/image_primary").glob("[0-9]*"))) > 1
    rows = np.random.default_rng(0).integers(0, small.counts["steps"], 200)
    group = zarr.open_group(str(small.path), mode="r")
    for key in made_store.arrays:
        np.testing.assert_array_equal(small.load(key), made_store.load(key))
        np.testing.assert_array_equal(small.gather(key, rows), made_store.load(key)[rows])
        np.testing.assert_array_equal(group["data"][key][:], made_store.load(key))
    assert small.statistics == made_store.statistics
    small.verify()
    assert small.gather("action", rows[:0]).shape == (0, 4)
    with pytest.raises(IndexError):
        small.gather("action", np.array([small.counts["steps"]]))


@pytest.mark.parametrize("frame", [(95, 127, 3), (481, 641, 3), (480, 640, 3), (224, 224, 3), (64, 64, 3), (9000, 9000, 3)])
def test_chunks_of_frames_of_any_size_stay_small(frame: tuple[int, ...]) -> None:
    size = math.prod(frame)
    assert chunk_rows(size) * size <= max(CHUNK_BYTES, size)
    assert chunk_rows(size) * size > min(CHUNK_BYTES // 2, size - 1)


def test_progress_counts_episodes(written: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    go(written, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 12), (8, 12), (12, 12)]


def test_a_store_of_a_store_keeps_what_was_achieved(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    """Also where the achieved instruction comes later, or never again; and the numbers of a store that was not labelled are -1."""
    store = go(source([make_episode(seed, 5, success=seed == 1) for seed in (0, 2, 1)]), tmp_path / "store").store
    assert store.instructions == ["öffne the drawer", "close the drawer"]
    assert store.achieved.tolist() == [-1, -1, -1]
    labelled = relabel(store.path, store.success, achieved=np.array([1, -1, 0]))
    copy = go(labelled, tmp_path / "copy").store
    assert copy.achieved.tolist() == [1, -1, 0]
    few = convert(labelled, tmp_path / "few", ConversionConfig(episodes=1), language=LanguageEncoder("dataset")).store
    assert [few.instructions[index] for index in few.achieved] == ["close the drawer"]
    for key in labelled.arrays:
        np.testing.assert_array_equal(copy.load(key), labelled.load(key))


@pytest.mark.parametrize("kind", ["rlds", "lerobot", "robomimic"])
def test_exported_rewards_are_those_of_the_store(make_episode: Callable[..., Episode], tmp_path: Path, kind: str) -> None:
    store = go(source([make_episode(seed, 5, success=seed == 1) for seed in range(2)]), tmp_path / "store").store
    out = tmp_path / ("out.hdf5" if kind == "robomimic" else "out")
    options = {"image_format": "png"} if kind == "lerobot" else {}
    with {"rlds": RldsWriter, "lerobot": LeRobotWriter, "robomimic": RobomimicWriter}[kind](
        out, store.action, **options
    ) as writer:
        for episode in read_episodes(store):
            writer.add(episode)
    config = ConversionConfig(reward=RewardConfig("given"))
    again = convert(open_dataset(out), tmp_path / "again", config, language=LanguageEncoder("dataset")).store
    for key in ("reward", "mc_return"):
        np.testing.assert_array_equal(again.load(key), store.load(key))
    assert again.success.tolist() == store.success.tolist() == [0, 1]


def test_checksums_find_a_flipped_bit(written: Path, tmp_path: Path) -> None:
    store = go(written, tmp_path / "store").store
    store.verify()
    file = store.path / "data/image_wrist/0.0.0.0"
    data = bytearray(file.read_bytes())
    data[777] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"image_wrist.0\.0\.0\.0: its checksum is wrong"):
        Store.open(store.path).verify()


def test_says_what_it_changed(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    config = ConversionConfig(Preparation(("image_primary",), (6, 8), "jpeg"), episodes=2)
    made = convert(source([make_episode(i, 5) for i in range(3)]), tmp_path / "s", config, language=LanguageEncoder("dataset"))
    assert made.store.counts["episodes"] == 2
    assert made.store.shape("image_primary") == (6, 8, 3)
    for part in ("resized to 6x8", "JPEG", "only image_primary", "first 2 of 3 episodes"):
        assert any(part in line for line in made.store.changes)
    exact = np.asarray(made.store.load("image_primary"), int)
    from data.store.preparation import resize

    first = resize(make_episode(0, 5).observations["image_primary"], (6, 8)).astype(int)
    # Noise is the worst that JPEG can be given: its colours are kept at half the resolution.
    assert np.corrcoef(exact[:6].mean(-1).ravel(), first.mean(-1).ravel())[0, 1] > 0.8


def test_given_rewards(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    rewards = np.array([1, 0, 2], np.float32)
    episodes = [replace(make_episode(i, 3), rewards=rewards, terminated=i == 0) for i in range(2)]
    config = ConversionConfig(reward=RewardConfig("given", discount=0.5))
    store = convert(source(episodes), tmp_path / "store", config, language=LanguageEncoder("dataset")).store
    np.testing.assert_array_equal(store.load("reward"), [1, 0, 2, 0] * 2)
    np.testing.assert_array_equal(store.load("mask"), [1, 1, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(store.load("mc_return"), [1.5, 1, 2, 0] * 2)
    with pytest.raises(InputError, match="made #5: carries no rewards"):
        convert(source([make_episode(5, 3)]), tmp_path / "other", config, language=LanguageEncoder("dataset"))


def test_skip_bad(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    good, broken, odd = make_episode(0, 5), make_episode(1, 6), make_episode(2, 4)
    broken.actions[2, 1] = np.nan
    odd.observations["proprio"] = odd.observations["proprio"][:, :3]
    with pytest.raises(InputError, match="made #1: action is not finite at step 2"):
        go(source([good, broken, odd]), tmp_path / "store")
    conversion = go(source([good, broken, odd, good]), tmp_path / "store", skip_bad=True)
    assert conversion.store.counts == {"episodes": 2, "steps": 12, "transitions": 10, "skipped": 2}
    assert conversion.skipped == [
        "made #1: action is not finite at step 2; repair it",
        "made #2: proprio is (3,) a step, (5,) in the episodes before it",
    ]
    # The store remembers, and one that is made of it; whoever looks at either is told.
    again = go(conversion.store, tmp_path / "again")
    assert not again.skipped
    for store in (conversion.store, again.store):
        assert store.left_out == tuple(conversion.skipped)
        found = next(finding for finding in check(store) if finding.fault == "left-out")
        assert (found.severity, found.count, found.episodes) == ("warning", 2, ("made #1", "made #2"))
    with pytest.raises(InputError, match="no usable episode in split 'train'; made #1"):
        go(source([broken]), tmp_path / "other", skip_bad=True)
    # Observations are one more than actions, and counted as such.
    last = make_episode(3, 5)
    last.observations["proprio"][5, 1] = np.inf
    with pytest.raises(InputError, match="made #3: proprio is not finite at its last observation"):
        go(source([last]), tmp_path / "last")


def test_unlabelled_episodes_that_count_as_successes_are_told(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    """Also that they were cut by a limit, which is said of what the store was made from."""
    episodes = [make_episode(seed, 6, None) for seed in range(12)]
    store = go(source([*episodes, make_episode(12, 6, False)]), tmp_path / "store").store
    assert {(item.success, item.terminated) for item in read_episodes(store)} == {(None, None), (False, False)}
    found = {finding.fault: finding for finding in check(store)}
    assert found["assumed-success"].count == 12
    assert "cut-episodes" in found
    labelled = go(source([make_episode(seed, 6) for seed in range(12)]), tmp_path / "labelled").store
    assert {"assumed-success", "cut-episodes"}.isdisjoint(finding.fault for finding in check(labelled))


def test_cameras_that_come_and_go(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    whole, partial = make_episode(0, 5), make_episode(1, 6)
    del partial.observations["image_wrist"]
    for order in ([whole, partial, whole], [partial, whole]):
        conversion = go(source(order), tmp_path / "store", overwrite=True)
        assert conversion.dropped_cameras == ["image_wrist"]
        assert conversion.store.observation_keys == ["image_primary", "proprio", "state"]
        assert not (conversion.store.path / "data/image_wrist").exists()
    with pytest.raises(InputError, match="made #1: has no image_wrist"):
        go(source([whole, partial]), tmp_path / "other", cameras=("image_primary", "image_wrist"))
    store = go(source([partial, whole]), tmp_path / "other", cameras=("image_primary",)).store
    assert store.observation_keys == ["image_primary", "proprio", "state"]
    dropped = replace(partial, observations={k: v for k, v in partial.observations.items() if k != "proprio"})
    with pytest.raises(InputError, match="made #1: has action, image_primary, state, reward"):
        go(source([whole, dropped]), tmp_path / "third")


def test_bad_conventions() -> None:
    with pytest.raises(InputError, match="success_steps is 0"):
        RewardConfig(success_steps=0)


def remove_attribute(folder: Path) -> None:
    text = (folder / ".zattrs").read_text()
    (folder / ".zattrs").write_text(text.replace('"counts"', '"count"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such training store"),
        (lambda f: (f / ".zattrs").unlink(), "not a training store of robot-rl"),
        (lambda f: (f / ".zattrs").write_text('{"robot_rl_store": 99}'), "a store of version 99"),
        (remove_attribute, "lacks counts"),
        (lambda f: shutil.rmtree(f / "data"), "data/action: missing from the store"),
        (lambda f: (f / "data/proprio/0.0").write_bytes(b"short"), "has 5 of"),
        (lambda f: (f / "data/image_primary/0.0.0.0").unlink(), "has 0 of"),
        (lambda f: (f / "data/reward/.zarray").write_text("{"), "reward/.zarray: damaged"),
        (lambda f: (f / "data/reward/.zarray").write_text(zarr_text(compressor={"id": "zstd"})), "is compressed"),
        (lambda f: (f / "meta/.commit").unlink(), ".commit: missing"),
        (lambda f: (f / "meta/.commit").write_bytes(b"x" * 128), ".commit: damaged"),
        (lambda f: (f / "instructions.jsonl").write_text("{\n"), "instructions.jsonl: damaged"),
        (lambda f: shutil.rmtree(f / "meta/instruction_embeddings"), "instruction_embeddings: missing"),
    ],
)
def test_damaged_stores(made_store: Store, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    shutil.copytree(made_store.path, tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=message) as caught:
        Store.open(tmp_path / "store")
    assert "\n" not in str(caught.value)


def zarr_text(**change: Any) -> str:
    plain = {"shape": [3], "chunks": [3], "dtype": "<f4", "compressor": None, "filters": None, "order": "C"}
    return json.dumps({**plain, **change})
