"""Small checkpoints in the layout of OpenVLA and OpenVLA-OFT, with random weights, for tests anywhere."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies import examples
from policies.examples import DINO, SIGLIP
from policies.networks.oft import ActionHead, ProprioProjector

SIZES = {
    DINO: {"depth": 3, "embed_dim": 32, "num_heads": 2},
    SIGLIP: {"depth": 2, "embed_dim": 16, "num_heads": 2},
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32064,
    "pad_token_id": 32000,
    "torch_dtype": "float32",
}


def statistics(action: int = 7, proprio: int = 8, seed: int = 0) -> dict[str, Any]:
    """Of one dataset; the last dimension of the action is not rescaled."""
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {}
    for part, size in (("action", action), ("proprio", proprio)):
        low, span = torch.rand(size, generator=generator) - 1, torch.rand(size, generator=generator) + 0.1
        result[part] = {"q01": low.tolist(), "q99": (low + span).tolist()}
        result[part] |= {"min": (low - 0.2).tolist(), "max": (low + span + 0.3).tolist()}
    result["action"]["mask"] = [True] * (action - 1) + [False]
    return result


def openvla_config(backbones: tuple[str, ...] = (DINO, SIGLIP), size: int = 28, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "openvla",
        "use_fused_vision_backbone": len(backbones) == 2,
        "timm_model_ids": list(backbones),
        "timm_model_kwargs": [SIZES[name] for name in backbones],
        "timm_override_act_layers": [None] * len(backbones),
        "image_sizes": [size] * len(backbones),
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_token_id": 32000,
        "pad_to_multiple_of": 64,
        "norm_stats": {"bridge_orig": statistics()},
        "text_config": TEXT,
        **changes,
    }


def write_openvla(folder: Path, config: dict[str, Any] | None = None, shards: int = 1) -> dict[str, torch.Tensor]:
    """Write the folder; returns its weights."""
    return examples.write_openvla(folder, config or openvla_config(), shards)


def write_oft(folder: Path, action: int = 7, proprio: int | None = 8, prefix: str = "", step: str = "100") -> None:
    """Write an OpenVLA folder with an L1 head beside it and, where proprio is not None, its projector."""
    config = openvla_config(norm_stats={"libero_spatial": statistics(action, proprio or 8)})
    write_openvla(folder, config)
    torch.manual_seed(1)
    width = TEXT["hidden_size"]
    head = ActionHead(action * width, width, action, 2).state_dict()
    torch.save({f"{prefix}model.{key}": value for key, value in head.items()}, folder / f"action_head--{step}_checkpoint.pt")
    if proprio is not None:
        projector = ProprioProjector(proprio, width).state_dict()
        torch.save(
            {f"{prefix}{key}": value for key, value in projector.items()}, folder / f"proprio_projector--{step}_checkpoint.pt"
        )


def copy_with(folder: Path, to: Path, **changes: Any) -> Path:
    """The folder again, its large files linked; config.json with changes."""
    to.mkdir()
    for file in folder.iterdir():
        os.link(file, to / file.name)
    if changes:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (to / "config.json").unlink()
        (to / "config.json").write_text(json.dumps(config))
    return to


def observations(
    batch: int = 2, cameras: tuple[str, ...] = ("image_primary",), size: int = 28, seed: int = 0
) -> dict[str, Any]:
    """Of up to three instructions, of different lengths."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8) for camera in cameras}
    return {**images, "instruction": ["go left", "go to the right", "go"][:batch]}


def openvla(folder: Path) -> Path:
    write_openvla(folder / "openvla")
    return folder / "openvla"


def oft(folder: Path) -> Path:
    write_oft(folder / "oft")
    return folder / "oft"


@cache
def pretrained() -> Path:
    """A checkpoint to fine-tune, there as long as this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return openvla(folder)


# For the conformance suite: member -> what writes its checkpoint and gives the spec.
OPENVLA: dict[str, Callable[[Path], str]] = {
    "openvla, as published": lambda folder: f"openvla:{openvla(folder)}",
    "openvla, oft": lambda folder: f"openvla:{oft(folder)}",
}
