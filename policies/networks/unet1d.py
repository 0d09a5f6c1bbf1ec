"""The temporal UNet of Diffusion Policy (Chi et al. 2303.04137, section 3.1): 1-D convolutions over a chunk, FiLM-conditioned.

Parameters have LeRobot's names; Stanford's checkpoints become these by renaming (see policies/diffusion_policy.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

# Whatever `groups` says, the last block has these: both originals leave it at its default there.
_FINAL_GROUPS = 8


class SinusoidalEmbedding(nn.Module):
    """Timesteps [...] -> sines and cosines [...,D] of geometrically spaced frequencies 1 to 1/10000."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies = dim // 2

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        powers = torch.arange(self.frequencies, device=timestep.device) * -(math.log(10000) / (self.frequencies - 1))
        angles = timestep[..., None] * powers.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, channels_in: int, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2), nn.GroupNorm(groups, channels), nn.Mish()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class FiLMBlock(nn.Module):
    """Residual block with FiLM between its convolutions: x a(c) + b(c), or x + b(c) without `scale`."""

    def __init__(self, channels_in: int, channels: int, condition: int, kernel: int, groups: int, scale: bool) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = ConvBlock(channels_in, channels, kernel, groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * channels if scale else channels))
        self.conv2 = ConvBlock(channels, channels, kernel, groups)
        self.residual_conv = nn.Conv1d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    @property
    def modulation(self) -> nn.Linear:
        return cast(nn.Linear, self.cond_encoder[1])

    def observation_part(self, z: torch.Tensor) -> torch.Tensor:
        """What z [B,Z] adds to the modulation. Mish acts on each entry, so time and observation project separately."""
        return F.linear(F.mish(z), self.modulation.weight[:, self.modulation.in_features - z.shape[-1] :], self.modulation.bias)

    def time_part(self, time: torch.Tensor) -> torch.Tensor:
        return F.linear(F.mish(time), self.modulation.weight[:, : time.shape[-1]])

    def forward(self, x: torch.Tensor, time: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        """x [N,C,H], time [1 or N,E], film [B,.] of `observation_part`, each row for N / B consecutive rows of x."""
        modulation = (film.repeat_interleave(len(x) // len(film), 0) + self.time_part(time))[..., None]
        y = self.conv1(x)
        if self.scale:
            scale, shift = modulation.chunk(2, dim=1)
            y = y * scale + shift
        else:
            y = y + modulation
        return self.conv2(y) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    """Denoiser of chunks [N,H,A] at timesteps, given an observation's features.

    down_dims: channels of each level, multiples of 8 and of `groups`. condition: Z, may be 0. local: size of a condition that comes
    for each action of the chunk, 0 for none. scale: FiLM multiplies too. A length that the levels do not divide is padded and cropped.
    """

    def __init__(
        self,
        action: int,
        condition: int,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel: int = 5,
        groups: int = 8,
        time_embedding: int = 256,
        scale: bool = True,
        local: int = 0,
    ) -> None:
        super().__init__()

        def block(channels_in: int, channels: int) -> FiLMBlock:
            return FiLMBlock(channels_in, channels, time_embedding + condition, kernel, groups, scale)

        dims = [action, *down_dims]
        levels = list(pairwise(dims))
        self.stride = 2 ** (len(levels) - 1)
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(time_embedding),
            nn.Linear(time_embedding, 4 * time_embedding),
            nn.Mish(),
            nn.Linear(4 * time_embedding, time_embedding),
        )
        self.local_cond_encoder = block(local, dims[1]) if local else None
        self.down_modules = nn.ModuleList()
        for level, (channels_in, channels) in enumerate(levels):
            down = nn.Conv1d(channels, channels, 3, 2, 1) if level < len(levels) - 1 else nn.Identity()
            self.down_modules.append(nn.ModuleList([block(channels_in, channels), block(channels, channels), down]))
        self.mid_modules = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        self.up_modules = nn.ModuleList()
        for channels, channels_in in reversed(levels[1:]):
            up = nn.ConvTranspose1d(channels, channels, 4, 2, 1)
            self.up_modules.append(nn.ModuleList([block(2 * channels_in, channels), block(channels, channels), up]))
        self.final_conv = nn.Sequential(ConvBlock(dims[1], dims[1], kernel, _FINAL_GROUPS), nn.Conv1d(dims[1], action, 1))

    def condition(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """The observation's part in every block's modulation, from z [B,Z]; the same for all timesteps and all chunks."""
        return {name: block.observation_part(z) for name, block in self.named_modules() if isinstance(block, FiLMBlock)}

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, z: torch.Tensor, local: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prediction [N,H,A] for noisy [N,H,A], timestep (scalar or [N]), z [N,Z] (or [B,Z], for N / B chunks each)."""
        return self.denoise(noisy, timestep, self.condition(z), local)

    def denoise(
        self, noisy: torch.Tensor, timestep: torch.Tensor, films: dict[str, torch.Tensor], local: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`forward` after `condition`. local [N,H,L]."""
        time = self.diffusion_step_encoder(timestep.reshape(-1))

        def run(name: str, x: torch.Tensor) -> torch.Tensor:
            return self.get_submodule(name)(x, time, films[name])

        length = noisy.shape[1]
        x = noisy.transpose(1, 2)
        if length % self.stride:
            x = F.pad(x, (0, -length % self.stride), mode="replicate")
        skips = []
        for level in range(len(self.down_modules)):
            x = run(f"down_modules.{level}.0", x)
            if level == 0 and local is not None:
                x = x + run("local_cond_encoder", local.transpose(1, 2))
            x = run(f"down_modules.{level}.1", x)
            skips.append(x)
            x = self.get_submodule(f"down_modules.{level}.2")(x)
        for index in range(len(self.mid_modules)):
            x = run(f"mid_modules.{index}", x)
        for level in range(len(self.up_modules)):
            x = run(f"up_modules.{level}.0", torch.cat([x, skips.pop()], dim=1))
            x = run(f"up_modules.{level}.1", x)
            x = self.get_submodule(f"up_modules.{level}.2")(x)
        return self.final_conv(x).transpose(1, 2)[:, :length]
