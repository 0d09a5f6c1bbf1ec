"""Smoothing values over candidates: what it keeps, and what it does to the best of many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.steering.smoothing import kernel, tilted


def drawn(k: int, seed: int, dim: int = 6, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, k), generator=generator), torch.randn((batch, k, dim), generator=generator), generator


@given(st.integers(1, 60), st.integers(0, 1000), st.floats(0.05, 3), st.floats(0, 5))
def test_it_does_not_depend_on_units_or_order(k: int, seed: int, width: float, temperature: float) -> None:
    """Chunks may be moved and stretched, values too if the temperature is; candidates may come in any order."""
    values, chunks, generator = drawn(k, seed)
    result = tilted(values, chunks, width, temperature)
    moved = tilted(2 * values + 1, 3 * chunks + 0.5, width, 2 * temperature)
    assert torch.allclose(moved, 2 * result + 1, atol=1e-2)
    order = torch.randperm(k, generator=generator)
    assert torch.allclose(tilted(values[:, order], chunks[:, order], width, temperature), result[:, order], atol=1e-4)


def test_as_the_formula_says() -> None:
    values, chunks, _ = drawn(9, 0, batch=1)
    result = tilted(values, chunks, 0.7, 1.5)
    distances = torch.tensor([[(a - b).norm() for b in chunks[0]] for a in chunks[0]])
    between = torch.tensor([distances[i, j] for i in range(9) for j in range(i)])
    near = torch.exp(-0.5 * (distances / (0.7 * between.median())) ** 2)
    for i in range(9):
        density = near[i].sum()
        expected = sum(near[i, j] * values[0, j] for j in range(9)) / density + 1.5 * torch.log(density / 9)
        assert result[0, i] == pytest.approx(float(expected), abs=1e-5)


def test_between_the_critic_and_the_policy() -> None:
    """With a narrow kernel at temperature 0 the values themselves; at a high temperature the policy's mode, whatever the values."""
    values, chunks, _ = drawn(40, 1)
    assert torch.allclose(tilted(values, chunks, 1e-3, 0.0), values, atol=1e-5)
    assert torch.equal(tilted(values, chunks, 0.5, 1e4).argmax(1), kernel(chunks, 0.5).sum(-1).argmax(1))


def test_one_candidate_and_equal_candidates_are_no_trouble() -> None:
    assert torch.equal(tilted(torch.tensor([[2.0]]), torch.zeros(1, 1, 4), 0.3, 1.0), torch.tensor([[2.0]]))
    values = torch.tensor([[1.0, 3.0, 5.0]])
    assert torch.allclose(tilted(values, torch.zeros(1, 3, 4), 0.3, 1.0), torch.full((1, 3), 3.0))


@pytest.mark.parametrize("equal", [20, 36, 49])
def test_many_equal_candidates_beside_others(equal: int) -> None:
    """As of a policy with peaked tokens: the crowd is one neighbourhood, and nobody's rank is not a number."""
    for seed in range(20):
        _, chunks, _ = drawn(50, seed, dim=7, batch=1)
        chunks[:, :equal] = chunks[:, :1]
        values = torch.where(torch.arange(50) < equal, 0.0, -50.0)[None]
        ranks = tilted(values, chunks, 0.3, 4.0)
        assert ranks.isfinite().all()
        assert ranks.argmax() < equal


def test_a_lonely_outlier_with_a_high_value_is_not_chosen() -> None:
    crowd = 0.1 * torch.randn((1, 199, 3), generator=torch.Generator().manual_seed(0))
    chunks = torch.cat([crowd, torch.full((1, 1, 3), 3.0)], dim=1)
    values = torch.cat([-10 * (crowd[..., 0] - 0.1).abs(), torch.tensor([[1.0]])], dim=1)
    assert values.argmax() == 199
    assert tilted(values, chunks, 0.3, 1.0).argmax() != 199


def test_more_candidates_do_no_harm_where_the_critic_errs() -> None:
    """A critic with errors of its own about each action: the maximum over K falls for them, the smoothed values do not."""
    generator = torch.Generator().manual_seed(0)
    means: dict[str, list[float]] = {"max": [], "smoothed": []}
    for k in (10, 50, 200, 1000):
        chunks = torch.randn((400, k, 2), generator=generator)
        truth = -(chunks - 0.5).square().sum(-1)
        values = truth + torch.randn(truth.shape, generator=generator) * (0.5 + chunks.norm(dim=-1))  # the worse, the farther
        for name, ranks in (("max", values), ("smoothed", tilted(values, chunks, 0.3, 1.0))):
            means[name].append(float(torch.take_along_dim(truth, ranks.argmax(1, keepdim=True), 1).mean()))
    assert means["max"][-1] < means["max"][0]
    assert means["smoothed"] == sorted(means["smoothed"])
    assert means["smoothed"][-1] > -0.2 > means["max"][-1]
