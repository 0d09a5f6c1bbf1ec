"""Demonstrators: the clean one succeeds, quality orders them, and they are what a mixture needs: random, bounded, closed-loop."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from demonstrations import demonstrate

from sim.tabletop import TABLETOP
from sim.tabletop.expert import Expert


@pytest.mark.parametrize("env_id", list(TABLETOP.tasks.values()))
def test_clean_demonstrations_succeed(env_id: str) -> None:
    rate, actions = demonstrate(env_id, 1.0, 10)
    assert rate >= 0.8
    assert np.mean([len(episode) for episode in actions]) < 26
    every = np.concatenate(actions)
    assert (every.std(axis=0) > 1e-3).all()  # no action dimension is dead


@pytest.mark.parametrize("env_id", [TABLETOP.tasks["lift"], TABLETOP.tasks["bowl"], TABLETOP.tasks["drawer"]])
def test_disturbed_demonstrations_recover(env_id: str) -> None:
    assert demonstrate(env_id, 1.0, 6, disturb=True)[0] >= 0.6


def test_quality_orders_success() -> None:
    rates = []
    for quality in (1.0, 0.5, 0.0):
        rates.append(np.mean([demonstrate(env_id, quality, 8)[0] for env_id in TABLETOP.tasks.values()]))
    assert rates[0] > rates[1] + 0.2
    assert rates[1] > rates[2] + 0.1
    assert 0 < rates[2] < 0.4


def test_demonstrators_differ_from_the_same_state() -> None:
    env = gym.make(TABLETOP.tasks["lift"], cameras=())
    env.reset(seed=0)
    first = np.array([Expert(env, 0.0, seed=seed).act() for seed in range(12)])
    assert len({tuple(np.sign(np.round(action[:2], 2))) for action in first}) > 1
    env.close()


def test_an_expert_is_reproducible() -> None:
    first, second = (demonstrate(TABLETOP.tasks["stack"], 0.5, 2)[1] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_quality_outside_its_range_is_refused() -> None:
    env = gym.make(TABLETOP.tasks["lift"], cameras=())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Expert(env, 1.5)
    with pytest.raises(RuntimeError, match="reset"):
        Expert(env).act()
    env.close()
