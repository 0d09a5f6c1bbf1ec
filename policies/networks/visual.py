"""Camera networks of diffusion policies and ACT: ResNets in torchvision's layout, spatial softmax, crops.

torchvision itself is not needed: it cannot be imported beside every build of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError

Norm = Literal["batch", "frozen", "group"]
# Name -> blocks of each stage, and whether these are bottlenecks.
RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics and scale, all of them buffers (DETR's)."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


_NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm,
    "group": lambda channels: nn.GroupNorm(channels // 16, channels),
}


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width, beside a shortcut (He et al. 1512.03385, figure 5)."""

    def __init__(self, channels_in: int, width: int, stride: int, dilation: int, bottleneck: bool, norm: Norm) -> None:
        super().__init__()
        make_norm = _NORMS[norm]
        self.channels = 4 * width if bottleneck else width

        def spatial(channels: int, step: int) -> nn.Conv2d:
            return nn.Conv2d(channels, width, 3, step, dilation, dilation, bias=False)

        # The strided one of a bottleneck is its 3x3, not its first, as in torchvision.
        first = nn.Conv2d(channels_in, width, 1, bias=False) if bottleneck else spatial(channels_in, stride)
        self.conv1, self.bn1 = first, make_norm(width)
        self.conv2, self.bn2 = spatial(width, stride if bottleneck else 1), make_norm(width)
        if bottleneck:
            self.conv3, self.bn3 = nn.Conv2d(width, self.channels, 1, bias=False), make_norm(self.channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != self.channels:
            shortcut = nn.Conv2d(channels_in, self.channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, make_norm(self.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Pictures [B,C,h,w] -> the last feature map [B,F,h/32,w/32]; `channels` is F. Parameters have torchvision's names.

    dilate: the last stage is dilated, not strided, so that the map is h/16 (bottlenecks only).
    """

    def __init__(self, name: str, norm: Norm = "batch", channels_in: int = 3, dilate: bool = False) -> None:
        super().__init__()
        if name not in RESNETS:
            raise InputError(f"vision backbone {name!r}: not one of {', '.join(RESNETS)}")
        depths, bottleneck = RESNETS[name]
        if dilate and not bottleneck:
            raise InputError(f"vision backbone {name!r}: has no dilated form; only {', '.join(list(RESNETS)[2:])} have")
        self.conv1 = nn.Conv2d(channels_in, 64, 7, 2, 3, bias=False)
        self.bn1 = _NORMS[norm](64)
        channels = 64
        for stage, depth in enumerate(depths):
            dilated = dilate and stage == 3
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 and not dilated else 1
                block = Block(channels, 64 * 2**stage, stride, 2 if dilated and index else 1, bottleneck, norm)
                blocks.append(block)
                channels = block.channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


def named_as_sequence(key: str) -> str:
    """`bn1.weight` -> `1.weight`: the key of a ResNet's parameter where its children are a sequence, as both originals have it."""
    head, _, rest = key.partition(".")
    place = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}[head]
    return f"{place}.{rest}"


class SpatialSoftmax(nn.Module):
    """Where each of K maps, made of a feature map [B,F,h,w], is most active: (x, y) in [-1,1], [B,K,2] (Finn et al. 1509.06113)."""

    pos_grid: torch.Tensor

    def __init__(self, channels: int, height: int, width: int, keypoints: int | None) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1) if keypoints else nn.Identity()
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        grid = torch.from_numpy(np.stack([x.reshape(-1), y.reshape(-1)], axis=1)).float()
        self.register_buffer("pos_grid", grid)
        self.register_buffer("temperature", torch.ones(1), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        maps = self.nets(features).flatten(2)
        return (maps / self.temperature).softmax(dim=-1) @ self.pos_grid


def feature_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a ResNet's last feature map for pictures of this size: halved five times, rounded up."""
    height, width = (-(-side // 32) for side in size)
    return height, width


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B,C,h,w] at another size: by area where both sides shrink, else bilinear."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    if images.shape[2] >= size[0] and images.shape[3] >= size[1]:
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def cropped(
    images: torch.Tensor, size: tuple[int, int], random: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """[B,C,h,w] -> [B,C,*size]: the middle, or at random, one place for the whole batch."""
    spare = images.shape[2] - size[0], images.shape[3] - size[1]
    if min(spare) < 0:
        raise InputError(
            f"pictures of {tuple(images.shape[2:])} are smaller than the crop {tuple(size)} that the policy was trained on"
        )
    if random:
        top, left = (int(torch.randint(room + 1, (), generator=generator, device=images.device)) for room in spare)
    else:
        # round() rounds halves to even, as torchvision's centre crop does.
        top, left = (round(room / 2) for room in spare)
    return images[:, :, top : top + size[0], left : left + size[1]]
