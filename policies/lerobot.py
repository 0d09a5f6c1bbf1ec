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

import torch
from torch import nn

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, Policy, SamplesOnceEncoded
from policies.checkpoint import read_config, read_tensors
from policies.formats.foreign import entry, load_weights, pictures, vector
from policies.formats.lerobot import ACTION, Feature, Normalization, read_features, read_normalization
from policies.history import to_tensor, windowed
from policies.networks.lerobot import LeRobotACT, LeRobotDiffusion

_LATENTS = ("zero", "prior")


class LeRobotPolicy(SamplesOnceEncoded, nn.Module):
    """LeRobot's diffusion and ACT policies; its other policies through the package lerobot.

    See policies.base: Policy, Encodes, Trainable. Axes: B batch, K samples, H chunk, A action, T steps of history.
    """

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
        """The policy of a folder with config.json and model.safetensors, or of the training that wrote it.

        InputError where it is damaged, or would run without its normalisation.

        inference_steps: a diffusion policy's, by DDIM; as the checkpoint says (often DDPM, all steps) if None. latent: `zero` as ACT
        runs, all samples alike, or `prior`, so that they differ. chunk: actions to give, as many as the checkpoint executes if None.
        """
        location = _folder(location)
        config = read_config(location)
        kind = config.get("type")
        if latent not in _LATENTS:
            raise InputError(f"latent={latent}: must be one of {', '.join(_LATENTS)}")
        if not isinstance(kind, str):
            raise InputError(
                f"{location / 'config.json'}: has no 'type', so it is no LeRobot policy, or older than LeRobot 0.1"
            )
        if kind not in ("diffusion", "act"):
            from policies.formats.lerobot_package import LeRobotPackagePolicy

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
            config = json.loads((_folder(path) / "config.json").read_text())
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

    def encode(self, observations: Observations) -> Any:
        return self.model.encode(self._normalized(self._tensors(observations)))

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
            given = to_tensor(observations["action_is_pad"]).to(actions.device)
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
        """The checkpoint's features [B,T,...] from ours: pictures as float [...,3,h,w] in [0,1], vectors as they are."""
        seen = windowed(observations, self.model.window)
        result = {}
        for name, feature in self.inputs.items():
            value = entry(seen, feature.ours, name, self.device)
            if feature.kind == "VISUAL":
                result[name] = pictures(value, feature.shape, feature.ours)
            else:
                result[name] = vector(value, feature.shape[0], feature.ours)
        return result


def _folder(location: Path) -> Path:
    """Where a training's folder, or its step's, has the policy."""
    inner = [location / "pretrained_model", location / "checkpoints" / "last" / "pretrained_model"]
    return next((folder for folder in [location, *inner] if (folder / "config.json").is_file()), location)
