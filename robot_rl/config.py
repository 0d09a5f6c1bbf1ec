"""Settings of training. Free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """steps: gradient steps in all. log_every, checkpoint_every: in steps. threads: of the CPU; more than one pays for cameras only."""

    steps: int = 10_000
    batch_size: int = 256
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 2_000
    threads: int = 1


@dataclass(frozen=True)
class CloningConfig:
    """learning_rate: at the start of a cosine schedule. average: decay of the averaged weights that are kept."""

    learning_rate: float = 1e-3
    average: float = 0.999
