"""`robot-rl demo`: the main job from end to end, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import NONNEGATIVE, POSITIVE, check_settings


@dataclass(frozen=True)
class Demo:
    """Record mixed demonstrations in PyBullet, train a policy and a critic on them, and see what steering does for the policy.

    Killed at any moment, the same command resumes.
    """

    out: Path = Path("runs/demo")  # where everything goes
    demonstrations: int = 400  # of each of the six tasks
    policy_steps: int = 6_000  # gradient steps
    critic_steps: int = 6_000  # gradient steps
    episodes: int = 50  # of each task and each arm in the evaluation
    seed: int = 0
    workers: int = 2  # processes

    def __post_init__(self) -> None:
        check_settings(self, demonstrations=POSITIVE, policy_steps=POSITIVE, critic_steps=POSITIVE, episodes=POSITIVE)
        check_settings(self, seed=NONNEGATIVE, workers=POSITIVE)

    def run(self) -> None:
        from robot_rl.demo import run_demo

        run_demo(self)
