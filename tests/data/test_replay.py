"""Online data: what a reader sees while a writer writes, and what is left when the writer is killed, over random kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import ChunkSampler, Episode, InputError, LanguageEncoder, MixtureSampler, ReplayWriter, RewardConfig, Store
from tests.conftest import ACTION, INSTRUCTIONS, make_episodes

ROOT = Path(__file__).parents[2]


ONLINE = "go home"


def language() -> LanguageEncoder:
    return LanguageEncoder("dataset", dict(zip((*INSTRUCTIONS, ONLINE), np.eye(8, dtype=np.float32), strict=False)))


def at(episode: Episode, step: int) -> dict[str, np.ndarray]:
    return {key: value[step] for key, value in episode.observations.items()}


def play(writer: ReplayWriter, episode: Episode, steps: int | None = None) -> None:
    """The whole episode, or its first steps."""
    writer.begin(at(episode, 0), episode.instruction)
    for step in range(len(episode) if steps is None else steps):
        last = step == len(episode) - 1
        writer.step(
            episode.actions[step],
            at(episode, step + 1),
            terminated=last and bool(episode.success),
            truncated=last,
            success=episode.success,
        )


def check_against(store: Store, index: int, episode: Episode, length: int, success: bool) -> None:
    """Episode `index` of a store holds the first `length` steps of `episode`."""
    first = int(store.episode_ends[index - 1]) if index else 0
    rows = np.arange(first, int(store.episode_ends[index]))
    assert len(rows) == length + 1
    for key, value in episode.observations.items():
        np.testing.assert_array_equal(store.gather(key, rows), value[: length + 1])
    np.testing.assert_array_equal(store.gather("action", rows[:-1]), episode.actions[:length])
    for values, expected in zip(store.labels(), RewardConfig().label(length, success), strict=True):
        np.testing.assert_array_equal(values[rows], np.append(expected, np.float32(0)))


def test_what_a_reader_sees(tmp_path: Path) -> None:
    episodes = make_episodes(3)
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        with pytest.raises(InputError, match="a step outside an episode"):
            writer.step(episodes[0].actions[0], at(episodes[0], 1))
        writer.begin(at(episodes[0], 0), episodes[0].instruction)
        with pytest.raises(InputError, match="holds no transition yet"):
            Store.open(tmp_path / "online")
        play(writer, episodes[0])
        play(writer, episodes[1], 3)
        store = Store.open(tmp_path / "online")
        sampler = ChunkSampler(store, 2)
        assert store.running
        check_against(store, 0, episodes[0], len(episodes[0]), bool(episodes[0].success))
        check_against(store, 1, episodes[1], 3, False)
        assert not store.refresh()
        # A sampler that grows holds what one that is made anew would.
        for step in range(3, len(episodes[1])):
            last = step == len(episodes[1]) - 1
            writer.step(episodes[1].actions[step], at(episodes[1], step + 1), terminated=last, success=True)
            assert sampler.refresh()
            fresh, rows = ChunkSampler(Store.open(store.path), 2), np.arange(int(store.episode_ends[0]), store.rows - 1)
            assert sampler.starts.tolist() == fresh.starts.tolist()
            ours, theirs = sampler.batch(rows), fresh.batch(rows)
            for key in ("actions", "reward", "discount", "mc_return"):
                np.testing.assert_array_equal(ours[key], theirs[key])
        assert not store.running
        check_against(store, 1, episodes[1], len(episodes[1]), True)
        play(writer, episodes[2], 2)
    closed = Store.open(tmp_path / "online")
    closed.verify()
    assert closed.success.tolist() == [0, 1, 0]
    check_against(closed, 2, episodes[2], 2, False)
    assert set(closed.statistics) == {"action", "proprio", "state"}


@pytest.mark.parametrize("caps", [{"episodes": 2}, {"episodes": 5}, {"starts_per_episode": 2}, {"every_start": True}])
def test_a_sampler_that_grows_draws_from_what_a_new_one_would(tmp_path: Path, caps: dict[str, Any]) -> None:
    episodes = make_episodes(7)
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, episodes[0])
        sampler = ChunkSampler(Store.open(tmp_path / "online"), 2, **caps)
        for episode in episodes[1:]:
            writer.begin(at(episode, 0), episode.instruction)
            for step in range(len(episode)):
                last = step == len(episode) - 1
                writer.step(episode.actions[step], at(episode, step + 1), truncated=last, success=episode.success)
                if step in (0, 1) or last:
                    sampler.refresh()
                    fresh = ChunkSampler(Store.open(tmp_path / "online"), 2, **caps)
                    assert sampler.starts.tolist() == fresh.starts.tolist()


def test_any_zarr_reader_sees_whole_episodes(tmp_path: Path) -> None:
    import zarr

    episodes = make_episodes(2)
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, episodes[0])
        play(writer, episodes[1], 2)
        group = zarr.open_group(str(tmp_path / "online"), mode="r")
        assert group["meta"]["episode_ends"][:].tolist() == [len(episodes[0]) + 1]
        np.testing.assert_array_equal(group["data"]["proprio"][:], episodes[0].observations["proprio"])
    assert len(zarr.open_group(str(tmp_path / "online"), mode="r")["data"]["proprio"][:]) == len(episodes[0]) + 4


def test_a_converted_store_goes_on(tmp_path: Path, store: Store) -> None:
    import shutil

    shutil.copytree(store.path, tmp_path / "store")
    before, episode = store.length, make_episodes(1, seed=5)[0]
    reader = Store.open(tmp_path / "store")
    with ReplayWriter(tmp_path / "store", ACTION, language=language()) as writer:
        play(writer, episode)
        assert reader.refresh()
        assert reader.length == before + 1
    grown = Store.open(tmp_path / "store")
    grown.verify()
    for seen in (reader, grown):
        check_against(seen, before, episode, len(episode), bool(episode.success))
        np.testing.assert_array_equal(seen.load("image_primary")[: store.rows], store.load("image_primary"))


def test_given_rewards(tmp_path: Path) -> None:
    episode = make_episodes(1)[0]
    with ReplayWriter(tmp_path / "online", ACTION, RewardConfig("given", discount=0.5), language()) as writer:
        writer.begin(at(episode, 0), episode.instruction)
        with pytest.raises(InputError, match="step 0 has none"):
            writer.step(episode.actions[0], at(episode, 1))
        for step in range(3):
            writer.step(episode.actions[step], at(episode, step + 1), reward=float(step), terminated=step == 2)
    reward, mask, mc_return = Store.open(tmp_path / "online").labels()
    np.testing.assert_array_equal(reward, [0, 1, 2, 0])
    np.testing.assert_array_equal(mask, [1, 1, 0, 0])
    np.testing.assert_array_equal(mc_return, [1, 2, 2, 0])


def test_bad_steps_write_nothing(tmp_path: Path) -> None:
    episode = make_episodes(1)[0]
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, episode, 2)
        bad = at(episode, 3)
        bad["proprio"] = bad["proprio"] * np.nan
        with pytest.raises(InputError, match="proprio is not finite at row 3; nothing of this step was written"):
            writer.step(episode.actions[2], bad)
        with pytest.raises(InputError, match="the action or reward of step 2"):
            writer.step(episode.actions[2][:2], at(episode, 3))
        with pytest.raises(InputError, match="the observation has"):
            writer.step(episode.actions[2], {key: value for key, value in at(episode, 3).items() if key != "state"})
        writer.step(episode.actions[2], at(episode, 3))
    check_against(Store.open(tmp_path / "online"), 0, episode, 3, False)
    with pytest.raises(InputError, match="mean something else"):
        ReplayWriter(tmp_path / "online", {**ACTION, "frame": "joints"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not a training store"):
        ReplayWriter(tmp_path / "notes", ACTION)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode, write = make_episodes(1)[0], os.pwrite
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, episode, 2)
        for allowed in range(9):
            calls = iter(range(100))

            def full(*arguments, calls=calls, allowed=allowed):
                if next(calls) >= allowed:
                    raise OSError(28, "No space left on device")
                return write(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr("os.pwrite", full)
                with pytest.raises(OSError, match="No space"):
                    writer.step(episode.actions[2], at(episode, 3))
            check_against(Store.open(tmp_path / "online"), 0, episode, 2, False)
        writer.step(episode.actions[2], at(episode, 3))
    check_against(Store.open(tmp_path / "online"), 0, episode, 3, False)


def test_offline_and_online_mix_by_ratio(tmp_path: Path, store: Store) -> None:
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        for episode in make_episodes(4, seed=9):
            play(writer, replace(episode, instruction=ONLINE))
    online = ChunkSampler(Store.open(tmp_path / "online"), 2)
    mixture = MixtureSampler([ChunkSampler(store, 2), online], [3, 1])
    batch = mixture.batch(np.random.default_rng(0), 64)
    assert [text == ONLINE for text in batch["observations"]["instruction"]] == [False] * 48 + [True] * 16
    part = online.batch(batch["rows"][48:])
    np.testing.assert_array_equal(batch["observations"]["image_primary"][48:], part["observations"]["image_primary"])
    np.testing.assert_array_equal(batch["actions"][48:], part["actions"])
    draws = [mixture.batch(np.random.default_rng(seed), 6)["observations"]["instruction"] for seed in range(400)]
    assert abs(np.mean(np.array(draws) == ONLINE) - 0.25) < 0.03


WRITER = """
import sys
from data import ReplayWriter
from tests.conftest import ACTION, make_episodes
from tests.data.test_replay import language, play
episodes = make_episodes(200)
with ReplayWriter(sys.argv[1], ACTION, language=language(), jpeg=sys.argv[2] == "jpeg") as writer:
    print("ready", flush=True)
    for index in range(writer.episodes, 200):
        play(writer, episodes[index])
