"""What the families that are trained here from nothing have in common: an observation encoder, a head, and a checkpoint of ours.

A family adds its head: a loss, a sampler and perhaps a likelihood, all of chunks in units of the data's range.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from policies.base import Observations, SamplesOnceEncoded
from policies.config import config_from_json
from policies.contract import DataContract, load_trained
from policies.networks.encoder import EncodedModel


class TrainedPolicy(SamplesOnceEncoded, EncodedModel):
    """See policies.base: Policy, Encodes, Trainable. Axes: B batch, K samples, H chunk, A action, Z features."""

    config_type: ClassVar[Any]
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, config: Any, contract: DataContract) -> None:
        super().__init__(config, contract)
        self.register_buffer("low", torch.tensor(self.action_spec.low), persistent=False)
        self.register_buffer("high", torch.tensor(self.action_spec.high), persistent=False)

    @classmethod
    def create(cls, config: Any, contract: DataContract) -> Self:
        """An untrained policy for data of this contract; torch's global generator initialises it."""
        return cls(config, contract)

    @classmethod
    def load(cls, location: Path, device: str = "cpu", *, dataset: str | None = None) -> Self:
        """The policy of a step folder; InputError when the folder is damaged.

        dataset: of a policy trained on a mixture, whose robot it shall act on; by default the first one's.
        """
        return load_trained(
            location,
            f"{cls.config_type.family} policy",
            lambda config, contract: cls(config_from_json(cls.config_type, config), contract),
            dataset,
        ).to(device)

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "config": asdict(self.config), "contract": self.contract.to_json()}

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        return self.state_dict()

    @property
    def family(self) -> str:
        return self.config_type.family

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        losses = self.head_loss(self.encode(observations), self.contract.action_normalizer.normalize(actions), generator)
        return losses if weights is None else losses * weights

    @torch.no_grad()
    def sample_encoded(
        self, encoding: torch.Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        normalized = self.head_sample(encoding, num_samples, generator)
        return self.contract.action_normalizer.unnormalize(normalized).clamp(self.low, self.high)

    @abstractmethod
    def head_loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Loss [B] of normalised chunks [B,H,A] given z [B,Z]."""

    @abstractmethod
    def head_sample(self, z: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        """K normalised chunks [B,K,H,A] given z [B,Z]."""
