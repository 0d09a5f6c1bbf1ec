"""LeRobot's two policies that are read natively, from normalised inputs to normalised action chunks. Parameters have LeRobot's names.

Both answer `encode(inputs)`, the trunk's one pass; `sample(encoding, K)`, all predicted actions [B,K,P,A]; `errors`, elementwise,
and a regulariser; `bound`, what a sampled action never exceeds in magnitude, or None. inputs: feature name -> [B,T,...],
normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.formats.lerobot import ACTION, STATE, Feature
from policies.networks.act import ACT, ACTConfig
from policies.networks.denoising import Denoising
from policies.networks.unet1d import ConditionalUnet1D
from policies.networks.visual import Norm, ResNet, SpatialSoftmax, cropped, feature_size, named_as_sequence

_SCHEDULER = {
    "num_train_timesteps": 100,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
}


def of_kind(features: Mapping[str, Feature], kind: str) -> list[Feature]:
    return [feature for feature in features.values() if feature.kind == kind]


class CameraEncoder(nn.Module):
    """Pictures [B,3,h,w] -> [B,2 keypoints]: resized, cropped (at random in training, if so configured), ResNet, spatial softmax."""

    def __init__(self, config: Mapping[str, Any], size: tuple[int, int]) -> None:
        super().__init__()
        self.resize = _pair(config.get("resize_shape"))
        self.crop = _pair(config.get("crop_shape"))
        if self.resize:
            # With a resize, LeRobot derives the crop from its ratio, whatever crop_shape says.
            ratio = float(config.get("crop_ratio", 1.0))
            self.crop = (int(self.resize[0] * ratio), int(self.resize[1] * ratio)) if ratio < 1 else None
        self.random_crop = bool(config.get("crop_is_random", True))
        keypoints = int(config.get("spatial_softmax_num_keypoints", 32))
        norm: Norm = "group" if config.get("use_group_norm", True) else "batch"
        self.backbone = ResNet(str(config.get("vision_backbone", "resnet18")), norm)
        self.pool = SpatialSoftmax(self.backbone.channels, *feature_size(self.crop or self.resize or size), keypoints)
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.resize:
            images = F.interpolate(images, self.resize, mode="bilinear", antialias=True)
        if self.crop:
            images = cropped(images, self.crop, random=self.training and self.random_crop)
        return F.relu(self.out(self.pool(self.backbone(images)).flatten(1)))


def _pair(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))


class LeRobotDiffusion(nn.Module):
    """Diffusion Policy (Chi et al. 2303.04137) as LeRobot has it: a UNet given the state and the cameras of the last steps."""

    def __init__(self, config: Mapping[str, Any], features: Mapping[str, Feature], inference_steps: int | None) -> None:
        super().__init__()
        self.cameras, self.environment = of_kind(features, "VISUAL"), of_kind(features, "ENV")[:1]
        self.window, self.horizon = int(config.get("n_obs_steps", 2)), int(config.get("horizon", 16))
        # The first predicted action is of the first observation's step.
        self.start = self.window - 1
        self.default_chunk = int(config.get("n_action_steps", 8))
        self.actions = features[ACTION].shape[0]
        self.mask_padding = bool(config.get("do_mask_loss_for_padding", False))
        if STATE not in features:
            raise InputError(f"a LeRobot diffusion policy without {STATE!r} among its input_features; it always has one")
        width = features[STATE].shape[0] + sum(feature.shape[0] for feature in self.environment)
        self.separate = bool(config.get("use_separate_rgb_encoder_per_camera", False))
        if self.cameras:
            if len({camera.shape for camera in self.cameras}) > 1:
                raise InputError("the cameras of a LeRobot diffusion policy must have one size")
            size = self.cameras[0].shape[1], self.cameras[0].shape[2]
            encoders = [CameraEncoder(config, size) for _ in (self.cameras if self.separate else self.cameras[:1])]
            width += len(self.cameras) * encoders[0].out.out_features
            self.rgb_encoder: nn.Module = nn.ModuleList(encoders) if self.separate else encoders[0]
        self.unet = ConditionalUnet1D(
            self.actions,
            width * self.window,
            down_dims=config.get("down_dims", (512, 1024, 2048)),
            kernel=int(config.get("kernel_size", 5)),
            groups=int(config.get("n_groups", 8)),
            time_embedding=int(config.get("diffusion_step_embed_dim", 128)),
            scale=bool(config.get("use_film_scale_modulation", True)),
        )
        settings = {name: config.get(name, default) for name, default in _SCHEDULER.items()}
        kind = str(config.get("noise_scheduler_type", "DDPM"))
        self.denoising = Denoising(kind, settings, config.get("num_inference_steps"), inference_steps)

    @property
    def bound(self) -> float | None:
        return self.denoising.bound

    def rename(self, key: str) -> str:
        """A checkpoint's key for a parameter of ours."""
        head, found, rest = key.partition(".backbone.")
        return f"diffusion.{head}{found}{named_as_sequence(rest)}" if found else f"diffusion.{key}"

    def features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """z [B,Z]: for each step the state, the cameras, the environment's state."""
        parts = [inputs[STATE]]
        if self.cameras:
            # [B,T,cameras,3,h,w]: one pass for all cameras where they share their encoder.
            pictures = torch.stack([inputs[camera.name] for camera in self.cameras], dim=2)
            batch = pictures.shape[:2]
            if self.separate:
                seen = [encoder(pictures[:, :, i].flatten(0, 1)) for i, encoder in enumerate(self.rgb_encoder.children())]
                parts += [one.unflatten(0, batch) for one in seen]
            else:
                parts.append(self.rgb_encoder(pictures.flatten(0, 2)).unflatten(0, pictures.shape[:3]).flatten(2))
        parts += [inputs[feature.name] for feature in self.environment]
        return torch.cat(parts, dim=-1).flatten(1)

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.unet.condition(self.features(inputs))

    def sample(self, encoding: dict[str, torch.Tensor], num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        first = next(iter(encoding.values()))
        shape = (len(first) * num_samples, self.horizon, self.actions)
        x = torch.randn(shape, generator=generator, device=first.device)
        x = self.denoising.sample(lambda x, timestep: self.unet.denoise(x, timestep, encoding), x, generator)
        return x[:, self.start :].unflatten(0, (len(first), num_samples))

    def errors(
        self, inputs: Mapping[str, torch.Tensor], actions: torch.Tensor, padded: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Squared error [B,horizon,A] of the predicted noise, for chunks [B,horizon,A]."""
        encoding = self.encode(inputs)
        return self.denoising.squared_error(lambda x, t: self.unet.denoise(x, t, encoding), actions, generator), 0.0


class LeRobotACT(nn.Module):
    """ACT (Zhao et al. 2304.13705). prior: sample with latents of N(0, I), which makes samples differ; else with zero, as it runs."""

    bound = None
    window, start = 1, 0
    mask_padding = True

    def __init__(self, config: Mapping[str, Any], features: Mapping[str, Feature], prior: bool) -> None:
        super().__init__()
        self.cameras, environment = of_kind(features, "VISUAL"), of_kind(features, "ENV")[:1]
        self.names = {"state": STATE} if STATE in features else {}
        if environment:
            self.names["environment"] = environment[0].name
        known = {field.name for field in fields(ACTConfig)}
        sizes = {name: features[feature].shape[0] for name, feature in self.names.items()}
        settings = ACTConfig(
            **{"state": 0, "environment": 0, **{key: value for key, value in config.items() if key in known}, **sizes},
            action=features[ACTION].shape[0],
            cameras=len(self.cameras),
        )
        if prior and not settings.use_vae:
            raise InputError(
                "latent=prior: this ACT was trained without its VAE (use_vae is false), so only latent=zero means anything"
            )
        self.prior, self.kl_weight, self.horizon = prior, settings.kl_weight, settings.chunk_size
        self.default_chunk = int(config.get("n_action_steps", settings.chunk_size))
        self.model = ACT(settings)

    def rename(self, key: str) -> str:
        return key

    def _named(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: inputs[feature][:, 0] for name, feature in self.names.items()}

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.observe(self._named(inputs), [inputs[camera.name][:, 0] for camera in self.cameras])

    def sample(
        self, encoding: tuple[torch.Tensor, torch.Tensor], num_samples: int, generator: torch.Generator | None
    ) -> torch.Tensor:
        tokens, positions = encoding
        batch, size = len(tokens), self.model.config.latent_dim
        if not self.prior:
            chunks = self.model.decode(tokens, positions, tokens.new_zeros(batch, size))
            return chunks[:, None].repeat(1, num_samples, 1, 1)
        latent = torch.randn((batch * num_samples, size), generator=generator, device=tokens.device)
        chunks = self.model.decode(tokens.repeat_interleave(num_samples, 0), positions, latent)
        return chunks.unflatten(0, (batch, num_samples))

    def errors(
        self, inputs: Mapping[str, torch.Tensor], actions: torch.Tensor, padded: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """|a - a'| [B,H,A] for chunks [B,H,A], and kl_weight KL(posterior || N(0, I)) [B]; padded bool [B,H]."""
        latent = actions.new_zeros(len(actions), self.model.config.latent_dim)
        divergence: torch.Tensor | float = 0.0
        if self.model.config.use_vae:
            mean, log_variance = self.model.posterior(self._named(inputs), actions, padded)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latent = mean + (log_variance / 2).exp() * noise
            divergence = (-0.5 * (1 + log_variance - mean.square() - log_variance.exp())).sum(-1)
        errors = (self.model.decode(*self.encode(inputs), latent) - actions).abs()
        return errors, self.kl_weight * divergence