"""


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_random_kills_lose_at_most_the_unfinished_step(tmp_path: Path, storage: str) -> None:
    """A writer is killed at random moments and started again, six times and until it got somewhere; a reader looks on all the while."""
    rng, episodes, out, seen, kills = random.Random(3), make_episodes(200), tmp_path / "online", 0, 0
    while kills < 6 or (seen < 60 and kills < 60):  # on a busy machine it gets nowhere in its milliseconds
        command = [sys.executable, "-c", WRITER, str(out), storage]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline, reader = time.monotonic() + rng.uniform(0.005, 0.06), None
        while time.monotonic() < deadline:
            try:
                reader = reader or Store.open(out)
            except InputError:
                continue
            reader.refresh()
            assert reader.rows >= seen
            seen = reader.rows
            check_all(reader, episodes, kills, storage)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        kills += 1
        if seen:
            left = Store.open(out)
            assert left.rows >= seen  # nothing that a reader saw is gone
            check_all(left, episodes, kills, storage)
    assert Store.open(out).length >= 5  # of at most 12 rows


def check_all(store: Store, episodes: list[Episode], kills: int, storage: str) -> None:
    """Every episode of the store is whole, but for the one that is being written and one that was cut off for each kill."""
    ends, labels, cut = np.concatenate([[0], store.episode_ends]), store.labels(), 0
    for index, episode in enumerate(episodes[: store.length]):
        rows = np.arange(ends[index], ends[index + 1])
        length = len(rows) - 1
        whole = length == len(episode)
        cut += not whole
        np.testing.assert_array_equal(store.gather("proprio", rows), episode.observations["proprio"][: length + 1])
        np.testing.assert_array_equal(store.gather("action", rows[:-1]), episode.actions[:length])
        frames = store.gather("image_primary", rows)
        if storage == "raw":
            np.testing.assert_array_equal(frames, episode.observations["image_primary"][: length + 1])
        expected = RewardConfig().label(length, whole and bool(episode.success))
        for values, wanted in zip(labels, expected, strict=True):
            np.testing.assert_array_equal(values[rows[:-1]], wanted)
    assert cut <= kills + store.running
