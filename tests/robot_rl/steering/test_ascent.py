"""Local optimisation: the fixture of the method, and what it promises for any score."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.steering import ascend

TARGET = torch.tensor([[0.5, -0.5], [0.9, 0.9]])[:, None, None]


def fixture_score(actions):
    """The ensemble mean of Q1 = -|a-t|^2 and Q2 = .5 - 3|a-t|^2."""
    squared = (actions - TARGET).square().sum((-1, -2))
    return ((-squared) + (0.5 - 3 * squared)) / 2


def test_fixture():
    start = torch.tensor([[0.0, 0.0], [-0.2, 1.0]])[:, None, None]
    actions, values = ascend(fixture_score, start, steps=3, step_size=0.1, low=-0.99999, high=0.99999)
    assert torch.allclose(actions[:, 0, 0], torch.tensor([[0.392, -0.392], [0.6624, 0.9216]]), atol=1e-5)
    assert torch.allclose(values, fixture_score(actions))


@given(seed=st.integers(0, 10_000), step=st.floats(1e-4, 10), region=st.floats(1e-3, 0.5), normalized=st.booleans())
@settings(max_examples=30, deadline=None)
def test_never_worse_never_out_of_reach(seed, step, region, normalized):
    """Even with a step so long that it overshoots, the best iterate (the start included) is what comes back."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(2, 5, 3, 4, generator=generator) * 2 - 1
    weights = torch.randn(3, 4, generator=generator) * 5

    def score(actions):
        return torch.sin(actions * weights).sum((-1, -2))

    actions, values = ascend(score, start, 5, step, trust_region=region, normalized_step=normalized)
    assert (values >= score(start)).all()
    assert (actions - start).abs().max() <= region + 1e-6
    assert actions.abs().max() <= 1
    assert torch.allclose(values, score(actions), atol=1e-5)


def test_a_normalized_step_moves_by_its_size():
    actions, _ = ascend(lambda a: 1e-6 * a.sum((-1, -2)), torch.zeros(1, 1, 2, 3), 1, 0.02, normalized_step=True)
    assert actions.max().item() == pytest.approx(0.02)


def test_a_start_outside_the_bounds_is_not_dragged_in():
    start = torch.full((1, 1, 1, 1), 1.5)
    actions, _ = ascend(lambda a: a.sum((-1, -2)), start, 3, 0.1)
    assert actions.item() == pytest.approx(1.5)
