"""Small checkpoints in the layout of OpenVLA and OpenVLA-OFT, with random weights, for tests anywhere."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from policies.networks.oft import ActionHead, ProprioProjector
from policies.networks.prismatic import build, to_theirs

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
SIZES = {
    DINO: {"depth": 3, "embed_dim": 32, "num_heads": 2},
    SIGLIP: {"depth": 2, "embed_dim": 16, "num_heads": 2},
}
MEANS = {DINO: [0.485, 0.456, 0.406], SIGLIP: [0.5, 0.5, 0.5]}
STDS = {DINO: [0.229, 0.224, 0.225], SIGLIP: [0.5, 0.5, 0.5]}
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


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in build(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        scale = noise * (1 if value.ndim == 1 else value[0].numel() ** -0.5)
        weights[to_theirs(key)] = 1 + 0.1 * noise if "norm" in key and key.endswith("weight") else scale.clone()
    # Among 32064 tokens so few dimensions could not make one likely.
    weights["language_model.lm_head.weight"] *= 4
    return weights


def write_openvla(folder: Path, config: dict[str, Any] | None = None, shards: int = 1) -> dict[str, torch.Tensor]:
    """Write the folder; returns its weights."""
    config = config or openvla_config()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = config["timm_model_ids"]
    sizes = [[3, size, size] for size in config["image_sizes"]]
    preparation = {
        "image_resize_strategy": config["image_resize_strategy"],
        "input_sizes": sizes,
        "interpolations": ["bicubic"] * len(names),
        "means": [MEANS[name] for name in names],
        "stds": [STDS[name] for name in names],
        "use_fused_vision_backbone": config["use_fused_vision_backbone"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    _tokenizer().save(str(folder / "tokenizer.json"))
    weights = random_weights(config)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    files = {key: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, key in enumerate(weights)}
    for file in set(files.values()):
        save_file({key: value for key, value in weights.items() if files[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return weights


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


def _tokenizer() -> Tokenizer:
    """One token a character, led by BOS; as in the real one, the ids of the actions and of the lone space are never its own."""
    text = "\n !',.:?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + i for i, letter in enumerate(text)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
