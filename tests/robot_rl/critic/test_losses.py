"""The losses against the fixture that three JAX code bases agree on, and against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.critic.losses import (
    conservative_penalty,
    expectile_loss,
    hl_gauss_loss,
    hl_gauss_target,
    hl_gauss_value,
    td_loss,
    td_target,
)

W, C, C_TARGET = torch.tensor([1.0, 2.0]), torch.tensor([-2.0, -1.5]), torch.tensor([-2.2, -1.8])
S = torch.tensor([[0.5, -0.25], [-1, 0.75]])
S_NEXT = torch.tensor([[0.25, 0.5], [0.1, -0.6]])
A = torch.tensor([[0.2, -0.4], [0.6, 0.1]])
REWARD, MASK, MC = torch.tensor([-1.0, 0]), torch.tensor([1.0, 0]), torch.tensor([-1.0, -3])
RANDOM = torch.tensor([[[-0.8, 0.3], [0.9, -0.1]], [[0.4, 0.7], [-0.2, -0.9]]])
CURRENT = torch.tensor([[[0.1, 0], [0.3, -0.5]], [[-0.6, 0.2], [0.5, 0.5]]])
NEXT = torch.tensor([[[0, -0.4], [0.7, 0.7]], [[-0.3, -0.3], [0.2, -0.8]]])
LOG_CURRENT = torch.tensor([[0.3, -0.7], [-1.2, 0.5]])
LOG_NEXT = torch.tensor([[-0.4, 0.9], [0.1, -2]])


def fixture_q(offset: torch.Tensor, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Q_e = c_e + w_e (s.a) - |a|^2 / 2 for actions [B,n,2]: [E,B,n]."""
    product = (state[:, None] * actions).sum(-1)
    return offset[:, None, None] + W[:, None, None] * product - actions.square().sum(-1) / 2


@pytest.mark.parametrize(
    ("clamp", "importance_sampling", "gap", "total"),
    [("policy", True, 3.223710, 21.121003), ("none", True, 3.042183, 20.213369), ("policy", False, 0.577839, 7.891646)],
)
def test_fixture(clamp, importance_sampling, gap, total):
    q = fixture_q(C, S, A[:, None])[..., 0]
    td = td_loss(q, td_target(fixture_q(C_TARGET, S_NEXT, NEXT), REWARD, 0.98 * MASK))
    penalty = conservative_penalty(
        q,
        fixture_q(C, S, RANDOM),
        fixture_q(C, S, CURRENT),
        fixture_q(C, S, NEXT),
        LOG_CURRENT,
        LOG_NEXT,
        action_dim=2,
        mc_return=MC,
        clamp=clamp,
        importance_sampling=importance_sampling,
    ).mean()
    assert td.item() == pytest.approx(5.002452, abs=1e-5)
    assert penalty.item() == pytest.approx(gap, abs=1e-5)
    assert (td + 5 * penalty).item() == pytest.approx(total, abs=1e-5)


def test_without_max_backup_the_first_next_action_counts():
    next_q = torch.tensor([[[1.0, 5.0]], [[2.0, 4.0]]])
    reward, discount = torch.tensor([-1.0]), torch.tensor([0.5])
    assert td_target(next_q, reward, discount, max_target_backup=True).item() == pytest.approx(-1 + 0.5 * 4)
    assert td_target(next_q, reward, discount, max_target_backup=False).item() == pytest.approx(-1 + 0.5 * 1)


def test_clamping_all_also_lifts_the_random_actions():
    low = torch.full((1, 1, 2), -9.0)
    arguments = {"action_dim": 1, "mc_return": torch.tensor([0.0]), "importance_sampling": False}
    arguments |= {"log_prob_current": torch.zeros(1, 2), "log_prob_next": torch.zeros(1, 2)}
    data = torch.zeros(1, 1)
    policy_only = conservative_penalty(data, low, low, low, clamp="policy", **arguments)
    everything = conservative_penalty(data, low, low, low, clamp="all", **arguments)
    assert everything.item() == pytest.approx(0, abs=1e-6)
    assert policy_only < everything


@given(value=st.floats(-5, 5), temperature=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_equal_values_give_no_penalty_without_importance_sampling(value, temperature):
    same = torch.full((2, 3, 4), value)
    zeros = torch.zeros(3, 4)
    gap = conservative_penalty(
        same[..., 0], same, same, same, zeros, zeros, 2, clamp="none", temperature=temperature, importance_sampling=False
    )
    assert gap.abs().max() < 1e-4


def test_expectile_of_one_half_is_half_the_squared_error():
    difference = torch.tensor([-2.0, 1.0, 3.0])
    assert expectile_loss(difference, 0.5).item() == pytest.approx(0.5 * (4 + 1 + 9) / 3)
    assert expectile_loss(torch.tensor([1.0]), 0.9).item() == pytest.approx(0.9)
    assert expectile_loss(torch.tensor([-1.0]), 0.9).item() == pytest.approx(0.1)


@given(st.floats(-50, 0))
@settings(max_examples=50, deadline=None)
def test_hl_gauss_round_trip(value):
    edges = torch.linspace(-50, 0, 102, dtype=torch.float64)
    target = torch.tensor([value], dtype=torch.float64)
    probabilities = hl_gauss_target(target, edges)
    assert probabilities.sum().item() == pytest.approx(1)
    # Truncation at the ends of the support moves the mean by less than a bin there, and not at all elsewhere.
    tolerance = 1e-3 if -47 < value < -3 else 0.5
    assert hl_gauss_value(probabilities.log(), edges).item() == pytest.approx(value, abs=tolerance)


def test_hl_gauss_has_the_stated_width():
    edges = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    width, sigma_bins = 100 / 2000, 30.0
    probabilities = hl_gauss_target(torch.tensor([0.0], dtype=torch.float64), edges, sigma_bins)[0]
    centres = (edges[1:] + edges[:-1]) / 2
    assert math.sqrt((probabilities * centres.square()).sum()) == pytest.approx(sigma_bins * width, rel=1e-2)


def test_hl_gauss_loss_is_least_at_the_target():
    edges = torch.linspace(-10, 0, 21)
    target = torch.tensor([-4.0])
    best = hl_gauss_target(target, edges).clamp_min(1e-9).log()[None]
    assert hl_gauss_loss(best, target, edges) < hl_gauss_loss(best + 0.3 * torch.randn(best.shape), target, edges)
