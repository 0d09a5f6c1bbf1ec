"""The reward convention, to the digit."""

from __future__ import annotations

import numpy as np
import pytest

from data.labels.rewards import RewardConfig, monte_carlo


@pytest.mark.parametrize("success", [True, None])
def test_success_of_the_methods_fixture(success: bool | None) -> None:
    reward, mask, mc_return = RewardConfig().label(7, success)
    np.testing.assert_array_equal(reward, [-1, -1, -1, -1, 0, 0, 0])
    np.testing.assert_array_equal(mask, [1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(mc_return, np.float32([-3.881592, -2.9404, -1.98, -1, 0, 0, 0]))


def test_failure_is_never_terminal() -> None:
    reward, mask, mc_return = RewardConfig(discount=0.5).label(3, False)
    np.testing.assert_array_equal(reward, [-1, -1, -1])
    np.testing.assert_array_equal(mask, [1, 1, 1])
    np.testing.assert_array_equal(mc_return, [-1.75, -1.5, -1])


def test_success_shorter_than_its_terminal_steps() -> None:
    reward, mask, mc_return = RewardConfig().label(2, True)
    assert not reward.any()
    assert not mask.any()
    assert not mc_return.any()


def test_monte_carlo_stops_at_a_mask() -> None:
    np.testing.assert_allclose(monte_carlo(np.array([1.0, 2, 4]), np.array([1.0, 0, 1]), 0.5), [2, 2, 4])


@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_a_backup_in_closed_form_is_that_of_the_labels(success: bool, discount: float, n_step: int) -> None:
    config, length = RewardConfig(success_steps=2, discount=discount), 7
    reward, mask, mc_return = config.label(length, success)
    found = config.backup(np.arange(length, 0, -1), success, n_step, discount)
    for t in range(length):
        total, factor = 0.0, 1.0
        for step in range(t, min(t + n_step, length)):
            total, factor = total + factor * reward[step], factor * discount * mask[step]
        np.testing.assert_allclose([found["reward"][t], found["discount"][t]], [total, factor], atol=1e-6)
    np.testing.assert_allclose(found["mc_return"], mc_return, rtol=1e-6)
