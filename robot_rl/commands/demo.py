"""`robot-rl demo`: the main job from end to end, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Record mixed demonstrations in PyBullet, train a policy and a critic on them, and see what steering does for the policy.

    Killed at any moment, the same command resumes. out: where everything goes. demonstrations: of each of the six tasks.
    policy_steps, critic_steps: gradient steps. episodes: of each task and each arm in the evaluation. workers: processes.
    """

    out: Path = Path("runs/demo")
    demonstrations: int = 200
    policy_steps: int = 12_000
    critic_steps: int = 12_000
    episodes: int = 50
    seed: int = 0
    workers: int = 2

    def run(self) -> None:
        from robot_rl.demo import run_demo

        run_demo(self)
