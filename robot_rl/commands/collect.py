"""`robot-rl collect`: demonstrations by scripted experts, as a training store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.errors import NONNEGATIVE, POSITIVE, InputError, check_settings


@dataclass(frozen=True)
class Collect:
    """Record demonstrations of simulated tasks by their scripted experts into a training store.

    Killed at any moment, the same command resumes.
    """

    out: Path  # the store to write
    env: str = "tabletop"  # suites, suite/task or Gymnasium ids of one suite, with commas between
    demonstrations: int = 100  # of each task
    qualities: tuple[float, ...] = (
        1.0,
        0.5,
        1.0,
        0.0,
    )  # of the experts, in equal parts: 1 clean, 0.5 dithering, 0 mostly fails
    cameras: tuple[str, ...] = ()  # such as primary wrist; none records the simulator's state alone, which is much faster
    storage: Literal["raw", "jpeg"] = "raw"  # how frames are kept
    gamma: float = 0.98  # discount per control step, of the returns and of every critic trained on the store
    seed: int = 0
    workers: int = os.cpu_count() or 1  # processes
    overwrite: bool = False  # replace an existing store

    def __post_init__(self) -> None:
        check_settings(self, demonstrations=POSITIVE, gamma=(0.01, 0.9999), seed=NONNEGATIVE, workers=POSITIVE)
        if not self.qualities or not all(0 <= quality <= 1 for quality in self.qualities):
            raise InputError(f"--qualities {' '.join(map(str, self.qualities))}: each must be between 0 and 1")

    def run(self) -> None:
        from rich.console import Console

        from data import ConversionConfig, Preparation, RewardConfig, convert, inspect, render
        from robot_rl.collect import DemonstrationSource
        from robot_rl.console import check_writable, counting_progress
        from sim import environment_ids

        check_writable(self.out, "--out", folder=True)
        env_ids = environment_ids(self.env)
        source = DemonstrationSource(env_ids, self.demonstrations, self.qualities, self.seed, self.cameras)
        config = ConversionConfig(Preparation(storage=self.storage), RewardConfig(discount=self.gamma))
        with counting_progress("recording demonstrations") as progress:
            made = convert(source, self.out, config, overwrite=self.overwrite, workers=self.workers, progress=progress)
        Console().print(render(inspect(made.store)))
