"""What must never happen to a store: lost by a damaged commit, doubled by a retry, read across a replacement, mixed in meaning."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import (
    ChunkSampler,
    ConversionConfig,
    EpisodeList,
    InputError,
    LanguageEncoder,
    MixtureSampler,
    ReplayWriter,
    RewardConfig,
    Store,
    convert,
    relabel,
)
from data.statistics import compute_statistics
from data.store.array import ArrayWriter, MappedArray, chunk_rows, write_array
from data.store.commit import CommitFile
from tests.conftest import ACTION, make_episodes
from tests.data.stores import snapshot
from tests.data.test_replay import at, check_against, language, play


def fails_at(number: int, error: BaseException, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the act came to its write of this number, which fails."""
    write, calls = os.pwrite, itertools.count()

    def limited(*arguments: Any) -> int:
        if next(calls) == number:
            raise error
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", limited)
        try:
            act()
        except type(error):
            return True
    return False


@pytest.fixture
def online(tmp_path: Path) -> Path:
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        for episode in make_episodes(3):
            play(writer, episode)
    return tmp_path / "online"


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\1" * 128)])
def test_a_damaged_commit_deletes_nothing(online: Path, damage: Any) -> None:
    damage(online / "meta/.commit")
    before = snapshot(online)
    with pytest.raises(InputError, match=r"\.commit: (missing|damaged)"):
        ReplayWriter(online, ACTION, language=language())
    assert snapshot(online) == before


