"""Critic: Q(s, l, chunk of actions), an ensemble on one encoder of the observation and the instruction.

`encode` once an observation, `values` for as many candidates as wanted. Actions enter in physical units; the critic's own normaliser,
which travels in its checkpoint, is the only thing that rescales them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from policies.checkpoint import read_config, resolve_checkpoint
from policies.config import config_from_json
from policies.contract import DataContract, load_trained
from policies.device import device_of
from policies.loading import parse_spec
from policies.networks.encoder import EncodedModel
from robot_rl.critic.config import CriticConfig
from robot_rl.critic.losses import hl_gauss_value
from robot_rl.critic.networks import EnsembleMLP


class Critic(EncodedModel):
    """Axes: B batch, K candidates, H chunk, A action, E members."""

    edges: torch.Tensor

    def __init__(self, config: CriticConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        outputs = 1 if config.head == "scalar" else config.bins
        action = config.chunk * self.action_spec.dim
        self.heads = EnsembleMLP(config.members, self.encoder.output, action, config.hidden, config.depth, outputs)
        # With rewards of -1 and 0 every value lies between -1 forever and 0.
        lowest = -1 / (1 - self.contract.reward["discount"])
        self.register_buffer("edges", torch.linspace(lowest, 0, config.bins + 1), persistent=False)

    def normalize(self, actions: torch.Tensor) -> torch.Tensor:
        """Physical units [...,A] -> the critic's units, in which the data fill [-1, 1]."""
        return self.contract.action_normalizer.normalize(actions)

    def unnormalize(self, actions: torch.Tensor) -> torch.Tensor:
        return self.contract.action_normalizer.unnormalize(actions)

    def values(self, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q-values [E,B,K] of chunks [B,K,H,A] in physical units."""
        return self.decode(self.outputs(z, self.normalize(actions)))

    def outputs(self, z: torch.Tensor, normalized: torch.Tensor) -> torch.Tensor:
        """What the heads emit, [E,B,K,1] or [E,B,K,bins], for chunks [B,K,H,A] in the critic's units."""
        return self.heads(z, normalized.flatten(2))

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        """Head outputs -> scalar values."""
        return outputs[..., 0] if self.config.head == "scalar" else hl_gauss_value(outputs, self.edges)

    def to_json(self) -> dict[str, Any]:
        return {"family": "critic", "config": asdict(self.config), "contract": self.contract.to_json()}


def load_critic(path: Path | str, device: str = "cpu") -> Critic:
    """The target network of a trained critic, from its run folder or one step of it; InputError when there is none.

    `folder?dataset=NAME`: of a critic trained on a mixture, the dataset whose actions it shall judge; by default the first one's.
    """
    _, location, options = parse_spec(str(path))
    if set(options) - {"dataset"}:
        raise InputError(f"{path}: a critic has one option, dataset, as in {location}?dataset=bridge_dataset")
    checkpoint = resolve_checkpoint(location)
    family = read_config(checkpoint).get("family")
    if family != "critic":
        raise InputError(f"{path}: holds a {family!r}, not a critic; give the folder of `robot-rl train critic`")
    critic = load_trained(
        checkpoint,
        "critic",
        lambda config, contract: Critic(config_from_json(CriticConfig, config), contract),
        options.get("dataset"),
    )
    return critic.to(device_of(device))
