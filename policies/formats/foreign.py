"""What the readers of foreign checkpoints share: camera names, observations as tensors, weights with every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import InputError
from policies.history import to_tensor
from policies.networks.visual import resized

_WRIST = ("wrist", "eye_in_hand")


def camera_names(cameras: Sequence[str]) -> dict[str, str]:
    """The first on no wrist, or the only one, becomes `image_primary`, the first wrist `image_wrist`; others keep their names."""
    wrists = [name for name in cameras if any(word in name for word in _WRIST)]
    primary = next((name for name in cameras if name not in wrists), cameras[0] if cameras else None)
    wrist = next((name for name in wrists if name != primary), None)
    special = {primary: "image_primary", wrist: "image_wrist"}
    return {name: special.get(name) or f"image_{name.rpartition('.')[2].removeprefix('image_')}" for name in cameras}


def entry(observations: Mapping[str, Any], ours: str, theirs: str, device: torch.device) -> torch.Tensor:
    """An observation's entry as a tensor; InputError where there is none."""
    if ours not in observations:
        keys = ", ".join(sorted(observations))
        raise InputError(f"the observation lacks {ours!r}, which is the policy's {theirs!r} (it has {keys})")
    return to_tensor(observations[ours]).to(device)


def pictures(value: torch.Tensor, shape: Sequence[int], name: str) -> torch.Tensor:
    """uint8 [B,T,h,w,C] -> float [B,T,C,h',w'] in [0,1], resized to `shape` (C,h',w')."""
    if value.ndim != 5 or value.shape[-1] != shape[0]:
        raise InputError(f"the observation's {name!r} has shape {tuple(value.shape)}, not (B, T, height, width, {shape[0]})")
    flat = value.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    return resized(flat, (shape[1], shape[2])).unflatten(0, value.shape[:2])


def vector(value: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """[B,T,D] as float32."""
    if value.ndim != 3 or value.shape[2] != size:
        raise InputError(
            f"the observation's {name!r} has shape {tuple(value.shape)}; this policy was trained on (B, T, {size})"
        )
    return value.float()


def load_weights(model: nn.Module, names: Mapping[str, str], weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Give `model` a checkpoint's weights; names: checkpoint's key -> model's. InputError for a key too few or too many, or NaN."""
    missing, surplus = sorted(set(names) - set(weights)), sorted(set(weights) - set(names))
    for keys, what in ((missing, "lacks"), (surplus, "has an unknown")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{where}: {what} {keys[0]!r}{more}; its config.json is of another model, or another version wrote it"
            )
    check_finite(weights, where)
    own = model.state_dict()
    for theirs, ours in names.items():
        if own[ours].shape != weights[theirs].shape:
            shapes = f"{tuple(weights[theirs].shape)}, but its config.json says {tuple(own[ours].shape)}"
            raise InputError(f"{where}: {theirs!r} has shape {shapes}")
    model.load_state_dict({ours: weights[theirs] for theirs, ours in names.items()}, strict=False)


def check_finite(weights: Mapping[str, torch.Tensor], where: Path) -> None:
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                f"{where}: {key!r} has values that are not finite; the training diverged, take an earlier checkpoint"
            )