def test_a_refused_writer_touches_nothing_and_keeps_no_lock(online: Path) -> None:
    before = snapshot(online)
    for _ in range(2):
        with pytest.raises(InputError, match="mean something else"):
            ReplayWriter(online, {**ACTION, "frame": "joints"}, language=language())
        with pytest.raises(InputError, match="embedded by dataset, not gt-all"):
            ReplayWriter(online, ACTION, language=LanguageEncoder())
    assert snapshot(online) == before
    with ReplayWriter(online, ACTION) as writer:  # its own language model is the default
        play(writer, make_episodes(1)[0])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_last_step_that_fails_anywhere_can_be_taken_again(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write of the step that ends an episode fails: what is committed stays, and the same step then works."""
    episodes, failures = make_episodes(2), 0
    for allowed in range(40):
        out = tmp_path / str(allowed)
        with ReplayWriter(out, ACTION, language=language()) as writer:
            play(writer, episodes[0])
            last = len(episodes[1]) - 1
            play(writer, episodes[1], last)

            def step(writer: ReplayWriter = writer, last: int = last) -> None:
                writer.step(episodes[1].actions[last], at(episodes[1], last + 1), terminated=True, success=True)

            failed = fails_at(allowed, error, step, monkeypatch)
            failures += failed
            if failed:
                check_against(Store.open(out), 1, episodes[1], last, False)
                step()
        store = Store.open(out)
        store.verify()
        assert store.length == 2
        check_against(store, 1, episodes[1], len(episodes[1]), True)
        for key in ("reward", "mask", "mc_return"):
            assert not store.gather(key, store.episode_ends - 1).any()
        if not failed:
            break
    assert failures > 10


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("size", [60, 4096])
def test_checksums_are_right_however_often_a_store_is_closed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: bool, size: int
) -> None:
    monkeypatch.setattr("data.store.array.CHUNK_BYTES", size)
    monkeypatch.setattr("data.store.array.PAGE", 4096)
    episodes, first = make_episodes(6), None
    for index, episode in enumerate(episodes):
        with ReplayWriter(tmp_path / "online", ACTION, language=language(), jpeg=jpeg) as writer:
            play(writer, episode)
            writer.begin(at(episode, 0), "go left")  # without a step it never was
        store = Store.open(tmp_path / "online")
        first = first or store
        for reader in (store, first):  # one that has not looked since is not told of damage
            reader.verify()
        assert store.length == index + 1
    first.refresh()
    for seen in (first, store):
        for key in episodes[0].observations:
            whole = np.concatenate([episode.observations[key] for episode in episodes])
            assert (jpeg and key == "image_primary") or (seen.load(key) == whole).all()
    file = max((store.path / "data/reward").glob("[0-9]*"))
    file.write_bytes(b"\1" * file.stat().st_size)
    with pytest.raises(InputError, match="its checksum is wrong"):
        store.verify()


def test_a_row_that_is_taken_back_takes_its_checksum_along(tmp_path: Path) -> None:
    rows = chunk_rows(4)
    write_array(tmp_path / "a", np.ones(rows, np.float32))
    writer = ArrayWriter.reopen(tmp_path / "a", rows)
    writer.back_to(rows - 1)
    writer.finish()
    array = MappedArray(tmp_path / "a")
    array.verify()
    assert len(array) == rows - 1


@pytest.mark.parametrize("during", ["begin", "end"])
def test_a_begin_or_end_that_fails_anywhere_can_be_taken_again(
    tmp_path: Path, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes, failures, full = make_episodes(2), 0, OSError(28, "No space left on device")
    for allowed in range(40):
        out = tmp_path / str(allowed)
        with ReplayWriter(out, ACTION, language=language()) as writer:
            play(writer, episodes[0])
            if during == "end":
                play(writer, episodes[1], 3)

            def act(writer: ReplayWriter = writer) -> None:
                if during == "end":
                    writer.end(success=True)
                else:
                    writer.begin(at(episodes[1], 0), episodes[1].instruction)

            failed = fails_at(allowed, full, act, monkeypatch)
            failures += failed
            if failed:
                act()
            if during == "begin":
                writer.step(episodes[1].actions[0], at(episodes[1], 1))
        store = Store.open(out)
        store.verify()
        assert store.length == 2
        check_against(store, 1, episodes[1], 3 if during == "end" else 1, during == "end")
        if not failed:
            break
    assert failures > 5


@pytest.mark.parametrize("moment", ["begin", "step", "last step", "end"])
def test_an_interrupt_right_after_a_commit_leaves_whole_episodes(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written counts, though the caller never heard of it."""
    episode, commit = make_episodes(1)[0], CommitFile.commit
    last = len(episode) - 1
    before = {"begin": 0, "step": 2, "last step": last, "end": 3}[moment]
    kept = {"begin": 0, "step": 3, "last step": last + 1, "end": 3}[moment]

    def interrupted(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        raise KeyboardInterrupt

    def act(writer: ReplayWriter) -> None:
        if moment == "begin":
            writer.begin(at(episode, 0), episode.instruction)
        elif moment == "end":
            writer.end()
        else:
            writer.step(episode.actions[before], at(episode, before + 1), truncated=before == last)

    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        if before:
            play(writer, episode, before)
        with monkeypatch.context() as patch:
            patch.setattr(CommitFile, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                act(writer)
        play(writer, episode)
    store = Store.open(tmp_path / "online")
    store.verify()
    assert store.length == (2 if kept else 1)
    if kept:
        check_against(store, 0, episode, kept, False)
    check_against(store, store.length - 1, episode, len(episode), bool(episode.success))


def test_a_closed_writer_and_odd_instructions_are_refused(online: Path) -> None:
    episode = make_episodes(1)[0]
    with ReplayWriter(online, ACTION) as writer, pytest.raises(InputError, match="the instruction is None"):
        writer.begin(at(episode, 0), None)  # type: ignore[arg-type]
    writer.close()  # twice is no harm
    with pytest.raises(InputError, match="the writer is closed"):
        writer.begin(at(episode, 0), "go")
    with pytest.raises(InputError, match="the writer is closed"):
        writer.step(episode.actions[0], at(episode, 1))
    writer.end()
    assert Store.open(online).length == 3
    (online / "instructions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"instructions.jsonl: is empty or missing"):
        Store.open(online)


def test_a_reader_is_told_that_its_store_was_replaced(online: Path) -> None:
    reader = Store.open(online)
    relabel(online, np.ones(3, np.int8))
    with pytest.raises(InputError, match="was replaced"):
        reader.refresh()


def test_an_episode_that_still_runs_is_no_success(tmp_path: Path) -> None:
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, make_episodes(1)[0], 3)
        live = Store.open(tmp_path / "online")
        assert [episode.success for episode in live.read(range(1)) if not isinstance(episode, InputError)] == [False]
        assert set(live.statistics) == {"action", "proprio", "state"}


def test_two_samplers_of_one_growing_store(tmp_path: Path) -> None:
    episodes = make_episodes(3)
    with ReplayWriter(tmp_path / "online", ACTION, language=language()) as writer:
        play(writer, episodes[0])
        store = Store.open(tmp_path / "online")
        first, second = ChunkSampler(store, 2), ChunkSampler(store, 3)
        play(writer, episodes[1])
        assert first.refresh()
        play(writer, episodes[2])
        assert second.refresh()
        assert first.refresh()
        assert not second.refresh()
    for sampler in (first, second):
        fresh = ChunkSampler(Store.open(store.path), sampler.horizon)
        assert sampler.starts.tolist() == fresh.starts.tolist()


def test_rewards_of_another_convention_are_not_mixed(tmp_path: Path) -> None:
    source = EpisodeList("made", ACTION, make_episodes(6))
    stores = []
    for gamma in (0.98, 0.5):
        config = ConversionConfig(reward=RewardConfig(discount=gamma))
        stores.append(convert(source, tmp_path / str(gamma), config, language=LanguageEncoder("dataset")))
    with pytest.raises(InputError, match="convert with one --gamma"):
        MixtureSampler([ChunkSampler(made.store, 2) for made in stores], [1, 1])


def test_given_rewards_are_not_replaced_unasked(tmp_path: Path) -> None:
    episodes = [replace(episode, rewards=np.arange(len(episode), dtype=np.float32)) for episode in make_episodes(2)]
    config = ConversionConfig(reward=RewardConfig("given"))
    store = convert(EpisodeList("made", ACTION, episodes), tmp_path / "s", config, language=LanguageEncoder("dataset")).store
    with pytest.raises(InputError, match="keeps given rewards"):
        relabel(store.path, np.ones(2, np.int8))
    assert relabel(store.path, np.ones(2, np.int8), RewardConfig()).reward["kind"] == "success"


def test_the_language_that_is_asked_for_embeds(tmp_path: Path) -> None:
    """The data's own embeddings are used only by that name."""
    source = EpisodeList("made", ACTION, make_episodes(2))
    store = convert(source, tmp_path / "store", language=LanguageEncoder()).store
    assert store.attributes["language_model"] == LanguageEncoder().model
    np.testing.assert_allclose(
        store.language.encode(store.instructions), LanguageEncoder().encode(store.instructions), atol=1e-5
    )


@pytest.mark.parametrize("outliers", [(), (1e6,), (3e38, -3e38, 1e-40)])
def test_statistics_are_exact_in_flat_memory_whatever_the_outliers(outliers: tuple[float, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(600_000, 2)).astype(np.float32)
    values[7 : 7 + len(outliers)] = np.reshape(outliers, (-1, 1))
    values[::3, 1] = np.float32(-0.0)
    tracemalloc.start()
    found = compute_statistics(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    exact = values.astype(np.float64)
    for name, expected in zip(("q01", "q99"), np.quantile(exact, [0.01, 0.99], axis=0), strict=True):
        assert found[name] == expected.tolist()
    np.testing.assert_allclose(found["std"], exact.std(0), rtol=1e-9)
    few = exact[:5]
    assert compute_statistics(few)["q99"] == pytest.approx(np.quantile(few, 0.99, axis=0), rel=1e-12)
