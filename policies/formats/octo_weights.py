"""Octo's weights: which array of a checkpoint is which parameter here, in whose layout. Every one is loaded or known to be unused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from policies.formats.foreign import load_weights
from policies.networks.octo_transformer import Attention, Layout

_TEXT = "octo_transformer/task_tokenizers_language/hf_model/"


def load_parameters(
    transformer: nn.Module, head: nn.Module, text: nn.Module, layout: Layout, parameters: Mapping[str, np.ndarray], where: Path
) -> None:
    """Give the networks a checkpoint's arrays; InputError naming one that is missing, unknown, of another shape or not finite."""
    known = known_parameters(transformer, head, text)
    weights = {
        key: as_torch(value, known[key][1] if key in known else None, key, where)
        for key, value in parameters.items()
        if not unused(key, layout)
    }
    networks = nn.ModuleDict({"transformer": transformer, "head": head, "text": text})
    load_weights(networks, {key: ours for key, (ours, _) in known.items()}, weights, where)


def known_parameters(transformer: nn.Module, head: nn.Module, text: nn.Module) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Path in a checkpoint -> key in ModuleDict(transformer, head, text), and the shape there (None: as here)."""
    known: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    for ours, module, name in _parameters({"transformer": transformer, "head": head}):
        shape = None
        if isinstance(module, nn.Linear) and name == "weight":
            shape = (module.in_features, module.out_features)
        known[_path(ours, transformer, module, name)] = (ours, shape)
    for root, prefix in ((transformer, "transformer"), (head, "head")):
        for place, module in root.named_modules():
            if isinstance(module, Attention):
                _split_heads(known, f"{prefix}.{place}", module)
    for key in text.state_dict():
        if key != "encoder.embed_tokens.weight":
            known[_TEXT + _t5_path(key)] = (f"text.{key}", None)
    return known


def unused(key: str, layout: Layout) -> bool:
    """Whether a path of a checkpoint belongs to what is not needed to act: heads other than the action's."""
    return any(key.startswith(f"heads_{name}/") for name in layout.model["heads"] if name != "action")


def as_torch(value: np.ndarray, shape: tuple[int, ...] | None, key: str, where: Path) -> torch.Tensor:
    """An array in torch's layout. shape: what a kernel or bias of a linear layer, perhaps split into heads, must have."""
    tensor = torch.from_numpy(np.array(value, np.float32))
    if shape is not None and tuple(value.shape) != shape:
        raise InputError(f"{where}: {key!r} has shape {tuple(value.shape)}, but its config.json says {shape}")
    name = key.rpartition("/")[2]
    if name == "kernel" and value.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if name == "kernel" and key.rpartition("/")[0].endswith("/out"):
        return tensor.reshape(-1, value.shape[-1]).T.contiguous()
    if name == "kernel" and not key.endswith("time_preprocess/kernel"):
        return tensor.reshape(value.shape[0], -1).T.contiguous()
    return tensor.reshape(-1) if name == "bias" else tensor


