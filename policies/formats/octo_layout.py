"""Octo's networks that are made here, described as the config.json of its authors describes theirs: new ones, and theirs adapted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import InputError
from policies.config import OctoConfig
from policies.contract import DataContract
from policies.networks.encoder import camera_features
from policies.networks.octo_transformer import Layout

# Width, layers, heads, channels of the convolutional stem, features of its patches, and width of the diffusion head. The transformer's
# hidden layers are four times as wide as it is.
_SIZES: dict[str, tuple[int, int, int, tuple[int, ...], int, int]] = {
    "tiny": (128, 3, 4, (32, 32, 64, 128), 128, 128),
    "small": (384, 12, 6, (32, 96, 192, 384), 512, 256),
    "base": (768, 12, 12, (32, 96, 192, 384), 512, 256),
}
_HORIZON = 10


def new_layout(config: OctoConfig, contract: DataContract, language: tuple[int, int]) -> Layout:
    """A network for the contract's inputs, described as the original's config.json describes one."""
    width, layers, heads, features, patch_features, hidden = _SIZES[config.size]
    width = config.width or width
    tokenizers: dict[str, Any] = {}
    for key in contract.images:
        if config.encoder.vision is not None:
            network = config.encoder.image_encoder
            kwargs: dict[str, Any] = {"obs_key": key, "network": network, "features": camera_features(network)}
            tokenizers[key.removeprefix("image_")] = {"name": "CameraTokenizer", "kwargs": kwargs}
            continue
        encoder = {"name": "SmallStem16", "kwargs": {"features": features, "num_features": patch_features}}
        tokenizers[key.removeprefix("image_")] = {
            "name": "ImageTokenizer",
            "kwargs": {"obs_stack_keys": [f"{key}$"], "encoder": encoder},
        }
    vectors = {key: len(normalizer.offset) for key, normalizer in contract.vectors.items()}
    if vectors:
        tokenizers["vectors"] = _vector_tokenizer(vectors, width)
    head = {
        "readout_key": "readout_action",
        "action_horizon": config.chunk,
        "action_dim": contract.action_spec.dim,
        "hidden_dim": hidden,
        "diffusion_steps": config.diffusion_steps,
        "n_diffusion_samples": config.noise_draws,
        "clip_clean": True,
    }
    model = {
        "observation_tokenizers": tokenizers,
        "readouts": {"action": 1},
        "heads": {"action": {"name": "DiffusionActionHead", "kwargs": head}},
        "transformer_kwargs": {
            "num_layers": config.layers or layers,
            "num_attention_heads": config.heads or heads,
            "mlp_dim": 4 * width,
        },
        "token_embedding_size": width,
        "max_horizon": max(_HORIZON, config.encoder.window),
        "repeat_task_tokens": config.size != "tiny",
        "use_correct_attention": True,
    }
    return Layout(model, contract.images, (), vectors, language, config.encoder.window)


def adapted_layout(
    old: Layout, tokenizers: Mapping[str, Sequence[str]], config: OctoConfig, contract: DataContract, language: tuple[int, int]
) -> Layout:
    """A trained network's layout for the contract's inputs and actions: cameras it need not have go, new vectors are added.

    tokenizers: the observations that each of its tokenizers takes.
    """
    unknown = [key for key in contract.images if key not in old.images]
    if unknown:
        raise InputError(f"{config.pretrained}: knows no {unknown[0]!r}; it has {', '.join(old.images) or 'no cameras'}")
    if language != old.language:
        raise InputError(
            f"{config.pretrained}: its instructions have {old.language[1]} features, those of the data {language[1]}"
        )
    model = json.loads(json.dumps(old.model))
    if config.encoder.window > model["max_horizon"]:
        raise InputError(
            f"--window is {config.encoder.window}; {config.pretrained} can look back on {model['max_horizon']} steps"
        )
    vectors = {key: len(normalizer.offset) for key, normalizer in contract.vectors.items()}
    kept, known = {}, set()
    for name, spec in model["observation_tokenizers"].items():
        keys = tokenizers[name]
        sizes = {**old.images, **old.vectors}
        wanted = [key for key in keys if key in contract.images or vectors.get(key) == sizes[key]]
        if len(wanted) == len(keys):
            kept[name] = spec
            known |= set(wanted)
    lost = [key for key in contract.images if key not in known]
    if lost:
        raise InputError(f"{config.pretrained}: sees {lost[0]!r} only together with another camera that the data lack")
    added = {key: size for key, size in vectors.items() if key not in known}
    if added:
        kept[f"vectors_{len(kept)}"] = _vector_tokenizer(added, model["token_embedding_size"])
    model["observation_tokenizers"] = kept
    head = model["heads"]["action"]
    head["kwargs"] = {
        **head.get("kwargs", {}),
        "action_horizon": config.chunk,
        "action_dim": contract.action_spec.dim,
        "n_diffusion_samples": config.noise_draws,
        "clip_clean": True,
    }
    model["heads"] = {"action": head}
    images = {key: size for key, size in old.images.items() if key in contract.images}
    return Layout(model, images, old.goals, vectors, old.language, config.encoder.window)


def _vector_tokenizer(vectors: Mapping[str, int], width: int) -> dict[str, Any]:
    return {"name": "VectorTokenizer", "kwargs": {"obs_keys": list(vectors), "features": width}}
