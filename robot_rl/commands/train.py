"""`robot-rl train critic|policy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from policies.config import DiffusionConfig
from robot_rl.config import CloningConfig, MixtureConfig, TargetConfig, TrainingConfig, VisionConfig
from robot_rl.critic.config import CriticConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainCritic:
    """Train a Q-function. Killed at any moment, the same command resumes."""

    data: Path  # a store that `robot-rl data convert` wrote, or with --mix a folder of them
    out: Path  # the run's folder
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def run(self) -> None:
        from robot_rl.console import check_writable, counting_progress, training_progress
        from robot_rl.recipes import train_critic

        check_writable(self.out, "--out", folder=True)
        with counting_progress("looking at frames") as look, training_progress("critic") as progress:
            metrics = train_critic(self.data, self.out, self.critic, self.training, progress, self.mixture, self.target, look)
        _say(self.out, self.training.steps, metrics)


@dataclass(frozen=True)
class TrainVision:
    """Train camera networks by themselves, which critics and policies then take over with --vision.

    Killed at any moment, the same command resumes.
    """

    data: Path  # a store that `robot-rl data convert` wrote
    out: Path  # the run's folder
    vision: VisionConfig = field(default_factory=VisionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def run(self) -> None:
        from robot_rl.console import check_writable, training_progress
        from robot_rl.recipes import train_vision

        check_writable(self.out, "--out", folder=True)
        with training_progress("cameras") as progress:
            metrics = train_vision(self.data, self.out, self.vision, self.training, progress)
        _say(self.out, self.training.steps, metrics)


@dataclass(frozen=True)
class TrainPolicy(Generic[Config]):
    """Train a policy by behaviour cloning. Killed at any moment, the same command resumes.

    `--policy X --help` shows the settings of family X.
    """

    data: Path  # a store that `robot-rl data convert` wrote, or with --mix a folder of them
    out: Path  # the run's folder
    settings: Config
    policy: str = "diffusion"  # the family, as `robot-rl policies` lists them
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    cloning: CloningConfig = field(default_factory=CloningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def run(self) -> None:
        from robot_rl.console import check_writable, counting_progress, training_progress
        from robot_rl.recipes import train_policy

        check_writable(self.out, "--out", folder=True)
        with counting_progress("looking at frames") as look, training_progress("policy") as progress:
            metrics = train_policy(
                self.data, self.out, self.settings, self.cloning, self.training, progress, self.mixture, look
            )
        _say(self.out, self.training.steps, metrics)


def train_policy_command(arguments: Sequence[str]) -> Any:
    """TrainPolicy with the settings of the family that these arguments name after `--policy`."""
    family = "diffusion"
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word.startswith("--policy="):
            family = word.removeprefix("--policy=")
        elif word == "--policy":
            family = following
    if family == "diffusion" or "train" not in arguments[:1]:
        return TrainPolicy[DiffusionConfig]
    from robot_rl.recipes import trainable_family

    settings: Any = trainable_family(family).config_type
    return TrainPolicy[settings]


def _say(out: Path, steps: int, metrics: list[dict[str, float]]) -> None:
    from robot_rl.console import console

    numbers = ", ".join(
        f"{name} {value:.4g}" for name, value in (metrics or [{}])[-1].items() if name not in ("step", "steps_per_second")
    )
    console.print(f"{out} is trained to step {steps}: {numbers} (all of it in {out}/metrics.jsonl)", highlight=False)
