"""Small checkpoints in the layouts of LeRobot and of Stanford's diffusion_policy, with random weights, for tests anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from policies.formats.lerobot import read_features
from policies.formats.stanford_checkpoint import convert_checkpoint
from policies.networks.lerobot import LeRobotACT, LeRobotDiffusion
from policies.networks.stanford import StanfordDiffusion

CAMERA, WRIST, STATE, ENVIRONMENT = (
    "observation.images.top",
    "observation.images.wrist",
    "observation.state",
    "observation.environment_state",
)
DIFFUSION: dict[str, Any] = {
    "type": "diffusion",
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 4,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "crop_shape": [28, 28],
    "down_dims": [16, 32],
    "diffusion_step_embed_dim": 16,
    "spatial_softmax_num_keypoints": 4,
    "num_train_timesteps": 10,
}
ACT: dict[str, Any] = {
    "type": "act",
    "n_obs_steps": 1,
    "chunk_size": 6,
    "n_action_steps": 4,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ENV": "QUANTILES", "ACTION": "MEAN_STD"},
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 24,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "kl_weight": 1.0,
}


def lerobot_features(cameras: Mapping[str, tuple[int, int]], state: int, environment: int, action: int) -> dict[str, Any]:
    inputs = {name: {"type": "VISUAL", "shape": [3, *size]} for name, size in cameras.items()}
    inputs |= {STATE: {"type": "STATE", "shape": [state]}} if state else {}
    inputs |= {ENVIRONMENT: {"type": "ENV", "shape": [environment]}} if environment else {}
    return {"input_features": inputs, "output_features": {"action": {"type": "ACTION", "shape": [action]}}}


def statistics(features: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """`feature.statistic` -> values, as the processors' files hold them."""
    generator, result = torch.Generator().manual_seed(seed), {}
    for name, feature in features.items():
        shape = (3, 1, 1) if feature["type"] == "VISUAL" else tuple(feature["shape"])
        mean, std = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator) + 0.5
        low, high = mean - 2 * std, mean + 3 * std
        for key, value in {"mean": mean, "std": std, "min": low, "max": high, "q01": low / 2, "q99": high / 2}.items():
            result[f"{name}.{key}"] = value
    return result


def lerobot(
    folder: Path,
    settings: Mapping[str, Any],
    cameras: Mapping[str, tuple[int, int]] | None = None,
    state: int = 3,
    environment: int = 0,
    action: int = 2,
    old: bool = False,
) -> Path:
    """A LeRobot 0.4 checkpoint; old: of 0.3, with the statistics among the weights."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**settings, **lerobot_features({CAMERA: (32, 40)} if cameras is None else cameras, state, environment, action)}
    (folder / "config.json").write_text(json.dumps(config))
    read = read_features(config, folder)
    model: Any = LeRobotDiffusion(config, read, None) if config["type"] == "diffusion" else LeRobotACT(config, read, False)
    weights = {model.rename(key): value.clone() for key, value in model.state_dict().items()}
    features = {**config["input_features"], **config["output_features"]}
    values = statistics(features)
    if old:
        for name, feature in features.items():
            wanted = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max")}[
                settings["normalization_mapping"][feature["type"]]
            ]
            owners = ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",)
            for key in wanted:
                for owner in owners:
                    weights[f"{owner}.buffer_{name.replace('.', '_')}.{key}"] = values[f"{name}.{key}"].clone()
    else:
        _processor(folder, "pre", "normalizer", features, settings, values)
        _processor(folder, "post", "unnormalizer", config["output_features"], settings, values)
    save_file(weights, folder / "model.safetensors")
    return folder


def _processor(folder: Path, side: str, step: str, features: Any, settings: Mapping[str, Any], values: Any) -> None:
    state = f"policy_{side}processor_step_1_{step}_processor.safetensors"
    config = {"eps": 1e-8, "features": features, "norm_map": settings["normalization_mapping"]}
    steps = [
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
        {"registry_name": f"{step}_processor", "config": config, "state_file": state},
    ]
    (folder / f"policy_{side}processor.json").write_text(json.dumps({"name": f"policy_{side}processor", "steps": steps}))
    save_file(values, folder / state)


def _scheduler(**settings: Any) -> dict[str, Any]:
    return {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 10,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "prediction_type": "epsilon",
        **settings,
    }


def stanford_lowdim(**settings: Any) -> dict[str, Any]:
    """cfg of a UNet policy of a 5-dimensional observation, globally conditioned."""
    model = {
        "_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D",
        "input_dim": 3,
        "global_cond_dim": "${policy.obs_dim}",
        "diffusion_step_embed_dim": 16,
        "down_dims": [16, 32],
        "cond_predict_scale": True,
    }
    policy = {
        "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        "model": model,
        "noise_scheduler": _scheduler(),
        "horizon": "${horizon}",
        "obs_dim": 5,
        "action_dim": 3,
        "n_action_steps": 4,
        "n_obs_steps": 2,
        "num_inference_steps": 10,
        "obs_as_global_cond": True,
        "oa_step_convention": True,
    }
    return {"horizon": 8, "training": {"use_ema": True}, "policy": {**policy, **settings}}


def stanford_transformer(**settings: Any) -> dict[str, Any]:
    """cfg of a transformer policy of a 5-dimensional observation, which is its tokens."""
    model = {
        "_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion",
        "input_dim": 3,
        "horizon": 8,
        "n_obs_steps": 2,
        "cond_dim": 5,
        "n_layer": 1,
        "n_head": 2,
        "n_emb": 16,
        "causal_attn": True,
    }
    target = "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy"
    cfg = stanford_lowdim(_target_=target, model=model, obs_as_cond=True)
    return {**cfg, "policy": {**cfg["policy"], **settings}}


def stanford_hybrid(**settings: Any) -> dict[str, Any]:
    """cfg of a UNet policy with robomimic's encoders of two cameras, and two vectors."""
    cfg = stanford_lowdim()
    for key in ("model", "obs_dim", "action_dim"):
        del cfg["policy"][key]
    observations = {
        "agentview_image": {"shape": [3, 36, 44], "type": "rgb"},
        "robot0_eef_pos": {"shape": [3]},
        "robot0_eye_in_hand_image": {"shape": [3, 36, 44], "type": "rgb"},
        "robot0_gripper_qpos": {"shape": [2], "type": "low_dim"},
    }
    policy = {
        **cfg["policy"],
        "_target_": "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        "shape_meta": {"action": {"shape": [3]}, "obs": observations},
        "crop_shape": [32, 40],
        "obs_encoder_group_norm": True,
        "diffusion_step_embed_dim": 16,
        "down_dims": [16, 32],
    }
    return {**cfg, "policy": {**policy, **settings}}


