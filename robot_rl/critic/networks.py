"""Networks of the critic: an ensemble of MLPs evaluated as one batched product, and the tanh-Gaussian actor that CQL draws from."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F


class EnsembleMLP(nn.Module):
    """E independent MLPs on (z, a): z [B,Z], a [B,K,D] -> [E,B,K,out].

    The first layer is split, so that the observation's part is computed once for all K candidates.
    """

    def __init__(self, members: int, condition: int, action: int, hidden: int, depth: int, out: int) -> None:
        super().__init__()
        self.members = members
        fan_in = condition + action
        self.condition_weight = _uniform((members, condition, hidden), fan_in)
        self.action_weight = _uniform((members, action, hidden), fan_in) if action else None
        self.first_bias = _uniform((members, 1, hidden), fan_in)
        self.weights = nn.ParameterList([_uniform((members, hidden, hidden), hidden) for _ in range(depth - 1)])
        self.biases = nn.ParameterList([_uniform((members, 1, hidden), hidden) for _ in range(depth - 1)])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(members, 1, hidden)) for _ in range(depth)])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(members, 1, hidden)) for _ in range(depth)])
        self.out_weight = _uniform((members, hidden, out), hidden)
        self.out_bias = nn.Parameter(torch.zeros(members, 1, out))

    def forward(self, condition: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        batch = len(condition)
        x = torch.baddbmm(self.first_bias, condition.expand(self.members, -1, -1), self.condition_weight)
        candidates = 1
        if action is not None and self.action_weight is not None:
            candidates = action.shape[1]
            flat = action.reshape(1, batch * candidates, -1).expand(self.members, -1, -1)
            x = torch.bmm(flat, self.action_weight).unflatten(1, (batch, candidates)) + x[:, :, None]
            x = x.flatten(1, 2)
        x = self._activate(x, 0)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), start=1):
            x = self._activate(torch.baddbmm(bias, x, weight), layer)
        return torch.baddbmm(self.out_bias, x, self.out_weight).unflatten(1, (batch, candidates))

    def _activate(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        return F.silu(torch.addcmul(self.shifts[layer], x, self.scales[layer]))


class TanhGaussianActor(nn.Module):
    """pi(a|z) on [-1,1]^D, the stochastic actor of SAC (1812.05905), from which CQL and Cal-QL draw."""

    def __init__(self, condition: int, action: int, hidden: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(condition, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.mean = nn.Linear(hidden, action)
        self.log_std = nn.Linear(hidden, action)

    def forward(
        self, condition: torch.Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z [B,Z] -> n reparameterised actions [B,n,D] and their log-densities [B,n]."""
        hidden = self.trunk(condition)
        mean, log_std = self.mean(hidden)[:, None], self.log_std(hidden).clamp(-5, 2)[:, None]
        noise = torch.randn(
            (len(condition), num_samples, mean.shape[-1]), generator=generator, device=condition.device, dtype=condition.dtype
        )
        raw = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2) without cancellation.
        log_jacobian = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (log_normal - log_jacobian).sum(-1)


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    bound = 1 / math.sqrt(fan_in)
    return cast(nn.Parameter, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
