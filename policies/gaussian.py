"""Gaussian policy: a diagonal Gaussian over the whole chunk, whose mean and width depend on the observation."""

from __future__ import annotations

import math

import torch
from torch import nn

from policies.base import Observations
from policies.config import GaussianConfig
from policies.contract import DataContract
from policies.networks.denoiser import ResidualMLP
from policies.trained import TrainedPolicy

_MAX_LOG_STD = 1.0


class GaussianPolicy(TrainedPolicy):
    """A diagonal Gaussian over action chunks, trained by maximum likelihood.

    Samples are clipped to the action bounds; `log_prob` is the density before clipping.
    """

    config_type = GaussianConfig

    def __init__(self, config: GaussianConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        self.size = self.action_spec.chunk * self.action_spec.dim
        self.head = nn.Sequential(
            nn.Linear(self.encoder.output, config.hidden),
            *(ResidualMLP(config.hidden) for _ in range(config.blocks)),
            nn.SiLU(),
            nn.Linear(config.hidden, 2 * self.size),
        )
        self.min_log_std = math.log(config.min_std)

    def log_prob(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        chunks = self.contract.action_normalizer.normalize(actions)
        scale = torch.as_tensor(self.contract.action_normalizer.scale, device=chunks.device)
        # A density in physical units: the change of variables divides by the scale of each of the H x A entries.
        return self._log_density(self.encode(observations), chunks) - self.action_spec.chunk * scale.log().sum()

    def head_loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return -self._log_density(z, chunks[:, None])[:, 0] / self.size

    def head_sample(self, z: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        mean, log_std = self._moments(z)
        noise = torch.randn((len(z), num_samples, self.size), generator=generator, device=z.device)
        return (mean[:, None] + log_std.exp()[:, None] * noise).unflatten(-1, (self.action_spec.chunk, -1))

    def _moments(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.head(z).chunk(2, dim=-1)
        # A smooth bound: a clipped width would stop learning where it is clipped.
        middle, half = (_MAX_LOG_STD + self.min_log_std) / 2, (_MAX_LOG_STD - self.min_log_std) / 2
        return mean, middle + half * torch.tanh(log_std)

    def _log_density(self, z: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
        """[B,K] of normalised chunks [B,K,H,A]."""
        mean, log_std = self._moments(z)
        standardized = (chunks.flatten(2) - mean[:, None]) * (-log_std).exp()[:, None]
        return -0.5 * standardized.square().sum(-1) - log_std.sum(-1)[:, None] - 0.5 * self.size * math.log(2 * math.pi)
