"""Denoisers: what diffusion and flow policies iterate. One encoded observation conditions K noisy chunks, and is projected once.

`mlp` sees the whole chunk as one vector. `unet` and `transformer` are those of Diffusion Policy (Chi et al. 2303.04137).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.config import DenoiserName
from policies.networks.denoising_transformer import TransformerForDiffusion
from policies.networks.unet1d import ConditionalUnet1D


class Denoiser(nn.Module):
    """Axes: B observations, K chunks of each, H chunk, A action, Z features."""

    def condition(self, z: torch.Tensor) -> Any:
        """What depends on the observation z [B,Z] alone; computed once, then handed to every `forward`."""
        return z

    @abstractmethod
    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Any) -> torch.Tensor:
        """Prediction [B,K,H,A] for noisy chunks [B,K,H,A] at timesteps, a scalar or [B,K], in 0..100 or so."""


class ResidualMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


class MLPDenoiser(Denoiser):
    frequencies: torch.Tensor

    def __init__(self, hidden: int, blocks: int, features: int, chunk: int, action: int) -> None:
        super().__init__()
        self.shape = (chunk, action)
        self.action = nn.Linear(chunk * action, hidden)
        self.observation = nn.Linear(features, hidden)
        self.time = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList([ResidualMLP(hidden) for _ in range(blocks)])
        self.out = nn.Linear(hidden, chunk * action)
        frequencies = torch.exp(-torch.arange(32) / 31 * torch.log(torch.tensor(1000.0)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def condition(self, z: torch.Tensor) -> torch.Tensor:
        return self.observation(z)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        angles = timestep.float()[..., None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.action(noisy.flatten(2)) + condition[:, None] + time
        for block in self.blocks:
            x = block(x)
        return self.out(F.silu(x)).unflatten(-1, self.shape)


class UNetDenoiser(Denoiser):
    """Levels of hidden, 2 hidden, 4 hidden ... channels."""

    def __init__(self, hidden: int, blocks: int, features: int, chunk: int, action: int) -> None:
        super().__init__()
        channels = [hidden * 2**level for level in range(blocks)]
        # Modulation that only shifts learns faster on short chunks: one that scales begins by damping everything.
        self.unet = ConditionalUnet1D(action, features, channels, kernel=3, time_embedding=hidden, scale=False)

    def condition(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.unet.condition(z)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.unet.denoise(noisy.flatten(0, 1), timestep, condition).view_as(noisy)


class TransformerDenoiser(Denoiser):
    def __init__(self, hidden: int, blocks: int, features: int, chunk: int, action: int) -> None:
        super().__init__()
        self.transformer = TransformerForDiffusion(action, chunk, features, layers=blocks, width=hidden)

    def condition(self, z: torch.Tensor) -> torch.Tensor:
        return self.transformer.condition(z)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.transformer.denoise(noisy.flatten(0, 1), timestep, condition).view_as(noisy)


_DENOISERS: dict[str, Any] = {"mlp": MLPDenoiser, "unet": UNetDenoiser, "transformer": TransformerDenoiser}


def make_denoiser(name: DenoiserName, hidden: int, blocks: int, features: int, chunk: int, action: int) -> Denoiser:
    """InputError when the sizes do not suit the network."""
    if name != "mlp" and (hidden % 8 or blocks < 1):
        raise InputError(
            f"--hidden {hidden} --blocks {blocks}: a {name} denoiser needs a multiple of 8, and at least one block"
        )
    return _DENOISERS[name](hidden, blocks, features, chunk, action)
