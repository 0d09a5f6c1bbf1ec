"""Stanford's diffusion_policy networks from a checkpoint's `cfg.policy`: UNet or transformer denoiser, low-dimensional or pictures.

Observations condition the denoiser globally, action by action (`local`), as tokens, or by inpainting: there the chunk carries the
observation's features beside its actions, and those of the observed steps are put back at every denoising step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.networks.denoising import Denoising
from policies.networks.denoising_transformer import TransformerForDiffusion
from policies.networks.unet1d import ConditionalUnet1D
from policies.networks.visual import ResNet, SpatialSoftmax, cropped, feature_size, named_as_sequence

KINDS = {
    "DiffusionUnetLowdimPolicy": "unet lowdim",
    "DiffusionTransformerLowdimPolicy": "transformer lowdim",
    "DiffusionUnetHybridImagePolicy": "unet hybrid",
    "DiffusionTransformerHybridImagePolicy": "transformer hybrid",
    "DiffusionUnetImagePolicy": "unet image",
}
# Keys without a use: a placeholder that tells modules their device, a mask maker, masks and grids that follow from sizes, statistics
# from which scale and offset were made, robomimic's second names of the same tensors, and a local block that the original never calls.
UNUSED = re.compile(
    r"_dummy_variable$|^mask_generator\.|^model\.(mask|memory_mask)$|^normalizer\..*\.input_stats\.|\.pos_[xy]$"
    r"|^obs_encoder\.obs_nets\.[^.]+\.(backbone|pool)\.|^model\.local_cond_encoder\.1\."
)
_IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


@dataclass(frozen=True)
class Input:
    """One of the checkpoint's observations: rgb (C,h,w), or any other shape, which is flattened."""

    name: str
    rgb: bool
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())


def pair(value: Any, key: str) -> tuple[int, int] | None:
    """(height, width) from a setting that is a pair, a pair for each camera, or none."""
    value = value.get(key) if isinstance(value, Mapping) else value
    return None if value is None else (int(value[0]), int(value[1]))


