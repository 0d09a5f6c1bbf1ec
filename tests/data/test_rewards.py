"""The reward convention, to the digit."""

from __future__ import annotations

import numpy as np
import pytest

from data.labels.rewards import label, monte_carlo


@pytest.mark.parametrize("success", [True, None])
def test_success_of_the_methods_fixture(success: bool | None) -> None:
    reward, mask, mc_return = label(7, success, 3, 0.98)
    np.testing.assert_array_equal(reward, [-1, -1, -1, -1, 0, 0, 0])
    np.testing.assert_array_equal(mask, [1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(mc_return, np.float32([-3.881592, -2.9404, -1.98, -1, 0, 0, 0]))


def test_failure_is_never_terminal() -> None:
    reward, mask, mc_return = label(3, False, 3, 0.5)
    np.testing.assert_array_equal(reward, [-1, -1, -1])
    np.testing.assert_array_equal(mask, [1, 1, 1])
    np.testing.assert_array_equal(mc_return, [-1.75, -1.5, -1])


def test_success_shorter_than_its_terminal_steps() -> None:
    reward, mask, mc_return = label(2, True, 3, 0.98)
    assert not reward.any()
    assert not mask.any()
    assert not mc_return.any()


def test_monte_carlo_stops_at_a_mask() -> None:
    np.testing.assert_allclose(monte_carlo(np.array([1.0, 2, 4]), np.array([1.0, 0, 1]), 0.5), [2, 2, 4])
