"""Camera networks that learn to see once, and serve critics and policies of any family on data of the same cameras.

On a CPU nine tenths of training with cameras is the cameras' networks; and what cloning noisy actions teaches them is little. So they
are trained by themselves, to tell from a frame and the instruction where the robot will be and, of a simulator's data, the state.
What takes them over (`--vision`) leaves them as they are, and has to look at each frame only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from data.store.store import Store
from policies.checkpoint import read_config, read_tensors, resolve_checkpoint
from policies.contract import DataContract
from policies.networks.encoder import FEATURES, Cameras, ObservationEncoder
from robot_rl.config import VisionConfig

TARGETS = "vision_targets"
_FRAMES = 256
_CAMERAS = "encoder.cameras."
_AHEAD = (2, 4, 8, 16)  # control steps
_WARM_UP = 0.05  # of the steps
LookProgress = Callable[[int, "int | None"], None]
"""Called with (frames done, frames in all)."""
Derived = dict[str, np.ndarray]
"""What a `ChunkSampler` returns beside the observations of a store, [rows, ...] by name."""


class VisionLearner(nn.Module):
    """Regression of `targets` on what the encoder makes of an observation. See robot_rl.training.Learner."""

    step: torch.Tensor

    def __init__(self, config: VisionConfig, contract: DataContract, targets: int, steps: int) -> None:
        super().__init__()
        self.config, self.contract, self.steps = config, contract, steps
        self.encoder = ObservationEncoder(config.encoder, contract)
        self.head = nn.Sequential(
            nn.Linear(self.encoder.output, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, targets),
        )
        self.register_buffer("step", torch.tensor(0))
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "vision": torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=1e-2, fused=True)
        }

    def to_json(self) -> dict[str, Any]:
        return {"family": "vision", "config": asdict(self.config), "contract": self.contract.to_json()}

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        return {f"{_CAMERAS}{key}": value for key, value in self.encoder.cameras.state_dict().items()}

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        optimizer = self.optimizers["vision"]
        self.step += 1
        done = min(float(self.step) / self.steps, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(done / _WARM_UP, 0.5 * (1 + math.cos(math.pi * done)))
        observations = batch["observations"]
        targets = torch.as_tensor(observations[TARGETS], device=self.step.device)
        loss = F.mse_loss(self.head(self.encoder(self.encoder.tensors(observations))), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss}


def vision_targets(store: Store) -> np.ndarray:
    """float32 [rows, D], each column standardised: how far each number of the proprio will have moved some steps later, or at the
    episode's end, and the state. InputError where a store has neither.
    """
    ends = store.episode_ends
    final = np.repeat(ends - 1, np.diff(ends, prepend=0))
    parts = []
    if "proprio" in store.observation_keys:
        proprio = store.load("proprio")
        parts += [proprio[np.minimum(np.arange(store.rows) + ahead, final)] - proprio for ahead in _AHEAD]
    if "state" in store.observation_keys:
        parts.append(store.load("state"))
    if not parts:
        raise InputError(f"{store.path}: has neither proprio nor state, so there is nothing to learn to see from")
    targets = np.concatenate(parts, axis=1)
    scale = targets.std(axis=0)
    return np.asarray((targets - targets.mean(axis=0)) / np.where(scale > 1e-6, scale, 1.0), np.float32)


def cameras_of_run(run: Path | str) -> tuple[str, ...]:
    """The observation keys of the cameras that a run's networks look at. InputError when there is no such run."""
    return tuple(_open(run)[1].get("contract", {}).get("images", {}))


def _open(run: Path | str) -> tuple[Path, dict[str, Any]]:
    try:
        checkpoint = resolve_checkpoint(run)
    except InputError as error:
        raise InputError(f"--vision {error}") from error
    return checkpoint, read_config(checkpoint)


def take_cameras(cameras: Cameras, run: Path | str) -> None:
    """Give them the weights of a run's camera networks, frozen. InputError when the run has not these cameras, at this size."""
    checkpoint, values = _open(run)
    tensors = read_tensors(checkpoint, "model")
    contract, network = values.get("contract", {}), values.get("config", {}).get("encoder", {}).get("image_encoder")
    images = {key: tuple(size) for key, size in contract.get("images", {}).items()}
    there, language = ", ".join(images) or "no camera", contract.get("language", {}).get("model")
    for key in cameras:
        if key not in images:
            raise InputError(f"--vision {run}: looks at {there}; leave {key} out of --inputs, or give a run that looks at it")
        if images[key] != cameras.contract.images[key]:
            wanted, given = cameras.contract.images[key], images[key]
            raise InputError(f"--vision {run}: its {key} is {given}, {wanted} is needed; give a run on frames of this size")
    if network != cameras.network:
        raise InputError(f"--vision {run}: its network is {network}, not {cameras.network}; say --image-encoder {network}")
    if language != (model := cameras.contract.language.model):
        raise InputError(
            f"--vision {run}: its language model is {language}, {model} is needed; give a run on data with that one"
        )
    try:
        cameras.load_state_dict({key: tensors[_CAMERAS + key] for key in cameras.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise InputError(f"--vision {run}: damaged, or of another version ({str(error).splitlines()[0]})") from error
    cameras.requires_grad_(False)


@torch.inference_mode()
def features_of(cameras: Cameras, store: Store, progress: LookProgress | None = None) -> Derived:
    """Of each camera float16 [rows, F], what its network makes of its frames and of each episode's own instruction."""
    table, rows = store.language.encode(store.instructions), store.rows
    numbers, result = store.load("instruction_index"), {}
    for index, key in enumerate(cameras):
        seen = []
        for start in range(0, rows, _FRAMES):
            at = np.arange(start, min(start + _FRAMES, rows))
            seen.append(cameras.see(key, store.gather(key, at), table[numbers[at]]).half().cpu().numpy())
            if progress is not None:
                progress(index * rows + int(at[-1]) + 1, len(cameras) * rows)
        result[FEATURES + key] = np.concatenate(seen)
    return result
