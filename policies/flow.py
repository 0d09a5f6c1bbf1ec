"""Flow-matching policy: a velocity field carries noise to chunks along straight lines (Lipman et al. 2210.02747; pi0 2410.24164)."""

from __future__ import annotations

import torch

from policies.config import FlowConfig
from policies.contract import DataContract
from policies.networks.denoiser import make_denoiser
from policies.trained import TrainedPolicy

_TIME_SCALE = 100.0  # the denoisers expect timesteps of about this range


class FlowPolicy(TrainedPolicy):
    """Carries noise to action chunks along a learnt velocity field, in a few Euler steps."""

    config_type = FlowConfig

    def __init__(self, config: FlowConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        spec = self.action_spec
        self.denoiser = make_denoiser(config.denoiser, config.hidden, config.blocks, self.encoder.output, spec.chunk, spec.dim)

    def head_loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """|v(x_t, t) - (x_1 - x_0)|^2 on x_t = (1 - t) x_0 + t x_1, x_0 noise and x_1 the chunk (Lipman et al., equation 23)."""
        noise = torch.randn(chunks.shape, generator=generator, device=chunks.device)
        time = torch.rand((len(chunks), 1), generator=generator, device=chunks.device)
        between = torch.lerp(noise, chunks, time[..., None])
        velocity = self.denoiser(between[:, None], time * _TIME_SCALE, self.denoiser.condition(z))[:, 0]
        return (velocity - (chunks - noise)).square().mean((1, 2))

    def head_sample(self, z: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        condition, spec, steps = self.denoiser.condition(z), self.action_spec, self.config.inference_steps
        x = torch.randn((len(z), num_samples, spec.chunk, spec.dim), generator=generator, device=z.device)
        for time in torch.arange(steps, device=z.device) / steps:
            x = x + self.denoiser(x, time * _TIME_SCALE, condition) / steps
        return x