def _parameters(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter: its key, the module that owns it, and its name there."""
    for prefix, root in roots.items():
        for place, module in root.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                yield ".".join(part for part in (prefix, place, name) if part), module, name


_BLOCK = "octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_"
_DIFFUSION = "heads_action/diffusion_model/"
# Our modules to flax's, by the first pattern that fits; ENCODER is the image encoder's class.
_MODULES = [
    (
        r"transformer\.tokenizers\.obs_(.+)\.encoder\.convs\.(\d+)",
        r"octo_transformer/observation_tokenizers_\1/ENCODER_0/StdConv_\2",
    ),
    (
        r"transformer\.tokenizers\.obs_(.+)\.encoder\.norms\.(\d+)",
        r"octo_transformer/observation_tokenizers_\1/ENCODER_0/GroupNorm_\2",
    ),
    (
        r"transformer\.tokenizers\.obs_(.+)\.encoder\.embedding",
        r"octo_transformer/observation_tokenizers_\1/ENCODER_0/embedding",
    ),
    (r"transformer\.projections\.(.+)", r"octo_transformer/\1_projection"),
    (r"transformer\.blocks\.(\d+)\.norm1", _BLOCK + r"\1/LayerNorm_0"),
    (r"transformer\.blocks\.(\d+)\.norm2", _BLOCK + r"\1/LayerNorm_1"),
    (r"transformer\.blocks\.(\d+)\.attention\.(\w+)", _BLOCK + r"\1/MultiHeadDotProductAttention_0/\2"),
    (r"transformer\.blocks\.(\d+)\.mlp\.up", _BLOCK + r"\1/MlpBlock_0/Dense_0"),
    (r"transformer\.blocks\.(\d+)\.mlp\.down", _BLOCK + r"\1/MlpBlock_0/Dense_1"),
    (r"transformer\.norm", "octo_transformer/BlockTransformer_0/Transformer_0/encoder_norm"),
    (r"head\.pooling\.attention\.(\w+)", r"heads_action/map_head/MultiHeadDotProductAttention_0/\1"),
    (r"head\.pooling\.norm", "heads_action/map_head/LayerNorm_0"),
    (r"head\.pooling\.mlp\.up", "heads_action/map_head/MlpBlock_0/Dense_0"),
    (r"head\.pooling\.mlp\.down", "heads_action/map_head/MlpBlock_0/Dense_1"),
    (r"head\.time\.(\d)", _DIFFUSION + r"cond_encoder/Dense_\1"),
    (r"head\.input", _DIFFUSION + "reverse_network/Dense_0"),
    (r"head\.output", _DIFFUSION + "reverse_network/Dense_1"),
    (r"head\.blocks\.(\d+)\.norm", _DIFFUSION + r"reverse_network/MLPResNetBlock_\1/LayerNorm_0"),
    (r"head\.blocks\.(\d+)\.up", _DIFFUSION + r"reverse_network/MLPResNetBlock_\1/Dense_0"),
    (r"head\.blocks\.(\d+)\.down", _DIFFUSION + r"reverse_network/MLPResNetBlock_\1/Dense_1"),
    (r"head\.mean", "heads_action/mean_proj"),
    (r"head\.logits", "heads_action/vocab_proj"),
]


def _path(key: str, transformer: nn.Module, module: nn.Module, name: str) -> str:
    """The path in a checkpoint of one of our parameters."""
    if key.startswith("transformer.positions."):
        return f"octo_transformer/{key.removeprefix('transformer.positions.')}_pos_embedding"
    if key == "head.frequencies":
        return _DIFFUSION + "time_preprocess/kernel"
    if key == "head.pooling.probe":
        return "heads_action/map_head/probe"
    place = key.rpartition(".")[0]
    for pattern, replacement in _MODULES:
        match = re.fullmatch(pattern, place)
        if match:
            path = match.expand(replacement)
            if "ENCODER" in path:
                encoder: Any = transformer.get_submodule(place.split(".encoder.")[0].removeprefix("transformer.")).encoder
                path = path.replace("ENCODER", encoder.name)
            if name == "bias":
                return f"{path}/bias"
            return f"{path}/{'scale' if isinstance(module, nn.LayerNorm | nn.GroupNorm) else 'kernel'}"
    raise AssertionError(f"{key}: no name in Octo's checkpoints")


def _split_heads(known: dict[str, tuple[str, tuple[int, ...] | None]], place: str, module: Attention) -> None:
    """Attention's kernels and biases keep the heads apart."""
    width, heads = module.query.in_features, module.heads
    split = (heads, width // heads)
    shapes = {"weight": (width, *split), "bias": split}
    ours = {key: path for path, (key, _) in known.items()}
    for part in ("query", "key", "value"):
        for name, shape in shapes.items():
            key = f"{place}.{part}.{name}"
            known[ours[key]] = (key, shape)
    key = f"{place}.out.weight"
    known[ours[key]] = (key, (*split, width))


def _t5_path(key: str) -> str:
    """`encoder.block.0.layer.0.SelfAttention.q.weight` -> `encoder/block/0/layer/0/SelfAttention/q/kernel`."""
    parts = key.split(".")
    if parts[-2] in ("shared", "relative_attention_bias"):
        parts[-1] = "embedding"
    elif "layer_norm" not in parts[-2]:
        parts[-1] = "kernel"
    return "/".join(parts)
