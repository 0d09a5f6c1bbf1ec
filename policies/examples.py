"""Untrained policies of the sizes that people run, for benchmarks; OpenVLA's is a checkpoint in its authors' layout, read as any is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from data.language import LanguageEncoder
from data.normalizer import Normalizer
from data.statistics import compute_statistics
from policies.base import ActionSpec, ObservationSpec, Policy
from policies.config import (
    AutoregressiveConfig,
    DiffusionConfig,
    EncoderConfig,
    FlowConfig,
    GaussianConfig,
    OctoConfig,
    OctoTokensConfig,
)
from policies.contract import DataContract

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
_MEANS = {DINO: [0.485, 0.456, 0.406], SIGLIP: [0.5, 0.5, 0.5]}
_STDS = {DINO: [0.229, 0.224, 0.225], SIGLIP: [0.5, 0.5, 0.5]}
_CAMERA = EncoderConfig(inputs=("image_primary", "proprio"), image_encoder="resnet34")


def examples(families: Sequence[str] = ()) -> dict[str, Callable[[], Policy]]:
    """Builders of an untrained policy of each family; InputError for a family there is none of."""
    builders: dict[str, Callable[[], Policy]] = {
        "gaussian": lambda: _ours(GaussianConfig(_CAMERA)),
        "diffusion": lambda: _ours(DiffusionConfig(_CAMERA, chunk=16, denoiser="unet", hidden=128)),
        "flow": lambda: _ours(FlowConfig(_CAMERA, chunk=16, denoiser="unet", hidden=128)),
        "autoregressive": lambda: _ours(AutoregressiveConfig(_CAMERA, hidden=256, layers=6, heads=8)),
        "octo": lambda: _ours(
            OctoConfig(OctoTokensConfig(("image_primary",), language="sentence", window=2), size="small"), 256
        ),
        "openvla": _openvla,
    }
    for family in families:
        if family not in builders:
            raise InputError(f"--families {family}: there are {', '.join(builders)}")
    return {name: build for name, build in builders.items() if not families or name in families}


def _ours(config: Any, pixels: int = 128) -> Policy:
    """For a square camera, seven numbers of proprioception and seven of action."""
    from policies.loading import family_class

    torch.manual_seed(0)
    one = np.ones(7, np.float32)
    spec = ActionSpec((*"xyzabc", "gripper"), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "made_up", 5.0, config.chunk)
    language = LanguageEncoder("dataset", {ObservationSpec().instruction: np.ones(384, np.float32)})
    unit = Normalizer(0 * one, one)
    statistics = compute_statistics(np.random.default_rng(0).uniform(-1, 1, (100, 7)))
    contract = DataContract(
        spec,
        unit,
        {"proprio": unit},
        {"image_primary": (pixels, pixels)},
        language,
        ("made up",),
        statistics={"action": statistics},
    )
    return family_class(config.family).create(config, contract).eval()


def _openvla() -> Any:
    """24 million parameters, 225 patches and 55 tokens of prompt before the seven of an action."""
    from policies.openvla import OpenVLAPolicy

    vision = {"depth": 6, "embed_dim": 128, "num_heads": 4}
    text = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 32064}
    config = {
        "model_type": "openvla",
        "use_fused_vision_backbone": True,
        "timm_model_ids": [DINO, SIGLIP],
        "timm_model_kwargs": [vision, vision],
        "image_sizes": [210, 210],
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "norm_stats": {"made_up": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}},
        "text_config": text,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_openvla(Path(folder) / "openvla", config)
        policy: Any = OpenVLAPolicy.load(Path(folder) / "openvla")
    policy.observation_spec = replace(policy.observation_spec, instruction="rotate")
    return policy


def write_openvla(folder: Path, config: dict[str, Any], shards: int = 1) -> dict[str, torch.Tensor]:
    """Write an OpenVLA folder with random weights for this config.json; returns the weights, by the checkpoint's names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = config["timm_model_ids"]
    preparation = {
        "image_resize_strategy": config["image_resize_strategy"],
        "input_sizes": [[3, size, size] for size in config["image_sizes"]],
        "interpolations": ["bicubic"] * len(names),
        "means": [_MEANS[name] for name in names],
        "stds": [_STDS[name] for name in names],
        "use_fused_vision_backbone": config["use_fused_vision_backbone"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    _tokenizer().save(str(folder / "tokenizer.json"))
    weights = _random_weights(config)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    files = {key: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, key in enumerate(weights)}
    for file in set(files.values()):
        save_file({key: value for key, value in weights.items() if files[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return weights


def _random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from policies.networks.prismatic import build, to_theirs

    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in build(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        scale = noise * (1 if value.ndim == 1 else value[0].numel() ** -0.5)
        weights[to_theirs(key)] = 1 + 0.1 * noise if "norm" in key and key.endswith("weight") else scale.clone()
    # Among 32064 tokens so few dimensions could not make one likely.
    weights["language_model.lm_head.weight"] *= 4
    return weights


def _tokenizer() -> Any:
    """One token a character, led by BOS; as in the real one, the ids of the actions and of the lone space are never its own."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    text = "\n !',.:?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + i for i, letter in enumerate(text)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
