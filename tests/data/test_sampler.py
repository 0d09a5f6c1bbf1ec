"""ChunkSampler against a loop over windows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import ChunkSampler, Episode, EpisodeSource, InputError, LanguageEncoder, Store, convert

Shape = tuple[int, bool | None]


@pytest.fixture(scope="module")
def build(make_episode: Callable[..., Episode], action: dict) -> Callable[[list[Shape], Path], Store]:
    def make(shapes: list[Shape], out: Path) -> Store:
        episodes = [make_episode(seed, length, success) for seed, (length, success) in enumerate(shapes)]
        source = EpisodeSource("made", "memory", "train", action, len(episodes), lambda on_bad, images: iter(episodes))
        return convert(source, out, language=LanguageEncoder("dataset")).store

    return make


def check_window(sampler: ChunkSampler, row: int) -> None:
    """One window by the definition, step by step."""
    store, gamma = sampler.store, sampler.discount
    final = int(store.episode_ends[np.searchsorted(store.episode_ends, row, side="right")]) - 1
    batch = sampler.batch(np.array([row]))
    reward, discount, actions, at = 0.0, 1.0, [], row
    for _ in range(sampler.horizon):
        if at < final:
            here = np.array([at])
            reward += discount * store.gather("reward", here)[0]
            discount *= gamma * store.gather("mask", here)[0]
            at += 1
        actions.append(store.gather("action", np.array([min(row + len(actions), final - 1)]))[0])
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
        assert batch[part]["instruction"] == [store.instructions[batch["instruction_index"][0]]]
    assert batch["mc_return"][0] == store.gather("mc_return", np.array([row]))[0]


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([True, False, None])), min_size=1, max_size=5),
    horizon=st.integers(1, 6),
    discount=st.sampled_from([0.5, 0.98, 1.0]),
    every_start=st.booleans(),
    window=st.integers(1, 3),
)
def test_against_a_loop(
    build: Callable, shapes: list[Shape], horizon: int, discount: float, every_start: bool, window: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = build(shapes, Path(folder) / "store")
        expected, start = [], 0
        for length, success in shapes:
            usable = length if every_start or success is not False else length - horizon + 1
            expected += range(start, start + max(usable, 0))
            start += length + 1
        if not expected or horizon > max(length for length, _ in shapes):
            with pytest.raises(InputError, match="no episode is long enough"):
                ChunkSampler(store, horizon, discount, every_start=every_start)
            return
        sampler = ChunkSampler(store, horizon, discount, every_start=every_start, window=window)
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
    assert batch["instruction_index"].dtype == np.int32
    np.testing.assert_array_equal(
        batch["observations"]["instruction_embedding"][0],
        made_store.language.encode([made_store.instructions[batch["instruction_index"][0]]])[0],
    )


def test_mistakes(made_store: Store) -> None:
    with pytest.raises(InputError, match="at least one action, got 0"):
        ChunkSampler(made_store, 0)
    with pytest.raises(InputError, match="has no 'image_left'; it has action"):
        ChunkSampler(made_store, 2, keys=("image_left",))