class RobomimicCamera(nn.Module):
    """robomimic's VisualCore: crop, ResNet-18, spatial softmax, linear, ReLU. [B,C,h,w] -> [B,F]."""

    def __init__(
        self, shape: tuple[int, ...], crop: tuple[int, int] | None, group_norm: bool, keypoints: int, features: int
    ) -> None:
        super().__init__()
        self.crop = crop
        self.backbone = ResNet("resnet18", "group" if group_norm else "batch", shape[0])
        self.pool = SpatialSoftmax(self.backbone.channels, *feature_size(crop or (shape[1], shape[2])), keypoints)
        # robomimic's checkpoints have one, LeRobot's have not.
        self.pool.register_buffer("temperature", torch.ones(1), persistent=True)
        self.linear = nn.Linear(2 * keypoints, features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.crop:
            images = cropped(images, self.crop, random=self.training)
        return F.relu(self.linear(self.pool(self.backbone(images)).flatten(1)))


class TorchvisionCamera(nn.Module):
    """MultiImageObsEncoder's: resize, crop, ImageNet's normalisation, ResNet, mean over the map. [B,3,h,w] -> [B,F]."""

    def __init__(self, config: Mapping[str, Any], key: str, backbone: ResNet) -> None:
        super().__init__()
        self.shared = bool(config.get("share_rgb_model", False))
        self.resize = pair(config.get("resize_shape"), key)
        # Without random_crop the original forgets its centre crop, so pictures stay whole.
        self.crop = pair(config.get("crop_shape"), key) if config.get("random_crop", True) else None
        self.backbone = backbone
        self.register_buffer("imagenet", _IMAGENET if config.get("imagenet_norm", False) else None, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.resize:
            images = F.interpolate(images, self.resize, mode="bilinear", antialias=True)
        if self.crop:
            images = cropped(images, self.crop, random=self.training)
        imagenet: torch.Tensor | None = self.imagenet  # type: ignore[assignment]
        if imagenet is not None:
            images = (images - imagenet[0, :, None, None]) / imagenet[1, :, None, None]
        return self.backbone(images).mean((2, 3))


class ObservationEncoder(nn.Module):
    """Each control step's observations -> features [N,F], in the original's order. One network a camera, or `shared`."""

    def __init__(self, inputs: list[Input], cameras: Mapping[str, nn.Module], features: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.cameras = nn.ModuleDict(dict(cameras))
        self.output = sum(features if item.rgb else item.size for item in inputs)

    def forward(self, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat(
            [self.cameras[item.name](seen[item.name]) if item.rgb else seen[item.name] for item in self.inputs], dim=-1
        )


@dataclass(frozen=True)
class Encoding:
    """For B observations: what the denoiser makes of the condition, the local one [B,H,L], and known parts of the chunk [B,H,D]."""

    condition: Any
    batch: int
    local: torch.Tensor | None = None
    known: torch.Tensor | None = None


class StanfordDiffusion(nn.Module):
    """inputs of `encode`: name -> [B,T,...], normalised; low-dimensional policies have one, `obs`."""

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], inference_steps: int | None) -> None:
        """config: cfg.policy, resolved. shapes: of the checkpoint's tensors, whence robomimic's sizes, which cfg does not have."""
        super().__init__()
        name = str(config.get("_target_", "")).rpartition(".")[2]
        if name not in KINDS:
            raise InputError(
                f"{name or 'a policy without _target_'}: not one of Stanford's policies that are read: {', '.join(KINDS)}"
            )
        self.denoiser_kind, observes = KINDS[name].split()
        lowdim = observes == "lowdim"
        self.horizon, self.window = int(config["horizon"]), int(config["n_obs_steps"])
        self.default_chunk = int(config["n_action_steps"])
        if lowdim:
            self.actions, width = int(config["action_dim"]), int(config["obs_dim"])
            self.inputs = [Input("obs", False, (width,))]
            self.obs_encoder: ObservationEncoder | None = None
        else:
            meta = config["shape_meta"]
            self.actions = int(torch.Size(meta["action"]["shape"]).numel())
            self.inputs = [
                Input(key, value.get("type", "low_dim") == "rgb", tuple(value["shape"])) for key, value in meta["obs"].items()
            ]
            if observes == "hybrid":
                self.obs_encoder = _robomimic(config, self.inputs, shapes)
            else:
                self.obs_encoder = _multi_image(config["obs_encoder"], self.inputs)
            width = self.obs_encoder.output
        self.local = bool(config.get("obs_as_local_cond", False))
        default = not lowdim
        flag = "obs_as_global_cond" if self.denoiser_kind == "unet" else "obs_as_cond"
        self.conditioned = bool(config.get(flag, default))
        self.inpaints = not (self.local or self.conditioned)
        steps_only = bool(config.get("pred_action_steps_only", False))
        if steps_only:
            self.horizon = self.default_chunk
        # The index of the action for the newest observation's step; without oa_step_convention, of the step after it.
        late = name == "DiffusionUnetLowdimPolicy" and not config.get("oa_step_convention", False)
        self.start = 0 if steps_only else self.window - (not late)
        self.trajectory = self.actions + (width if self.inpaints else 0)
        self.model = self._denoiser(config.get("model", config) if lowdim else config, width, int(config["horizon"]))
        scheduler = dict(config["noise_scheduler"])
        kind = str(scheduler.pop("_target_", "DDPMScheduler")).rpartition(".")[2].removesuffix("Scheduler")
        self.denoising = Denoising(kind, scheduler, config.get("num_inference_steps"), inference_steps)

    def _denoiser(self, config: Mapping[str, Any], width: int, horizon: int) -> ConditionalUnet1D | TransformerForDiffusion:
        own = "_target_" in config and "input_dim" in config  # Low-dimensional policies configure their network themselves.
        if self.denoiser_kind == "unet":
            return ConditionalUnet1D(
                self.trajectory,
                width * self.window if self.conditioned else 0,
                down_dims=config.get("down_dims", (256, 512, 1024)),
                kernel=int(config.get("kernel_size", 3 if own else 5)),
                groups=int(config.get("n_groups", 8)),
                time_embedding=int(config.get("diffusion_step_embed_dim", 256)),
                scale=bool(config.get("cond_predict_scale", not own)),
                local=width if self.local else 0,
            )
        return TransformerForDiffusion(
            self.trajectory,
            int(config.get("horizon", horizon)),
            condition=width if self.conditioned else 0,
            observations=int(config.get("n_obs_steps", self.window)),
            layers=int(config.get("n_layer", 12 if own else 8)),
            heads=int(config.get("n_head", 12 if own else 4)),
            width=int(config.get("n_emb", 768 if own else 256)),
            condition_layers=int(config.get("n_cond_layers", 0)),
            causal=bool(config.get("causal_attn", not own)),
            time_as_condition=bool(config.get("time_as_cond", True)),
            dropout=float(config.get("p_drop_emb", 0.1 if own else 0.0)),
            attention_dropout=float(config.get("p_drop_attn", 0.1 if own else 0.3)),
        )

    def rename(self, key: str) -> str:
        """The checkpoint's key for a parameter of ours."""
        if key.startswith("obs_encoder."):
            _, _, camera, part, rest = key.split(".", 4)
            module = self.get_submodule(f"obs_encoder.cameras.{camera}")
            if isinstance(module, TorchvisionCamera):
                return f"obs_encoder.key_model_map.{'rgb' if module.shared else camera}.{rest}"
            place = {"backbone": "nets.0.nets", "pool": "nets.1", "linear": "nets.3"}[part]
            return f"obs_encoder.obs_nets.{camera}.{place}.{named_as_sequence(rest) if part == 'backbone' else rest}"
        if self.denoiser_kind == "unet":
            key = re.sub(r"\.conv([12])\.", lambda found: f".blocks.{int(found[1]) - 1}.", key)
            key = re.sub(r"^(model\.(?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", key)
            key = key.replace("local_cond_encoder.", "local_cond_encoder.0.")
        return key

    def features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B,T,F]."""
        first = next(iter(inputs.values()))
        if self.obs_encoder is None:
            return first
        return self.obs_encoder({key: value.flatten(0, 1) for key, value in inputs.items()}).unflatten(0, first.shape[:2])

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> Encoding:
        features = self.features(inputs)
        batch, steps, _ = features.shape
        local = known = None
        if self.denoiser_kind == "transformer":
            z = features
        else:
            z = features.flatten(1) if self.conditioned else features.new_zeros(batch, 0)
        after = (0, 0, 0, self.horizon - steps)
        if self.local:
            local = F.pad(features, after)
        elif self.inpaints:
            known = F.pad(features, (self.actions, 0), value=torch.nan)
            known = F.pad(known, after, value=torch.nan)
        return Encoding(self.model.condition(z), batch, local, known)

    def sample(self, encoding: Encoding, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        """[B,K,P,A], the P actions from now on."""
        shape = (encoding.batch * num_samples, self.horizon, self.trajectory)
        local, known = (
            None if value is None else value.repeat_interleave(num_samples, 0) for value in (encoding.local, encoding.known)
        )
        x = torch.randn(shape, generator=generator, device=next(self.parameters()).device)
        x = self.denoising.sample(
            lambda x, timestep: self.predict(x, timestep, encoding.condition, local),
            x,
            generator,
            None if known is None else (~known.isnan(), known),
        )
        return x[:, self.start :, : self.actions].unflatten(0, (encoding.batch, num_samples))

    def predict(
        self, x: torch.Tensor, timestep: torch.Tensor, condition: Any, local: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(self.model, ConditionalUnet1D):
            return self.model.denoise(x, timestep, condition, local)
        return self.model.denoise(x, timestep, condition)

    def errors(
        self, inputs: Mapping[str, torch.Tensor], actions: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Squared error [B,horizon,A] of the predicted noise, for chunks [B,horizon,A]."""
        if self.inpaints:
            raise InputError(
                "this policy inpaints: its loss needs the observations of the whole horizon, which a policy is not given"
            )
        encoding = self.encode(inputs)
        return self.denoising.squared_error(
            lambda x, timestep: self.predict(x, timestep, encoding.condition, encoding.local), actions, generator
        )


def _robomimic(config: Mapping[str, Any], inputs: list[Input], shapes: Mapping[str, tuple[int, ...]]) -> ObservationEncoder:
    cameras, features = {}, 0
    for item in inputs:
        if item.rgb:
            prefix = f"obs_encoder.obs_nets.{item.name}.nets"
            try:
                keypoints, features = shapes[f"{prefix}.1.nets.weight"][0], shapes[f"{prefix}.3.weight"][0]
            except KeyError as error:
                raise InputError(
                    f"the weights lack {error}, so the camera {item.name!r} has no encoder that is known here"
                ) from error
            crop = pair(config.get("crop_shape", (76, 76)), item.name)
            group_norm = bool(config.get("obs_encoder_group_norm", False))
            cameras[item.name] = RobomimicCamera(item.shape, crop, group_norm, keypoints, features)
    return ObservationEncoder(inputs, cameras, features)


def _multi_image(config: Mapping[str, Any], inputs: list[Input]) -> ObservationEncoder:
    """Cameras first, then vectors, each in the order of their names."""
    ordered = sorted(inputs, key=lambda item: (not item.rgb, item.name))
    backbones: dict[str, ResNet] = {}
    cameras = {}
    shared = bool(config.get("share_rgb_model", False))
    for item in ordered:
        if item.rgb:
            settings = config["rgb_model"]
            # With share_rgb_model the original never replaces its batch norms.
            norm = "group" if config.get("use_group_norm", False) and not shared else "batch"
            name = "rgb" if shared else item.name
            if name not in backbones:
                backbones[name] = ResNet(str(settings["name"]), norm)  # type: ignore[arg-type]
            cameras[item.name] = TorchvisionCamera(config, item.name, backbones[name])
    return ObservationEncoder(ordered, cameras, next((backbone.channels for backbone in backbones.values()), 0))
