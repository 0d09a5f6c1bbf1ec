"""Local optimisation of candidate actions: gradient ascent on a Q-function (PA-RL, 2412.06685) inside a trust region."""

from __future__ import annotations

from collections.abc import Callable

import torch


def ascend(
    score: Callable[[torch.Tensor], torch.Tensor],
    actions: torch.Tensor,
    steps: int,
    step_size: float,
    low: float | torch.Tensor = -1.0,
    high: float | torch.Tensor = 1.0,
    trust_region: float | None = None,
    normalized_step: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best iterate of each candidate, the start included: actions [B,K,H,A] and their scores [B,K].

    score: differentiable, [B,K,H,A] -> [B,K]. step_size: a <- a + step_size * grad as in the paper; with `normalized_step` the
    gradient is first divided by its largest entry, so that one step moves some entry by step_size in the units of `actions`. low, high:
    bounds, broadcast against `actions`; a start outside them is left there and its steps clipped towards them. trust_region: no entry
    moves farther than this from its start; None for no limit.
    """
    low, high = torch.as_tensor(low).to(actions), torch.as_tensor(high).to(actions)
    low, high = torch.minimum(low, actions), torch.maximum(high, actions)
    if trust_region is not None:
        low, high = torch.maximum(low, actions - trust_region), torch.minimum(high, actions + trust_region)
    iterate = actions.detach()
    values, gradient = _value_and_gradient(score, iterate)
    best, best_values = iterate, values
    for _ in range(steps):
        if normalized_step:
            gradient = gradient / gradient.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
        iterate = torch.clamp(iterate + step_size * gradient, low, high)
        values, gradient = _value_and_gradient(score, iterate)
        better = values > best_values
        best = torch.where(better[..., None, None], iterate, best)
        best_values = torch.where(better, values, best_values)
    return best, best_values


@torch.enable_grad()
def _value_and_gradient(
    score: Callable[[torch.Tensor], torch.Tensor], actions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    current = actions.detach().requires_grad_(True)
    values = score(current)
    (gradient,) = torch.autograd.grad(values.sum(), current)
    return values.detach(), gradient
