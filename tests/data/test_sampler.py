"""ChunkSampler against a loop over windows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import ChunkSampler, Episode, EpisodeList, InputError, LanguageEncoder, Relabelling, Store, convert, relabel
from data.labels.rewards import RewardConfig

Shape = tuple[int, bool | None]


@pytest.fixture(scope="module")
def build(make_episode: Callable[..., Episode], action: dict) -> Callable[[list[Shape], Path], Store]:
    def make(shapes: list[Shape], out: Path) -> Store:
        episodes = [make_episode(seed, length, success) for seed, (length, success) in enumerate(shapes)]
        return convert(EpisodeList("made", action, episodes), out, language=LanguageEncoder("dataset")).store

    return make


def check_window(sampler: ChunkSampler, row: int) -> None:
    """One window by the definition, step by step."""
    store, gamma = sampler.store, sampler.discount
    final = int(store.episode_ends[np.searchsorted(store.episode_ends, row, side="right")]) - 1
    batch = sampler.batch(np.array([row]))
    reward, discount, actions, at = 0.0, 1.0, [], row
    for _ in range(sampler.n_step):
        if at < final:
            here = np.array([at])
            reward += discount * store.gather("reward", here)[0]
            discount *= gamma * store.gather("mask", here)[0]
            at += 1
    for step in range(sampler.horizon):
        actions.append(store.gather("action", np.array([min(row + step, final - 1)]))[0])
    np.testing.assert_array_equal(batch["actions"][0], actions)
    np.testing.assert_allclose(batch["reward"][0], reward, rtol=1e-6)
    np.testing.assert_allclose(batch["discount"][0], discount, rtol=1e-6)
    first = int(np.concatenate([[0], store.episode_ends])[np.searchsorted(store.episode_ends, row, side="right")])
    for part, index in (("observations", row), ("next_observations", at)):
        if part not in batch:
            assert sampler.every_start
            continue
        steps = range(index - sampler.window + 1, index + 1)
        for key in sampler.keys:
            expected = store.gather(key, np.array([max(step, first) for step in steps]))
            np.testing.assert_array_equal(batch[part][key][0], expected if sampler.window > 1 else expected[0])
        if sampler.window > 1:
            assert batch[part]["timestep_pad_mask"][0].tolist() == [step >= first for step in steps]
        assert batch[part]["instruction"] == [store.instructions[store.gather("instruction_index", np.array([row]))[0]]]
    assert batch["mc_return"][0] == store.gather("mc_return", np.array([row]))[0]


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([True, False, None])), min_size=1, max_size=5),
    horizon=st.integers(1, 6),
    discount=st.sampled_from([0.5, 0.98, 1.0]),
    every_start=st.booleans(),
    window=st.integers(1, 3),
    n_step=st.one_of(st.none(), st.integers(1, 8)),
)
def test_against_a_loop(
    build: Callable, shapes: list[Shape], horizon: int, discount: float, every_start: bool, window: int, n_step: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = build(shapes, Path(folder) / "store")
        expected, start = [], 0
        for length, success in shapes:
            usable = length if every_start or success is not False else length - max(horizon, n_step or 0) + 1
            expected += range(start, start + max(usable, 0))
            start += length + 1
        if not expected or horizon > max(length for length, _ in shapes):
            with pytest.raises(InputError, match="no episode is long enough"):
                ChunkSampler(store, horizon, discount, every_start=every_start, n_step=n_step)
            return
        sampler = ChunkSampler(store, horizon, discount, every_start=every_start, window=window, n_step=n_step)
        assert sampler.starts.tolist() == expected
        for row in expected:
            check_window(sampler, row)


def test_a_success_ends_and_a_failure_does_not(build: Callable, tmp_path: Path) -> None:
    store = build([(7, True), (7, False)], tmp_path / "store")
    sampler = ChunkSampler(store, 4)
    assert sampler.starts.tolist() == [*range(7), *range(8, 12)]
    batch = sampler.batch(sampler.starts)
    # Four steps of -1 reach the first terminal step of the success only from t = 1 on.
    np.testing.assert_allclose(batch["discount"], [0.98**4, *[0] * 6, *[0.98**4] * 4], rtol=1e-6)
    np.testing.assert_allclose(batch["reward"][:5], [-3.881592, -2.9404, -1.98, -1, 0], rtol=1e-6)


def test_draws_are_uniform_reproducible_and_typed(made_store: Store) -> None:
    sampler = ChunkSampler(made_store, 3, keys=("proprio", "image_wrist"))
    batch = sampler.batch(np.random.default_rng(1), 20_000)
    rows, counts = np.unique(batch["rows"], return_counts=True)
    assert rows.tolist() == sampler.starts.tolist()
    assert counts.min() > 0.7 * 20_000 / len(sampler)
    again = sampler.batch(np.random.default_rng(1), 20_000)
    np.testing.assert_array_equal(again["actions"], batch["actions"])
    assert set(batch["observations"]) == {"proprio", "image_wrist", "instruction", "instruction_embedding"}
    for key in ("actions", "reward", "discount", "mc_return"):
        assert batch[key].dtype == np.float32
    np.testing.assert_array_equal(
        batch["observations"]["instruction_embedding"], made_store.language.encode(batch["observations"]["instruction"])
    )


def test_mistakes(made_store: Store) -> None:
    with pytest.raises(InputError, match="at least one action and the backup one step, got 0"):
        ChunkSampler(made_store, 0)
    with pytest.raises(InputError, match="has no 'image_left'; it has action"):
        ChunkSampler(made_store, 2, keys=("image_left",))
    with pytest.raises(InputError, match="no episode is labelled with what it achieved"):
        ChunkSampler(made_store, 2, relabelling=Relabelling(hindsight=0.5))
    with pytest.raises(InputError, match="--negatives is 2"):
        Relabelling(negatives=2)


@settings(deadline=None, max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(4, 9), st.sampled_from([True, False, None])), min_size=2, max_size=5),
    horizon=st.integers(1, 3),
    n_step=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_relabelled_draws_have_the_labels_of_such_an_episode(
    build: Callable, shapes: list[Shape], horizon: int, n_step: int, seed: int
) -> None:
    """Hindsight gives what a store of successes at the achieved instruction gives, a negative what one of failures gives."""
    with tempfile.TemporaryDirectory() as folder:
        store = build(shapes, Path(folder) / "store")
        count = store.length
        # The achieved instruction is the other one of the two, so that it says which way a draw was relabelled.
        given_index = store.gather("instruction_index", store.episode_ends - 1)
        achieved = np.where(np.arange(count) % 2 == 0, 1 - given_index, -1)
        own = relabel(store.path, store.success, achieved=achieved)
        good = relabel(store.path, np.ones(count, np.int8), out=Path(folder) / "good")
        bad = relabel(store.path, np.zeros(count, np.int8), out=Path(folder) / "bad")
        sampler = ChunkSampler(own, horizon, n_step=n_step, relabelling=Relabelling(hindsight=0.5, negatives=0.5))
        batch = sampler.batch(np.random.default_rng(seed), 200)
        rows, drawn = batch["rows"], np.array([store.instructions.index(text) for text in batch["observations"]["instruction"]])
        episode = np.searchsorted(own.episode_ends, rows, side="right")
        original = own.gather("instruction_index", rows)
        hindsight = (drawn != original) & (achieved[episode] == drawn)
        negative = (drawn != original) & ~hindsight
        if len(sampler) > 20 and len(store.instructions) == 2:
            assert hindsight.any() or not (achieved[episode] >= 0).any()
        for chosen, expected in ((hindsight, good), (negative, bad), (drawn == original, own)):
            plain = ChunkSampler(expected, horizon, n_step=n_step)
            reference = plain.batch(rows[chosen])
            for key in ("reward", "discount", "mc_return"):
                np.testing.assert_allclose(batch[key][chosen], reference[key], rtol=1e-5, atol=1e-6)
        assert batch["next_observations"]["instruction"] == batch["observations"]["instruction"]


def test_caps(build: Callable, tmp_path: Path) -> None:
    store = build([(9, True)] * 6 + [(2, True)], tmp_path / "store")
    sampler = ChunkSampler(store, 1, starts_per_episode=3)
    episode = np.searchsorted(store.episode_ends, sampler.starts, side="right")
    assert np.bincount(episode).tolist() == [3, 3, 3, 3, 3, 3, 2]
    assert sampler.starts[:3].tolist() == [0, 3, 6]
    assert sampler.starts[-2:].tolist() == [60, 61]
    few = ChunkSampler(store, 1, episodes=3)
    assert np.unique(np.searchsorted(store.episode_ends, few.starts, side="right")).tolist() == [0, 3, 6]


def test_relabelling_a_store_shares_its_frames_and_keeps_the_old_labels_elsewhere(build: Callable, tmp_path: Path) -> None:
    store = build([(5, True), (6, False), (4, None)], tmp_path / "store")
    copy = relabel(store.path, np.array([0, 1, -1], np.int8), out=tmp_path / "copy", note="by hand")
    copy.verify()
    assert copy.success.tolist() == [0, 1, -1]
    assert copy.changes[-1] == "by hand"
    assert Store.open(store.path).success.tolist() == [1, 0, -1]
    for index, (length, success) in enumerate([(5, False), (6, True), (4, None)]):
        rows = np.arange(copy.episode_ends[index] - length - 1, copy.episode_ends[index] - 1)
        for key, values in zip(("reward", "mask", "mc_return"), RewardConfig().label(length, success), strict=True):
            np.testing.assert_array_equal(copy.gather(key, rows), values)
    np.testing.assert_array_equal(copy.load("image_primary"), store.load("image_primary"))
    for wrong in (np.zeros(2, np.int8), np.full(3, 2, np.int8)):
        with pytest.raises(InputError, match="success must be 3 numbers from -1 to 1"):
            relabel(store.path, wrong)