class _Sizes(dict):
    """robomimic's, which a checkpoint's tensors tell: 4 keypoints, 6 features."""

    def __missing__(self, key: str) -> tuple[int, ...]:
        return (4,) if key.endswith(".1.nets.weight") else (6,)


def stanford_payload(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a `.ckpt` holds; the averaged model differs from the other, and both have the originals' placeholders."""
    torch.manual_seed(0)
    model = StanfordDiffusion({**cfg["policy"], "horizon": cfg["horizon"]}, _Sizes(), None)
    weights = {model.rename(key): value.clone() for key, value in model.state_dict().items() if not key.endswith("pos_grid")}
    sizes = {item.name: 1 if item.rgb else item.size for item in model.inputs} | {"action": model.actions}
    for name, size in sizes.items():
        weights[f"normalizer.params_dict.{name}.scale"] = torch.rand(size) + 0.5
        weights[f"normalizer.params_dict.{name}.offset"] = torch.randn(size)
        weights[f"normalizer.params_dict.{name}.input_stats.max"] = torch.ones(size)
    weights |= {"_dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}
    other = {key: value + 1 for key, value in weights.items()}
    return {"cfg": dict(cfg), "state_dicts": {"model": other, "ema_model": weights}, "pickles": {"epoch": b"not opened"}}


def stanford_ckpt(path: Path, cfg: Mapping[str, Any]) -> Path:
    torch.save(stanford_payload(cfg), path)
    return path


def stanford(folder: Path, cfg: Mapping[str, Any]) -> Path:
    """A converted folder."""
    convert_checkpoint(stanford_ckpt(folder / "latest.ckpt", cfg), folder / "policy")
    return folder / "policy"


# By name of a member of the conformance suite: writes a checkpoint into a folder, gives its spec.
FOREIGN: dict[str, Callable[[Path], str]] = {
    "lerobot": lambda folder: f"lerobot:{lerobot(folder, DIFFUSION)}",
    "lerobot, act": lambda folder: f"lerobot:{lerobot(folder, ACT, environment=2)}",
    "lerobot, act with drawn latents": lambda folder: f"lerobot:{lerobot(folder, ACT, environment=2)}?latent=prior",
    "diffusion_policy": lambda folder: f"diffusion_policy:{stanford(folder, stanford_lowdim())}",
    "diffusion_policy, transformer": lambda folder: f"diffusion_policy:{stanford(folder, stanford_transformer())}",
    "diffusion_policy, images": lambda folder: f"diffusion_policy:{stanford(folder, stanford_hybrid())}",
}
