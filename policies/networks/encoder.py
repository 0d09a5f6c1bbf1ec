"""Observation encoders: cameras, proprioception, simulator state and the instruction become one feature vector z [B,Z].

Images go through a ResNet with GroupNorm, FiLM-conditioned on the instruction after every block as in V-GPS (2410.13816):
x <- x (1 + a(l)) + b(l), zero-initialised. Vectors go through a small MLP conditioned in the same way. Camera networks that stay as
they are need look at a frame once only: their features can take its place (`FEATURES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from data.normalizer import Normalizer
from policies.base import ActionSpec, Observations, ObservationSpec
from policies.config import EncoderConfig, ImageEncoderName
from policies.contract import DataContract
from policies.history import latest, to_tensor

FEATURES = "features_"
"""Before a camera's key: its network's features [B,F], in place of the frames that they are of."""
_RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet_small": ((1, 1, 1, 1), (32, 64, 128, 128)),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512)),
}


def camera_features(network: ImageEncoderName) -> int:
    """How many features a camera network makes of a frame, F."""
    return _RESNETS[network][1][-1]


class FiLM(nn.Module):
    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(condition).chunk(2, dim=-1)
        if x.ndim == 4:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, condition: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(4, channels)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False) if stride != 1 or channels_in != channels else None
        )
        self.film = FiLM(condition, channels)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = F.silu(y + (self.shortcut(x) if self.shortcut is not None else x))
        return self.film(x, condition)


class ResNet(nn.Module):
    """uint8 [B,3,h,w] scaled to [-1,1] and an instruction embedding [B,L] -> pooled features [B,F]."""

    def __init__(self, name: ImageEncoderName, condition: int) -> None:
        super().__init__()
        depths, widths = _RESNETS[name]
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2, bias=False)
        self.stem_norm = nn.GroupNorm(4, widths[0])
        blocks, channels = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for block in range(depth):
                blocks.append(ResidualBlock(channels, width, 2 if stage > 0 and block == 0 else 1, condition))
                channels = width
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.silu(self.stem_norm(self.stem(x))), 3, 2, 1)
        for block in self.blocks:
            x = block(x, condition)
        return x.mean(dim=(2, 3))


class Cameras(nn.ModuleDict):
    """A network for each camera, by the camera's key: `see` makes features of frames."""

    def __init__(self, keys: Sequence[str], network: ImageEncoderName, contract: DataContract) -> None:
        super().__init__({key: ResNet(network, contract.language.dim) for key in keys})
        self.network, self.contract = network, contract

    def frames(self, key: str, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B,h,w,3] as the camera's network takes them."""
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        if tuple(image.shape[2:]) != tuple(self.contract.images[key]):
            image = F.interpolate(image, self.contract.images[key], mode="area")
        return image.contiguous(memory_format=torch.channels_last)

    def see(self, key: str, pixels: Any, embeddings: np.ndarray) -> torch.Tensor:
        """[B,F] of one camera, from uint8 frames [B,h,w,3] and the instructions' embeddings [B,L]."""
        device = next(self.parameters()).device
        instruction = torch.as_tensor(embeddings, dtype=torch.float32).to(device)
        return self[key](self.frames(key, to_tensor(pixels).to(device)), unit_scale(instruction))


