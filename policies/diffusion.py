"""Diffusion policy: denoise an action chunk given the encoded observation (Chi et al. 2303.04137), with diffusers' schedulers.

The observation is encoded once; K samples are one batch through the denoiser, whose conditioning is computed once an observation.
"""

from __future__ import annotations

import torch

from data.torchvision_repair import repair_torchvision
from policies.config import DiffusionConfig
from policies.contract import DataContract
from policies.networks.denoiser import make_denoiser
from policies.trained import TrainedPolicy


class DiffusionPolicy(TrainedPolicy):
    """Denoises action chunks: an MLP, UNet or transformer denoiser, trained on noise, sampled by DDIM."""

    config_type = DiffusionConfig

    def __init__(self, config: DiffusionConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        repair_torchvision()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        spec = self.action_spec
        self.denoiser = make_denoiser(config.denoiser, config.hidden, config.blocks, self.encoder.output, spec.chunk, spec.dim)
        self.scheduler = DDIMScheduler(
            num_train_timesteps=config.train_timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=config.prediction,
            clip_sample_range=config.clip_sample,
            # The last training timestep, pure noise, is where sampling must begin.
            timestep_spacing="trailing",
        )

    def head_loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Denoising mean squared error of each chunk (Ho et al. 2020, equation 14)."""
        clean = chunks.clamp(-self.config.clip_sample, self.config.clip_sample)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        timestep = torch.randint(self.config.train_timesteps, (len(clean),), generator=generator, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        prediction = self.denoiser(noisy[:, None], timestep[:, None], self.denoiser.condition(z))[:, 0]
        target = noise if self.config.prediction == "epsilon" else clean
        return (prediction - target).square().mean((1, 2))

    def head_sample(self, z: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        condition, spec = self.denoiser.condition(z), self.action_spec
        x = torch.randn((len(z), num_samples, spec.chunk, spec.dim), generator=generator, device=z.device)
        self.scheduler.set_timesteps(self.config.inference_steps, device=z.device)
        for timestep in self.scheduler.timesteps:
            x = self.scheduler.step(self.denoiser(x, timestep, condition), timestep, x).prev_sample
        return x
