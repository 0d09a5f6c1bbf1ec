"""What foreign diffusion policies share: diffusers' scheduler from a checkpoint's settings, the sampling loop, the training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from data.errors import InputError
from data.torchvision_repair import repair_torchvision

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Denoising:
    """A noising process and the steps that undo it.

    name: DDPM or DDIM. settings: the scheduler's, as the checkpoint has them. checkpoint_steps: how many the checkpoint samples with.
    steps: None samples as the checkpoint says; a number, by DDIM in so many steps, the first of them at pure noise.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], checkpoint_steps: int | None, steps: int | None = None) -> None:
        repair_torchvision()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        kinds: dict[str, Any] = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}
        if name not in kinds:
            raise InputError(f"noise scheduler {name!r}: not one of {', '.join(kinds)}")
        if settings.get("prediction_type", "epsilon") not in ("epsilon", "sample"):
            raise InputError(f"prediction_type {settings['prediction_type']!r}: not one of epsilon, sample")
        self.train_timesteps = int(settings.get("num_train_timesteps", 1000))
        self.steps = steps or checkpoint_steps or self.train_timesteps
        if not 1 <= self.steps <= self.train_timesteps:
            raise InputError(
                f"inference_steps={self.steps}: must be between 1 and {self.train_timesteps}, the training timesteps"
            )
        given = dict(settings)
        if steps is not None and name == "DDPM":
            name, given = "DDIM", {**given, "timestep_spacing": "trailing"}
        # Settings that only the other kind has (variance_type) are dropped by from_config.
        self.scheduler = kinds[name].from_config(given)
        self.predicts_sample = self.scheduler.config.prediction_type == "sample"

    @property
    def bound(self) -> float | None:
        """What a denoised value never exceeds in magnitude, or None."""
        config = self.scheduler.config
        return float(config.clip_sample_range) if config.clip_sample else None

    def sample(
        self,
        predict: Predict,
        x: torch.Tensor,
        generator: torch.Generator | None,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Denoise x [N,H,A], pure noise; predict(x, timestep) -> [N,H,A]. known: (mask, values), which are put back at every step."""
        self.scheduler.set_timesteps(self.steps, device=x.device)
        for timestep in self.scheduler.timesteps:
            if known is not None:
                x = torch.where(*known, x)
            x = self.scheduler.step(predict(x, timestep), timestep, x, generator=generator).prev_sample
        return x if known is None else torch.where(*known, x)

    def squared_error(
        self,
        predict: Predict,
        clean: torch.Tensor,
        generator: torch.Generator | None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Elementwise [N,H,A] (Ho et al. 2006.11239, equation 14), at one timestep drawn for each chunk. known: mask left clean."""
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        timestep = torch.randint(self.train_timesteps, (len(clean),), generator=generator, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        if known is not None:
            noisy = torch.where(known, clean, noisy)
        return (predict(noisy, timestep) - (clean if self.predicts_sample else noise)).square()