class ObservationEncoder(nn.Module):
    """Normalises and encodes batched observations; `output` is Z."""

    def __init__(self, config: EncoderConfig, contract: DataContract) -> None:
        super().__init__()
        self.config = config
        self.contract = contract
        self.image_keys = [key for key in config.inputs if key.startswith("image_")]
        self.vector_keys = [key for key in config.inputs if not key.startswith("image_")]
        condition = contract.language.dim
        self.cameras = Cameras(self.image_keys, config.image_encoder, contract)
        self.output = len(self.image_keys) * camera_features(config.image_encoder)
        if self.vector_keys:
            vector = sum(2 * len(contract.vectors[key].offset) for key in self.vector_keys)
            self.vector_in = nn.Linear(vector, config.vector_features)
            self.vector_film = FiLM(condition, config.vector_features)
            self.vector_out = nn.Linear(config.vector_features, config.vector_features)
            self.output += vector + config.vector_features
        self.language = nn.Linear(condition, 32)
        self.output += 32

    def tensors(self, observations: Observations) -> dict[str, torch.Tensor]:
        """Raw numpy observations -> normalised tensors on this module's device; the only place where they are rescaled."""
        device = self.language.weight.device
        result = {"instruction": self._instruction(observations).to(device)}
        for key in self.config.inputs:
            if FEATURES + key in observations:
                result[key] = to_tensor(observations[FEATURES + key]).to(device).float()
                continue
            if key not in observations:
                raise InputError(
                    f"the observation lacks {key!r}, which this model was trained on (it has {sorted(observations)})"
                )
            value = to_tensor(observations[key]).to(device)
            if key in self.image_keys:
                result[key] = self.cameras.frames(key, value)
            else:
                normalizer = self.contract.vectors[key]
                if value.shape[1:] != normalizer.offset.shape:
                    size = len(normalizer.offset)
                    raise InputError(
                        f"the observation's {key!r} has shape {tuple(value.shape)}, this model was trained on (B, {size})"
                    )
                result[key] = vector_features(self.contract.own_units(key, value.float()), normalizer)
        return result

    def _instruction(self, observations: Observations) -> torch.Tensor:
        given: Any = observations.get("instruction_embedding")
        if given is None:
            if "instruction" not in observations:
                raise InputError("the observation lacks 'instruction'; every policy and critic here is conditioned on one")
            given = self.contract.language.encode(list(observations["instruction"]))
        return torch.as_tensor(np.asarray(given, dtype=np.float32))

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        instruction = unit_scale(tensors["instruction"])
        seen = ((key, tensors[key]) for key in self.image_keys)
        parts = [self.cameras[key](x, instruction) if x.ndim == 4 else x for key, x in seen]
        if self.vector_keys:
            vector = torch.cat([tensors[key] for key in self.vector_keys], dim=-1)
            hidden = F.silu(self.vector_film(self.vector_in(vector), instruction))
            parts += [vector, F.silu(self.vector_out(hidden))]
        parts.append(F.silu(self.language(instruction)))
        return torch.cat(parts, dim=-1)


class EncodedModel(nn.Module):
    """What policies trained here and critics have in common: a contract with the data, and one encoder of what they look at.

    config: has an `encoder` and a `chunk`.
    """

    def __init__(self, config: Any, contract: DataContract) -> None:
        super().__init__()
        self.config = config
        self.contract = contract.with_chunk(config.chunk)
        self.encoder = ObservationEncoder(config.encoder, self.contract)

    @property
    def action_spec(self) -> ActionSpec:
        return self.contract.action_spec

    @property
    def observation_spec(self) -> ObservationSpec:
        return self.contract.observation_spec

    @property
    def cameras(self) -> Cameras:
        return self.encoder.cameras

    @property
    def device(self) -> torch.device:
        return self.encoder.language.weight.device

    def encode(self, observations: Observations) -> torch.Tensor:
        """Batched raw observations -> z [B,Z]. Of windowed ones (policies/history.py) the newest step counts."""
        return self.encoder(self.encoder.tensors(latest(observations)))


def unit_scale(instruction: torch.Tensor) -> torch.Tensor:
    """Unit-norm embeddings [B,L] have entries of about 1/sqrt(L); bring them to unit scale."""
    return instruction * instruction.shape[-1] ** 0.5


def vector_features(values: torch.Tensor, normalizer: Normalizer) -> torch.Tensor:
    """[B,D] in physical units -> [B,2D]: standardised, and once more on a logarithmic scale about zero.

    Whether a grasp succeeds is a matter of millimetres, while standardised coordinates differ by decimetres: without the second copy
    a critic takes closing the gripper beside a block for closing it on the block.
    """
    # An outlier far from the data says no more than "far": unclipped it would drown everything else.
    standardized = normalizer.normalize(values).clamp(-5, 5)
    fine = values / (0.1 * torch.as_tensor(normalizer.scale, device=values.device))
    return torch.cat([standardized, fine.sign() * fine.abs().log1p() / 2], dim=-1)
