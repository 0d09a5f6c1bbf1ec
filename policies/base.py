"""What a policy is: the interface every family implements, and the optional abilities, each a protocol of its own.

Batched observations are a flat dict with Octo's names: `image_primary`, `image_wrist`, ... uint8 [B,H,W,3], `proprio` float32
[B,P], `state` float32 [B,S] (numpy), and `instruction`, a list of B strings. Actions are float32 torch tensors in physical units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

Observations = Mapping[str, Any]


@dataclass(frozen=True)
class ActionSpec:
    """What one action means: A named dimensions with units and bounds, in a frame, H of them a chunk, at a control rate."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    frame: str
    control_hz: float
    chunk: int

    @property
    def dim(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ActionSpec:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**fields)


@runtime_checkable
class Policy(Protocol):
    """Anything that proposes action chunks."""

    @property
    def action_spec(self) -> ActionSpec: ...

    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw K = num_samples chunks for each of B observations: float32 [B,K,H,A] in physical units."""
        ...

    def reset(self) -> None:
        """Forget everything that was remembered from the current episode."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A policy with a supervised loss of its own, whatever that is (denoising error, cross-entropy, likelihood)."""

    def loss(self, observations: Observations, actions: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Per-sample loss [B] of action chunks [B,H,A] in physical units; the caller weights and averages."""
        ...

    def parameters(self) -> Sequence[torch.nn.Parameter]: ...
