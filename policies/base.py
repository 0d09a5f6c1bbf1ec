"""What a policy is: the interface every family implements, and the optional abilities, each a protocol of its own.

Batched observations are a flat dict with Octo's names: `image_primary`, `image_wrist`, ... uint8 [B,H,W,3], `proprio` float32
[B,P], `state` float32 [B,S] (numpy), and `instruction`, a list of B strings; `goal_image_primary`, ... where the goal is a picture.
A policy whose spec has a window T > 1 is given the last T observations, one axis more after B (see policies/history.py). Actions are
float32 torch tensors in physical units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
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


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy looks at, besides the instruction.

    images: camera key -> (height, width) that it works at; other sizes are resized. vectors: key -> size. window: T, how many
    consecutive control steps, the newest last. instruction: one that it understands.
    """

    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)
    window: int = 1
    instruction: str = "pick up the block"

    def example(self, batch: int = 1) -> dict[str, Any]:
        """Black images, zero vectors and the instruction: B observations of one control step."""
        images = {key: np.zeros((batch, *size, 3), np.uint8) for key, size in self.images.items()}
        vectors = {key: np.zeros((batch, size), np.float32) for key, size in self.vectors.items()}
        return {**images, **vectors, "instruction": [self.instruction] * batch}


@runtime_checkable
class Policy(Protocol):
    """Anything that proposes action chunks. One with an `observation_spec` also says what it looks at (see `observation_spec`)."""

    @property
    def action_spec(self) -> ActionSpec: ...

    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw K = num_samples chunks for each of B observations: float32 [B,K,H,A] in physical units."""
        ...

    def reset(self) -> None:
        """Forget everything that was remembered from the current episode."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A policy whose trunk runs once an observation, however many samples are drawn. `sample` is the one after the other."""

    def encode(self, observations: Observations) -> Any:
        """The trunk's one pass; what it returns is for `sample_encoded` alone."""
        ...

    def sample_encoded(self, encoding: Any, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """As `Policy.sample`: [B,K,H,A]."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A policy with a supervised loss of its own, whatever that is (denoising error, cross-entropy, likelihood)."""

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Loss of each action chunk [B,H,A] in physical units, times its weight [B] (1 if None): float32 [B]; the caller averages."""
        ...

    def parameters(self) -> Sequence[torch.nn.Parameter]: ...


@runtime_checkable
class HasLogProb(Protocol):
    """A policy that knows how likely its own samples are."""

    def log_prob(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        """Log-density (token policies: log-probability of the tokens) of chunks [B,K,H,A] in physical units: float32 [B,K]."""
        ...


class SamplesOnceEncoded:
    """`sample` and `reset` of policies that are `Encodes` and remember nothing."""

    def reset(self) -> None:
        pass

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        own: Any = self
        return own.sample_encoded(own.encode(observations), num_samples, generator)


ABILITIES: Mapping[str, str] = {"sample": "sample", "encode once": "encode", "loss": "loss", "log-prob": "log_prob"}


def abilities(policy: object) -> tuple[str, ...]:
    """What a policy, or a family's class, can do, by the names of `ABILITIES`."""
    return tuple(name for name, method in ABILITIES.items() if hasattr(policy, method))


def observation_spec(policy: Policy) -> ObservationSpec:
    """The policy's own `observation_spec`; one that names no inputs for a policy without."""
    return getattr(policy, "observation_spec", ObservationSpec())
