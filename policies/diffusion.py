"""Diffusion policy: denoise an action chunk given the encoded observation (Chi et al. 2303.04137), with diffusers' schedulers.

The observation is encoded once; K samples are one batch through the denoiser, whose conditioning is computed once an observation.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from policies.base import ActionSpec, Observations
from policies.config import DiffusionConfig, config_from_json
from policies.contract import DataContract, load_trained
from policies.networks.encoder import ObservationEncoder


class ResidualMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


class Denoiser(nn.Module):
    """Noisy chunks [B,K,D] at timesteps [B,K] or a scalar, conditioned on z [B,Z] -> prediction [B,K,D]."""

    frequencies: torch.Tensor

    def __init__(self, config: DiffusionConfig, condition: int, action: int) -> None:
        super().__init__()
        width = config.hidden
        self.action = nn.Linear(action, width)
        self.condition = nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([ResidualMLP(width) for _ in range(config.blocks)])
        self.out = nn.Linear(width, action)
        frequencies = torch.exp(-torch.arange(32) / 31 * torch.log(torch.tensor(1000.0)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        angles = timestep.float()[..., None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.action(noisy) + condition[:, None] + time
        for block in self.blocks:
            x = block(x)
        return self.out(F.silu(x))


class DiffusionPolicy(nn.Module):
    """See policies.base.Policy and Trainable."""

    family = "diffusion"

    def __init__(self, config: DiffusionConfig, contract: DataContract) -> None:
        super().__init__()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        self.config = config
        self.contract = contract.with_chunk(config.chunk)
        self.encoder = ObservationEncoder(config.encoder, self.contract)
        spec = self.contract.action_spec
        self.denoiser = Denoiser(config, self.encoder.output, spec.chunk * spec.dim)
        self.register_buffer("low", torch.tensor(spec.low), persistent=False)
        self.register_buffer("high", torch.tensor(spec.high), persistent=False)
        self.scheduler = DDIMScheduler(
            num_train_timesteps=config.train_timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=config.prediction,
            clip_sample_range=config.clip_sample,
            # The last training timestep, pure noise, is where sampling must begin.
            timestep_spacing="trailing",
        )

    @property
    def action_spec(self) -> ActionSpec:
        return self.contract.action_spec

    @property
    def device(self) -> torch.device:
        return self.denoiser.frequencies.device

    def reset(self) -> None:
        pass

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Denoising mean squared error of each chunk [B,H,A]: float32 [B] (Ho et al. 2020, equation 14)."""
        condition = self.denoiser.condition(self.encoder(self.encoder.tensors(observations)))
        clean = self.contract.action_normalizer.normalize(actions).clamp(-self.config.clip_sample, self.config.clip_sample)
        clean = clean.flatten(1)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        timestep = torch.randint(self.config.train_timesteps, (len(clean),), generator=generator, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        prediction = self.denoiser(noisy[:, None], timestep[:, None], condition)[:, 0]
        target = noise if self.config.prediction == "epsilon" else clean
        error = (prediction - target).square().mean(-1)
        return error if weights is None else error * weights

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        condition = self.denoiser.condition(self.encoder(self.encoder.tensors(observations)))
        spec = self.action_spec
        shape = (len(condition), num_samples, spec.chunk * spec.dim)
        x = torch.randn(shape, generator=generator, device=condition.device)
        self.scheduler.set_timesteps(self.config.inference_steps, device=condition.device)
        for timestep in self.scheduler.timesteps:
            x = self.scheduler.step(self.denoiser(x, timestep, condition), timestep, x).prev_sample
        actions = self.contract.action_normalizer.unnormalize(x.unflatten(-1, (spec.chunk, spec.dim)))
        return actions.clamp(self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "config": asdict(self.config), "contract": self.contract.to_json()}

    @classmethod
    def load(cls, checkpoint: Path, device: str = "cpu") -> DiffusionPolicy:
        """The policy of a step folder; InputError when the folder is damaged."""
        return load_trained(
            checkpoint, "diffusion policy", lambda config, contract: cls(config_from_json(DiffusionConfig, config), contract)
        ).to(device)
