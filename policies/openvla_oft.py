"""OpenVLA-OFT (Kim et al. 2502.19645): one pass with attention in both directions regresses a whole chunk. Loaded as `openvla:FOLDER`.

The head has one answer, so all samples of an observation are alike; steering has something to choose from only where the caller adds
noise of its own. What a checkpoint does not say (cameras, chunk, which statistics) goes by the robot, as in the original's constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from policies.base import Observations, ObservationSpec, SamplesOnceEncoded
from policies.formats.openvla import PictureProcessor, Prompter, read_pixels, read_prompts, read_range
from policies.history import latest, to_tensor
from policies.networks.oft import load_action_head, load_proprio_projector, side_file
from policies.networks.prismatic import Prismatic
from policies.networks.shared_prefix import hidden_states
from policies.open_x import open_x_spec

_STOP = 2  # `</s>`, which stands after the placeholders as it did after the actions of training
_SLACK = 1e-8  # what the original adds to a range when it un-normalises


class OFTPolicy(SamplesOnceEncoded, nn.Module):
    """Regresses a chunk in one pass, so the K samples are K copies.

    See policies.base: Policy, Encodes, Trainable. Axes as in policies.openvla.OpenVLAPolicy.
    """

    family = "openvla"

    def __init__(
        self,
        model: Prismatic,
        folder: Path,
        dataset: str,
        statistics: Mapping[str, Any],
        prompt: str | None = None,
        control_hz: float | None = None,
        cameras: str | None = None,
        chunk: int | None = None,
    ) -> None:
        """cameras: keys in the order of training, with commas; the main camera and the wrists that the robot has if None.

        chunk: actions predicted together; 25 for two arms of seven, 5 for Bridge, else LIBERO's 8 if None.
        """
        super().__init__()
        for other in ("noisy_action_projector", "vision_backbone"):
            if path := side_file(folder, other):
                raise InputError(
                    f"{path}: the checkpoint is an OFT variant (diffusion or FiLM) that is not read here; give an L1 one"
                )
        path = side_file(folder, "action_head")
        assert path is not None
        self.model, self.head = model, load_action_head(path).to(model.device)
        width, size = model.decoder.config.hidden_size, self.head.fc2.out_features
        if self.head.fc1.in_features != width * size:
            raise InputError(f"{path}: reads {self.head.fc1.in_features} numbers, not those of {size} placeholders of {width}")
        path = side_file(folder, "proprio_projector")
        self.proprio = load_proprio_projector(path).to(model.device) if path else None
        if self.proprio is not None and self.proprio.fc2.out_features != width:
            raise InputError(f"{path}: gives {self.proprio.fc2.out_features} numbers, but the language model has {width}")
        bimanual, bridge = size == 14, "bridge" in dataset
        # ALOHA's joints are scaled by their extremes, all else by quantiles.
        low, high = ("min", "max") if bimanual else ("q01", "q99")
        self.unit = read_range(statistics, "action", folder, low, high)
        self.proprio_unit = read_range(statistics, "proprio", folder, low, high) if self.proprio is not None else None
        if len(self.unit.low) != size:
            raise InputError(f"{folder}: the head gives {size} numbers, but {dataset!r} has actions of {len(self.unit.low)}")
        if (
            self.proprio is not None
            and self.proprio_unit is not None
            and len(self.proprio_unit.low) != self.proprio.fc1.in_features
        ):
            raise InputError(
                f"{folder}: proprio has {self.proprio.fc1.in_features} numbers, but {dataset!r} has {len(self.proprio_unit.low)}"
            )
        chunk = chunk or (25 if bimanual else 5 if bridge else 8)
        wrists = ("image_left_wrist", "image_right_wrist") if bimanual else () if bridge else ("image_wrist",)
        names = tuple(cameras.split(",")) if cameras else ("image_primary", *wrists)
        self.prompter, self.pictures = Prompter(folder, prompt), PictureProcessor(folder)
        vectors = {"proprio": self.proprio.fc1.in_features} if self.proprio is not None else {}
        self.observation_spec = ObservationSpec(dict.fromkeys(names, self.pictures.size), vectors)
        # The head is not bounded, but what was trained on [-1,1] stays within twice that.
        low_bound, high_bound = (self.unit.unnormalize(np.full(size, side)) for side in (-2.0, 2.0))
        self.action_spec = open_x_spec(dataset, low_bound, high_bound, chunk=chunk, control_hz=control_hz)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, observations: Observations) -> torch.Tensor:
        """Normalised chunks [B,H,A]."""
        spec, seen = self.action_spec, latest(observations)
        inserted = [self.model.embed_images(read_pixels(seen, tuple(self.observation_spec.images), self.pictures))]
        if self.proprio is not None:
            inserted.append(self._proprio(seen)[:, None].to(inserted[0].dtype))
        prompts = read_prompts(seen, self.prompter)
        stop = self.model.embed_tokens(torch.full((len(prompts), 1), _STOP))
        placeholders = stop.new_zeros(len(prompts), spec.chunk * spec.dim, stop.shape[-1])
        tail = torch.cat([placeholders, stop], dim=1)
        embeddings, mask, starts = self.model.sequence(prompts, torch.cat(inserted, dim=1), tail)
        hidden = hidden_states(self.model.decoder, embeddings, mask, causal=False)
        # As in next-token prediction, a placeholder is read one position early.
        where = (starts - 1)[:, None] + torch.arange(spec.chunk * spec.dim, device=starts.device)
        read = torch.take_along_dim(hidden, where[..., None].to(hidden.device), dim=1).to(self.device)
        return self.head(read.float().unflatten(1, (spec.chunk, spec.dim)).flatten(2))

    @torch.no_grad()
    def sample_encoded(
        self, encoding: torch.Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        actions = self.unit.unnormalize(encoding.double(), _SLACK).float()
        return actions[:, None].repeat(1, num_samples, 1, 1)

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Mean absolute error of the normalised chunk, as the original is trained."""
        target = self.unit.normalize(actions.to(self.device, torch.float32))
        losses = (self.encode(observations) - target).abs().mean((1, 2))
        return losses if weights is None else losses * weights

    def _proprio(self, observations: Observations) -> torch.Tensor:
        """[B,D]."""
        assert self.proprio is not None
        assert self.proprio_unit is not None
        if "proprio" not in observations:
            raise InputError(
                f"the observation lacks 'proprio', which the policy needs (it has {', '.join(sorted(observations))})"
            )
        values = to_tensor(observations["proprio"]).to(self.device, torch.float64)
        if values.ndim != 2 or values.shape[1] != self.proprio.fc1.in_features:
            raise InputError(
                f"the observation's 'proprio' has shape {tuple(values.shape)}; it must be (B, {self.proprio.fc1.in_features})"
            )
        low, high, mask = self.proprio_unit.like(values)
        scaled = torch.where(mask, 2 * (values - low) / (high - low + _SLACK) - 1, values)
        return self.proprio(scaled.clamp(-1, 1).float())
