"""Stanford's diffusion_policy checkpoints (`diffusion_policy:FOLDER`), after `robot-rl convert-policy` made a folder of the `.ckpt`.

Cameras become `image_primary`, `image_wrist`, `image_NAME`; the other observations of a policy with cameras are, in their order, one
`proprio`; a policy without cameras has one vector, `state`. A checkpoint does not say what its actions mean: they are numbered.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, SamplesOnceEncoded
from policies.checkpoint import read_config, read_tensors
from policies.formats.foreign import camera_names, check_finite, entry, load_weights, pictures, vector
from policies.history import windowed
from policies.networks.stanford import UNUSED, Encoding, StanfordDiffusion

_UNCLIPPED = 2.0  # Bound of normalised actions where the scheduler clips none: twice the range of the data.


class Affine(nn.Module):
    """Stanford's LinearNormalizer of one field: x scale + offset, over the last axis or, with one entry, over all."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, scale: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", offset.float())

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return (x.reshape(-1, len(self.scale)) * self.scale + self.offset).reshape(x.shape)

    def unnormalize(self, x: torch.Tensor) -> torch.Tensor:
        return ((x.reshape(-1, len(self.scale)) - self.offset) / self.scale).reshape(x.shape)


class StanfordPolicy(SamplesOnceEncoded, nn.Module):
    """Stanford's diffusion_policy, once `robot-rl convert-policy` has converted it.

    See policies.base: Policy, Encodes, Trainable. Axes: B batch, K samples, H chunk, A action, T steps of history.
    """

    family = "diffusion_policy"
    low: torch.Tensor

    def __init__(self, model: StanfordDiffusion, fields: Mapping[str, Affine], chunk: int | None = None) -> None:
        """fields: the normaliser of each input and of `action`. chunk: actions to give, as many as it executes if None."""
        super().__init__()
        self.model = model
        self.fields = nn.ModuleDict(dict(fields))
        room = model.horizon - model.start
        chunk = model.default_chunk if chunk is None else chunk
        if not 1 <= chunk <= room:
            raise InputError(f"chunk={chunk}: this policy predicts {room} actions from now on")
        bound = _UNCLIPPED if model.denoising.bound is None else model.denoising.bound
        ends = [self._field("action").unnormalize(torch.full((1, model.actions), side))[0] for side in (-bound, bound)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        names = tuple(f"action_{i}" for i in range(model.actions))
        units = ("1",) * model.actions
        self.action_spec = ActionSpec(names, units, tuple(low.tolist()), tuple(high.tolist()), "unknown", 0.0, chunk)
        self.register_buffer("low", low, persistent=False)
        self.cameras = camera_names([item.name for item in model.inputs if item.rgb])
        self.vector = "proprio" if self.cameras else "state"

    @classmethod
    def load(
        cls, location: Path, device: str = "cpu", *, inference_steps: int | None = None, chunk: int | None = None
    ) -> StanfordPolicy:
        """The policy of a converted folder; InputError if it is damaged, or still the `.ckpt`, which is a pickle and not opened here.

        inference_steps: samples by DDIM in so many; as the checkpoint says if None. chunk: actions to give, as many as the
        checkpoint executes if None.
        """
        if location.is_file():
            raise InputError(
                f"{location}: a pickle, which could run code; convert it once: robot-rl convert-policy {location} --out FOLDER"
            )
        values, weights = read_config(location), read_tensors(location, "model")
        where = location / "model.safetensors"
        weights = {key: value for key, value in weights.items() if not UNUSED.search(key)}
        check_finite(weights, where)
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        try:
            model = StanfordDiffusion(values["policy"], shapes, inference_steps)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError(f"{location / 'config.json'}: not a policy of Stanford's that is known here ({what})") from error
        fields = {name: _field_of(name, weights, where) for name in [*(item.name for item in model.inputs), "action"]}
        load_weights(model, names_of(model), weights, where)
        return cls(model, fields, chunk).to(device).eval()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a `.ckpt` as PyTorch writes it (which `load` then refuses, saying what to do)."""
        return path.suffix == ".ckpt" and path.is_file() and zipfile.is_zipfile(path)

    @property
    def observation_spec(self) -> ObservationSpec:
        images = {self.cameras[item.name]: (item.shape[1], item.shape[2]) for item in self.model.inputs if item.rgb}
        size = sum(item.size for item in self.model.inputs if not item.rgb)
        return ObservationSpec(images, {self.vector: size} if size else {}, self.model.window)

    @property
    def device(self) -> torch.device:
        return self.low.device

    def encode(self, observations: Observations) -> Encoding:
        return self.model.encode(self._inputs(observations))

    @torch.no_grad()
    def sample_encoded(self, encoding: Encoding, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        chunks = self.model.sample(encoding, num_samples, generator)[:, :, : self.action_spec.chunk]
        return self._field("action").unnormalize(chunks)

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The original's, [B]. actions [B,H,A]: from now on, or all that the policy predicts, from the first observation on.

        A shorter chunk is continued at its ends as at the ends of an episode, and what was added does not count.
        """
        length, horizon = actions.shape[1], self.model.horizon
        before = 0 if length == horizon else self.model.start
        if before + length > horizon:
            room = horizon - self.model.start
            raise InputError(f"chunks of {length} actions; this policy predicts {room} from now on, {horizon} in all")
        index = torch.arange(-before, horizon - before, device=actions.device).clamp(0, length - 1)
        chunk = self._field("action").normalize(actions)[:, index]
        errors = self.model.errors(self._inputs(observations), chunk, generator)
        losses = errors[:, before : before + length].mean((1, 2))
        return losses if weights is None else losses * weights

    def _field(self, name: str) -> Affine:
        module = self.fields[name]
        assert isinstance(module, Affine)
        return module

    def _inputs(self, observations: Observations) -> dict[str, torch.Tensor]:
        """The checkpoint's inputs [B,T,...], normalised."""
        seen: dict[str, Any] = windowed(observations, self.model.window)
        vectors = [item for item in self.model.inputs if not item.rgb]
        result = {}
        for item in self.model.inputs:
            if item.rgb:
                ours = self.cameras[item.name]
                result[item.name] = pictures(entry(seen, ours, item.name, self.device), item.shape, ours)
        if vectors:
            sizes = [item.size for item in vectors]
            names = ", ".join(item.name for item in vectors)
            whole = vector(entry(seen, self.vector, names, self.device), sum(sizes), self.vector)
            for item, part in zip(vectors, whole.split(sizes, dim=-1), strict=True):
                result[item.name] = part
        return {name: self._field(name).normalize(value) for name, value in result.items()}


def _field_of(name: str, weights: dict[str, torch.Tensor], where: Path) -> Affine:
    keys = [f"normalizer.params_dict.{name}.{part}" for part in ("scale", "offset")]
    missing = next((key for key in keys if key not in weights), None)
    if missing:
        raise InputError(
            f"{where}: lacks {missing!r}, so {name!r} would not be normalised; convert a finished training's checkpoint"
        )
    return Affine(*(weights.pop(key).reshape(-1) for key in keys))


def names_of(model: StanfordDiffusion) -> dict[str, str]:
    """The checkpoint's keys to ours. Buffers that follow from sizes are in none."""
    return {model.rename(key): key for key in model.state_dict() if not key.endswith(".pos_grid")}
