"""Octo's observation tokenizers (Octo 2405.12213, appendix A): convolutional patch encoders of images, and vectors as tokens.

A tokenizer is described by an entry of the original's config.json, `{"name": class, "kwargs": {...}}`. Those of vectors and of camera
features, `VectorTokenizer` and `CameraTokenizer`, are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-6


def matching(patterns: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The keys that one of the patterns matches at their beginning, sorted: the order in which the original stacks them."""
    return [key for key in sorted(keys) if any(re.match(pattern, key) for pattern in patterns)]


class StdConv(nn.Conv2d):
    """Convolution whose kernels are standardised; 1e-5 is added to the deviation, not to the variance."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class PatchEncoder(nn.Module):
    """[N,C,h,w] -> patches [N,F,h/p,w/p]: strided convolutions (none in `PatchEncoder`, which has a patch for a kernel)."""

    convs: nn.ModuleList
    norms: nn.ModuleList

    def __init__(self, spec: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        name, kwargs = spec["name"], dict(spec.get("kwargs", {}))
        if name not in _PATCHES or kwargs.get("use_film"):
            known = ", ".join(_PATCHES)
            raise InputError(f"image encoder {name!r}{' with FiLM' * bool(kwargs.get('use_film'))}: only {known} can be read")
        patch = kwargs.get("patch_size", _PATCHES[name])
        self.name, self.imagenet = name, kwargs.get("img_norm_type", "default") == "imagenet"
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        if name != "PatchEncoder":
            # The original's stem strides by 16 in all; its last convolution does the rest.
            patch //= 16
            shapes = zip(
                kwargs.get("features", (32, 96, 192, 384)),
                kwargs.get("kernel_sizes", (3, 3, 3, 3)),
                kwargs.get("strides", (2, 2, 2, 2)),
                kwargs.get("padding", (1, 1, 1, 1)),
                strict=False,
            )
            for features, kernel, stride, padding in shapes:
                self.convs.append(StdConv(channels, features, kernel, stride, padding))
                self.norms.append(nn.GroupNorm(32, features, eps=_EPS))
                channels = features
        self.embedding = nn.Conv2d(channels, kwargs.get("num_features", 512), patch, patch)

    @property
    def features(self) -> int:
        return self.embedding.out_channels

    def tokens(self, size: tuple[int, int]) -> int:
        """How many patches an image of this size has."""
        sides = []
        for side in size:
            for conv in self.convs:
                assert isinstance(conv, StdConv)
                side = (side + 2 * int(conv.padding[0]) - conv.kernel_size[0]) // conv.stride[0] + 1
            sides.append(side // self.embedding.kernel_size[0])
        return sides[0] * sides[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.imagenet:
            mean, std = (x.new_tensor(values).repeat(x.shape[1] // 3)[:, None, None] for values in _IMAGENET)
            x = (x / 255 - mean) / std
        else:
            x = x / 127.5 - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.embedding(x)


_PATCHES = {"SmallStem": 32, "SmallStem16": 16, "SmallStem32": 32, "PatchEncoder": 32}


class ImageTokenizer(nn.Module):
    """Cameras and their goal images, stacked on channels, as one token a patch."""

    def __init__(self, kwargs: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], goals: Sequence[str]) -> None:
        """sizes: of the images that the model knows. goals: those of them that may have a goal image."""
        super().__init__()
        for option in ("use_token_learner", "task_film_keys"):
            if kwargs.get(option):
                raise InputError(f"image tokenizer with {option}: cannot be read")
        self.keys = matching(kwargs.get("obs_stack_keys", ("image_.*", "depth_.*")), list(sizes))
        self.goals = matching(kwargs.get("task_stack_keys", ()), goals)
        if not self.keys:
            raise InputError(f"image tokenizer of {kwargs.get('obs_stack_keys')}: the example batch has no such image")
        self.encoder = PatchEncoder(kwargs["encoder"], 3 * (len(self.keys) + len(self.goals)))
        self.tokens = self.encoder.tokens(sizes[self.keys[0]])
        self.features = self.encoder.features

    def forward(self, images: Mapping[str, torch.Tensor], goals: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """uint8 images [B,T,h,w,3] and goals [B,h,w,3], black where there is none -> [B,T,n,F]."""
        stack = [images[key] for key in self.keys]
        batch, steps = stack[0].shape[:2]
        for key in self.goals:
            goal = goals.get(key)
            stack.append(torch.zeros_like(stack[0]) if goal is None else goal[:, None].expand(-1, steps, -1, -1, -1))
        pixels = torch.cat(stack, dim=-1).flatten(0, 1).permute(0, 3, 1, 2).float()
        return self.encoder(pixels).flatten(2).transpose(1, 2).unflatten(0, (batch, steps))


class LowdimObsTokenizer(nn.Module):
    """The original's tokens of vectors: one a dimension, its value or the bin that it falls into."""

    def __init__(self, kwargs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        super().__init__()
        patterns = kwargs.get("obs_keys", ())
        # Concatenated pattern by pattern, unlike images.
        self.keys = [key for pattern in patterns for key in matching([pattern], list(sizes))]
        if not self.keys:
            raise InputError(f"vector tokenizer of {list(patterns)}: the example batch has no such observation")
        self.tokens = sum(sizes[key] for key in self.keys)
        self.bins = Bins(kwargs) if kwargs.get("discretize") else None
        self.features = self.bins.count if self.bins else 1

    def forward(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Normalised vectors [B,T,S] -> [B,T,n,F]."""
        values = torch.cat([vectors[key] for key in self.keys], dim=-1)
        return F.one_hot(self.bins.index(values), self.bins.count).float() if self.bins else values[..., None]


class VectorTokenizer(nn.Module):
    """Ours: all vectors as one token, through a hidden layer."""

    def __init__(self, kwargs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.keys = list(kwargs["obs_keys"])
        self.tokens, self.features = 1, int(kwargs["features"])
        self.hidden = nn.Linear(2 * sum(sizes[key] for key in self.keys), self.features)

    def forward(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`encoder.vector_features` of vectors [B,T,2S] -> [B,T,1,F]."""
        return F.silu(self.hidden(torch.cat([vectors[key] for key in self.keys], dim=-1)))[..., None, :]


class CameraTokenizer(nn.Module):
    """Ours: what a frozen camera network (policies/networks/encoder.py) sees as one token."""

    def __init__(self, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.keys, self.network = [str(kwargs["obs_key"])], kwargs["network"]
        self.tokens, self.features = 1, int(kwargs["features"])

    def forward(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The camera's features [B,T,F], under its key -> [B,T,1,F]."""
        return vectors[self.keys[0]][..., None, :]


class Bins(nn.Module):
    """Intervals of a value, equally wide (`uniform`) or equally likely under a standard normal (`normal`), and their middles."""

    edges: torch.Tensor

    def __init__(self, kwargs: Mapping[str, Any], kind: str | None = None) -> None:
        super().__init__()
        self.count = int(kwargs.get("n_bins", 256))
        self.kind = kind or kwargs.get("bin_type", "uniform")
        self.low, self.high = float(kwargs.get("low", 0)), float(kwargs.get("high", 1))
        if self.kind == "uniform":
            edges = torch.linspace(self.low, self.high, self.count + 1)
        elif self.kind == "normal":
            edges = torch.special.ndtri(torch.linspace(_EPS, 1 - _EPS, self.count + 1, dtype=torch.float64)).float()
        else:
            raise InputError(f"bins of type {self.kind!r}: not one of uniform, normal")
        self.register_buffer("edges", edges, persistent=False)

    def index(self, values: torch.Tensor) -> torch.Tensor:
        """The bin of each value; 0 for those outside normal bins, as in the original."""
        if self.kind == "uniform":
            values = values.clamp(self.low + _EPS, self.high - _EPS)
        index = torch.bucketize(values.contiguous(), self.edges, right=True) - 1
        return torch.where((index >= 0) & (index < self.count), index, 0)

    def middle(self, index: torch.Tensor) -> torch.Tensor:
        return ((self.edges[1:] + self.edges[:-1]) / 2)[index]
