"""Settings of training. Free of heavy imports. The comments are what `--help` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.errors import LEARNING_RATE, NONNEGATIVE, POSITIVE, InputError, check_settings
from policies.config import EncoderConfig


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    steps: int = 10_000  # gradient steps in all
    batch_size: int = 256
    seed: int = 0
    log_every: int = 100  # steps
    checkpoint_every: int = 1_000  # steps
    device: str = "auto"  # cpu, cuda, cuda:1 ...; auto takes a GPU where there is one
    threads: int = 1  # of the CPU; more than one pays for cameras only

    def __post_init__(self) -> None:
        check_settings(self, steps=POSITIVE, seed=NONNEGATIVE, log_every=POSITIVE)
        check_settings(self, batch_size=(1, 65_536))  # a larger one is a slip, and takes all of the memory before it fails
        check_settings(self, checkpoint_every=POSITIVE, threads=POSITIVE)


@dataclass(frozen=True)
class CloningConfig:
    """Behaviour cloning."""

    learning_rate: float = 1e-3  # at the start of a cosine schedule
    average: float = 0.999  # decay of the averaged weights, which are what is kept

    def __post_init__(self) -> None:
        check_settings(self, learning_rate=LEARNING_RATE, average=(0, 0.999999))


@dataclass(frozen=True)
class VisionConfig:
    """Camera networks by themselves."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    learning_rate: float = 1e-3  # at its highest
    hidden: int = 256  # of the head, which is thrown away

    def __post_init__(self) -> None:
        check_settings(self, learning_rate=LEARNING_RATE, hidden=POSITIVE)
        if self.encoder.vision:
            raise InputError("--vision says nothing here, where camera networks are trained; leave it out")


@dataclass(frozen=True)
class MixtureConfig:
    """What is drawn from."""

    mix: str | None = None  # such as bridge:1.0,fractal:0.54, or a published mixture; --data is then the folder of these stores
    max_episodes: int | None = None  # of each dataset, evenly spread over it
    max_starts: int | None = None  # of each episode, evenly spread over it

    def __post_init__(self) -> None:
        for name in ("max_episodes", "max_starts"):
            if getattr(self, name) is not None:
                check_settings(self, **{name: POSITIVE})


@dataclass(frozen=True)
class TargetConfig:
    """What a critic learns from each draw."""

    n_step: int | None = None  # steps of the backup; as many as the chunk has actions by default
    hindsight: float = 0.0  # share of the draws that take the instruction which their episode achieved, where that is labelled
    negatives: float = 0.0  # share that take an instruction which their episode neither was given nor achieved, as a failure

    def __post_init__(self) -> None:
        check_settings(self, hindsight=(0, 1), negatives=(0, 1))
        if self.n_step is not None:
            check_settings(self, n_step=POSITIVE)
