"""What tests of policies draw with a seed: torch's generator, and observations that a policy can look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from policies import Policy, observation_spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(policy: Policy, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """B observations of one control step, told by turns to go left and right."""
    rng, spec = np.random.default_rng(seed), observation_spec(policy)
    images = {key: rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8) for key, size in spec.images.items()}
    vectors = {key: rng.normal(size=(batch, size)).astype(np.float32) for key, size in spec.vectors.items()}
    return {**images, **vectors, "instruction": [("go left", "go right")[i % 2] for i in range(batch)]}


def sampled(policy: Policy, seen: dict[str, Any], count: int = 3) -> torch.Tensor:
    """Always the same K samples, [B,K,H,A]."""
    return policy.sample(seen, count, generator())
