"""Histories: what an episode's History gives is what `windowed` makes of shorter ones, and the newest step is where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.history import MASK, History, has_window, latest, windowed

sizes = st.integers(1, 6)


def step(index: int) -> dict[str, Any]:
    """One observation, told from others by its numbers; its instruction and goal belong to the episode."""
    return {
        "image_primary": np.full((2, 3, 3), index, np.uint8),
        "proprio": np.array([index, -index], np.float32),
        "instruction": "go",
        "goal_image_primary": np.full((2, 3, 3), 99, np.uint8),
    }


def remembered(window: int, steps: int) -> dict[str, Any]:
    history = History(window)
    for index in range(1, steps + 1):
        history.append(step(index))
    return history.observation()


def batched(observation: dict[str, Any], batch: int = 1) -> dict[str, Any]:
    return {
        key: [value] * batch if key == "instruction" else np.repeat(value[None], batch, axis=0)
        for key, value in observation.items()
    }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert np.array_equal(value, right[key]), key
        if isinstance(value, np.ndarray):
            assert value.dtype == right[key].dtype


@given(window=st.integers(2, 6), steps=st.integers(1, 9))
def test_the_newest_is_last_and_the_first_stands_in(window, steps):
    observation = remembered(window, steps)
    present = min(window, steps)
    expected = [max(1, steps - window + 1)] * (window - present) + list(range(steps - present + 1, steps + 1))
    assert observation["proprio"][:, 0].tolist() == expected
    assert observation["image_primary"][:, 0, 0, 0].tolist() == expected
    assert observation[MASK].tolist() == [False] * (window - present) + [True] * present
    assert observation["instruction"] == "go"
    assert observation["goal_image_primary"].shape == (2, 3, 3)


@given(steps=st.integers(1, 4))
def test_a_window_of_one_is_the_last_observation(steps):
    assert_same(remembered(1, steps), step(steps))


@given(kept=st.integers(2, 6), window=sizes, steps=st.integers(1, 9), batch=st.integers(1, 3))
def test_a_window_of_another_length(kept, window, steps, batch):
    """Cut to the newest, or lengthened by the first that is there."""
    given_observations = batched(remembered(kept, steps), batch)
    made = windowed(given_observations, window)
    assert made[MASK].shape == (batch, window)
    for key in ("proprio", "image_primary"):
        assert made[key].shape == (batch, window, *given_observations[key].shape[2:])
        common = min(kept, window)
        assert np.array_equal(made[key][:, -common:], given_observations[key][:, -common:])
        for lengthened in range(window - common):
            assert np.array_equal(made[key][:, lengthened], given_observations[key][:, 0])
    assert made[MASK].sum() == batch * min(steps, kept, window)
    assert made["instruction"] == ["go"] * batch
    assert made["goal_image_primary"].shape == (batch, 2, 3, 3)
    if window <= kept and window > 1:
        assert_same(made, batched(remembered(window, steps), batch))


@given(window=sizes, batch=st.integers(1, 3))
def test_without_a_history_it_has_just_begun(window, batch):
    made = windowed(batched(step(7), batch), window)
    assert made[MASK].tolist() == [[False] * (window - 1) + [True]] * batch
    assert (made["proprio"][:, :, 0] == 7).all()
    if window > 1:
        assert_same(made, batched(remembered_once(window), batch))


def remembered_once(window: int) -> dict[str, Any]:
    history = History(window)
    history.append(step(7))
    return history.observation()


@given(kept=st.integers(2, 6), window=sizes, steps=st.integers(1, 9), batch=st.integers(1, 3))
def test_the_latest_is_the_last_step_whatever_the_window(kept, window, steps, batch):
    last = batched(step(steps), batch)
    given_observations = batched(remembered(kept, steps), batch)
    assert_same(dict(latest(given_observations)), last)
    assert_same(dict(latest(windowed(given_observations, window))), last)
    assert_same(dict(latest(windowed(last, window))), last)
    assert latest(last) is last


@given(kept=st.integers(2, 6), window=sizes, steps=st.integers(1, 9))
def test_nothing_given_is_changed(kept, window, steps):
    given_observations = batched(remembered(kept, steps), 2)
    before = {key: np.array(value, copy=True) for key, value in given_observations.items()}
    windowed(given_observations, window)
    latest(given_observations)
    assert_same({key: np.asarray(value) for key, value in given_observations.items()}, before)
    again = windowed(windowed(given_observations, window), window)
    assert_same(again, windowed(given_observations, window))


def test_a_new_episode_has_a_new_history():
    """And the old one's observations are not held longer than its window."""
    history = History(2)
    for index in range(5):
        history.append(step(index))
    assert history.observation()["proprio"][:, 0].tolist() == [3, 4]
    with pytest.raises(IndexError):
        History(2).observation()


@pytest.mark.parametrize(
    ("key", "windows"),
    [
        ("image_primary", True),
        ("proprio", True),
        ("state", True),
        ("instruction", False),
        ("goal_image_primary", False),
        (MASK, False),
    ],
)
def test_what_has_a_window(key, windows):
    assert has_window(key) is windows
