"""LeRobot checkpoints (`lerobot:FOLDER`): diffusion and ACT policies are read natively, others through the lerobot package.

The checkpoint's own names become ours: its first camera `image_primary`, a wrist's `image_wrist`, `observation.images.NAME` otherwise
`image_NAME`; `observation.state` `proprio`, `observation.environment_state` `state`. Pictures of another size than the trained one,
which LeRobot refuses, are resized to it. A checkpoint does not say what its actions mean: their dimensions are numbered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, Policy
from policies.checkpoint import read_config, read_tensors
from policies.history import latest, windowed
from policies.lerobot_format import ACTION, Feature, Normalization, read_features, read_normalization
from policies.lerobot_models import LeRobotACT, LeRobotDiffusion
from policies.networks.visual import resized

_LATENTS = ("zero", "prior")


class LeRobotPolicy(nn.Module):
    """See policies.base: Policy, Encodes, Trainable. Axes: B batch, K samples, H chunk, A action, T steps of history."""

    family = "lerobot"
    low: torch.Tensor

    def __init__(
        self,
        model: LeRobotDiffusion | LeRobotACT,
        features: Mapping[str, Feature],
        normalization: Mapping[str, Normalization],
        chunk: int | None = None,
    ) -> None:
        """chunk: how many of the predicted actions to give, by default as many as the checkpoint executes."""
        super().__init__()
        self.model = model
        self.inputs = {name: feature for name, feature in features.items() if feature.kind != "ACTION"}
        # Not under the feature's name: a module's may have no dots.
        self._place = {name: str(index) for index, name in enumerate(normalization)}
        self.normalization = nn.ModuleDict({self._place[name]: value for name, value in normalization.items()})
        size, room = features[ACTION].shape[0], model.horizon - model.start
        chunk = model.default_chunk if chunk is None else chunk
        if not 1 <= chunk <= room:
            raise InputError(f"chunk={chunk}: this policy predicts {room} actions from now on")
        low, high = self._of(ACTION).bounds(model.bound)
        names = tuple(f"action_{i}" for i in range(size))
        self.action_spec = ActionSpec(names, ("1",) * size, tuple(low), tuple(high), "unknown", 0.0, chunk)
        self.register_buffer("low", torch.tensor(low), persistent=False)

    @classmethod
    def load(
        cls,
        location: Path,
        device: str = "cpu",
        *,
        inference_steps: int | None = None,
        latent: str = "zero",
        chunk: int | None = None,
    ) -> Policy:
        """The policy of a folder with config.json and model.safetensors; InputError if it is damaged, or would run unnormalised.

        inference_steps: a diffusion policy's, by DDIM; as the checkpoint says (often DDPM, all steps) if None. latent: `zero` as ACT
        runs, all samples alike, or `prior`, so that they differ. chunk: actions to give, as many as the checkpoint executes if None.
        """
        config = read_config(location)
        kind = config.get("type")
        if latent not in _LATENTS:
            raise InputError(f"latent={latent}: must be one of {', '.join(_LATENTS)}")
        if not isinstance(kind, str):
            raise InputError(
                f"{location / 'config.json'}: has no 'type', so it is no LeRobot policy, or older than LeRobot 0.1"
            )
        if kind not in ("diffusion", "act"):
            from policies.lerobot_package import LeRobotPackagePolicy

            return LeRobotPackagePolicy.load(location, device, kind)
        features = read_features(config, location / "config.json")
        weights = read_tensors(location, "model")
        normalization = read_normalization(location, config, features.values(), weights)
        try:
            if kind == "diffusion":
                model: Any = LeRobotDiffusion(config, features, inference_steps)
            else:
                model = LeRobotACT(config, features, prior=latent == "prior")
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise InputError(
                f"{location / 'config.json'}: not a LeRobot {kind} policy ({str(error).splitlines()[0]})"
            ) from error
        load_weights(model, {model.rename(key): key for key in model.state_dict()}, weights, location / "model.safetensors")
        return cls(model, features, normalization, chunk).to(device).eval()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the folder has a config.json with a LeRobot policy's `type` and features, and weights beside it."""
        try:
            config = json.loads((path / "config.json").read_text())
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and {"type", "input_features", "output_features"} <= set(config)

    @property
    def observation_spec(self) -> ObservationSpec:
        images = {feature.ours: feature.shape[1:] for feature in self.inputs.values() if feature.kind == "VISUAL"}
        vectors = {feature.ours: feature.shape[0] for feature in self.inputs.values() if feature.kind != "VISUAL"}
        return ObservationSpec({key: (size[0], size[1]) for key, size in images.items()}, vectors, self.model.window)

    @property
    def device(self) -> torch.device:
        return self.low.device

    def reset(self) -> None:
        pass

    def encode(self, observations: Observations) -> Any:
        return self.model.encode(self._normalized(self._tensors(observations)))

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.sample_encoded(self.encode(observations), num_samples, generator)

    @torch.no_grad()
    def sample_encoded(self, encoding: Any, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        chunks = self.model.sample(encoding, num_samples, generator)[:, :, : self.action_spec.chunk]
        return self._of(ACTION).unnormalize(chunks)

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """LeRobot's own. actions [B,H,A]: from now on, or all that the policy predicts (of diffusion, from the first observation on).

        A shorter chunk is continued at its ends as at the ends of an episode, and what was added does not count. The observations' own
        `action_is_pad` bool [B,H], where they have one, counts as the checkpoint's training configuration says.
        """
        length = actions.shape[1]
        horizon, start = self.model.horizon, self.model.start
        before = 0 if length == horizon else start
        after = horizon - before - length
        if after < 0:
            raise InputError(
                f"chunks of {length} actions; this policy predicts {horizon - start} from now on, {horizon} in all"
            )
        index = torch.arange(-before, length + after, device=actions.device)
        added = ((index < 0) | (index >= length)).expand(len(actions), -1)
        padded = added
        if "action_is_pad" in observations:
            given = torch.as_tensor(np.asarray(observations["action_is_pad"]), device=actions.device)
            padded = added | given[:, index.clamp(0, length - 1)]
        chunk = self._of(ACTION).normalize(actions)[:, index.clamp(0, length - 1)]
        errors, regularizer = self.model.errors(self._normalized(self._tensors(observations)), chunk, padded, generator)
        ignored = padded if self.model.mask_padding else added
        losses = (errors * ~ignored[..., None]).sum((1, 2)) / actions[0].numel() + regularizer
        return losses if weights is None else losses * weights

    def _of(self, feature: str) -> Normalization:
        module = self.normalization[self._place[feature]]
        assert isinstance(module, Normalization)
        return module

    def _normalized(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self._of(name).normalize(value) for name, value in tensors.items()}

    def _tensors(self, observations: Observations) -> dict[str, torch.Tensor]:
        """The checkpoint's features from ours: pictures as float [...,3,h,w] in [0,1], vectors as they are."""
        window = self.model.window
        seen = windowed(observations, window) if window > 1 else latest(observations)
        result = {}
        for name, feature in self.inputs.items():
            if feature.ours not in seen:
                raise InputError(
                    f"the observation lacks {feature.ours!r}, the policy's {name!r} (it has {', '.join(sorted(observations))})"
                )
            value = torch.as_tensor(np.asarray(seen[feature.ours]), device=self.device)
            lead = 2 if isinstance(self.model, LeRobotDiffusion) else 1
            if window == 1 and lead == 2:
                value = value[:, None]
            if feature.kind == "VISUAL":
                channels, height, width = feature.shape
                if value.ndim != lead + 3 or value.shape[-1] != channels:
                    raise InputError(
                        f"the observation's {feature.ours!r} has shape {tuple(value.shape)}, not (..., h, w, {channels})"
                    )
                pictures = value.flatten(0, lead - 1).permute(0, 3, 1, 2).float() / 255
                result[name] = resized(pictures, (height, width)).unflatten(0, value.shape[:lead])
            else:
                if value.shape[lead:] != feature.shape:
                    raise InputError(
                        f"the observation's {feature.ours!r} has shape {tuple(value.shape)}, this policy was trained on {feature.shape}"
                    )
                result[name] = value.float()
        return result


def load_weights(model: nn.Module, names: Mapping[str, str], weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Give `model` a checkpoint's weights; names: checkpoint's key -> model's. InputError for a key too few or too many, or NaN."""
    missing, surplus = sorted(set(names) - set(weights)), sorted(set(weights) - set(names))
    for keys, what in ((missing, "lacks"), (surplus, "has an unknown")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{where}: {what} {keys[0]!r}{more}; its config.json is of another model, or another version wrote it"
            )
    broken = next(
        (key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()), None
    )
    if broken:
        raise InputError(
            f"{where}: {broken!r} has values that are not finite; the training diverged, take an earlier checkpoint"
        )
    own = model.state_dict()
    for theirs, ours in names.items():
        if own[ours].shape != weights[theirs].shape:
            shapes = f"{tuple(weights[theirs].shape)}, not {tuple(own[ours].shape)}"
            raise InputError(f"{where}: {theirs!r} has shape {shapes} as its config.json says")
    model.load_state_dict({ours: weights[theirs] for theirs, ours in names.items()})
