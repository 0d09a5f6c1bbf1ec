"""What OpenVLA-OFT (Kim et al. 2502.19645) adds to OpenVLA: a head that regresses a chunk at once, and a token for proprioception."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError


class ActionHead(nn.Module):
    """The hidden states of an action's A placeholders, side by side, to its A numbers: pre-norm residual blocks with ReLU.

    width: A * D. hidden: D. output: A.
    """

    def __init__(self, width: int, hidden: int, output: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class ProprioProjector(nn.Module):
    """Normalised proprioception [B,P] to one embedding [B,D]."""

    def __init__(self, size: int, output: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, output)
        self.fc2 = nn.Linear(output, output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def side_file(folder: Path, name: str) -> Path | None:
    """`name--STEP_checkpoint.pt`, STEP being a number or `latest`; the newest where there are several, None without any."""
    found = sorted(folder.glob(f"{name}--*_checkpoint.pt"), key=lambda path: _step(path, name))
    return found[-1] if found else None


def is_oft(folder: Path) -> bool:
    return side_file(folder, "action_head") is not None


def load_action_head(path: Path) -> ActionHead:
    """The L1 head; InputError for another, such as a diffusion head."""
    weights = {key.removeprefix("model."): value for key, value in _read(path).items()}
    blocks = len({key.split(".")[1] for key in weights if key.startswith("mlp_resnet_blocks.")})
    try:
        hidden, width = weights["fc1.weight"].shape
        head = ActionHead(width, hidden, weights["fc2.weight"].shape[0], blocks)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is no L1 action head ({error}); OFT's diffusion heads are not read here") from error
    return _filled(head, weights, path)


def load_proprio_projector(path: Path) -> ProprioProjector:
    weights = _read(path)
    try:
        output, size = weights["fc1.weight"].shape
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is no proprio projector ({error}); download it again") from error
    return _filled(ProprioProjector(size, output), weights, path)


def _step(path: Path, name: str) -> float:
    step = path.name.removeprefix(f"{name}--").removesuffix("_checkpoint.pt")
    return float(step) if step.isdigit() else float("inf")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        # weights_only: nothing but tensors is unpickled.
        weights: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # Saved from within torch's distributed wrapper, names have its prefix.
        return {key.removeprefix("module."): value.float() for key, value in weights.items()}
    except Exception as error:  # torch raises whatever its reader stumbles upon
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as plain tensors ({reason}); download it again") from error


def _filled(module: Any, weights: Mapping[str, torch.Tensor], path: Path) -> Any:
    expected = module.state_dict()
    for keys, what in ((expected.keys() - weights.keys(), "lacks"), (weights.keys() - expected.keys(), "has an unknown")):
        if keys:
            raise InputError(f"{path}: {what} {min(keys)!r}; it is of another version")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise InputError(f"{path}: {key!r} has shape {tuple(value.shape)}, not {tuple(expected[key].shape)}")
        if not value.isfinite().all():
            raise InputError(f"{path}: {key!r} has values that are not finite; take an earlier checkpoint")
    module.load_state_dict(weights)
    return module.eval()
