"""`robot-rl evaluate`: the policy alone, steered, and with a random choice among its candidates, on the same episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from robot_rl.steering.config import SteeringConfig


@dataclass(frozen=True)
class Evaluate:
    """Compare a policy with and without steering on the same episodes. Killed, the same command resumes from its journal.

    policy, critic: folders that `robot-rl train` wrote. env: a Gymnasium id, or several with commas between, or `tabletop` for all
    tasks of that suite. episodes: in each environment and for each arm. seed: of the first episode. workers: processes. json: where
    to write per-episode outcomes, rates, intervals and paired tests.
    """

    policy: Path
    critic: Path
    env: str = "tabletop"
    episodes: int = 100
    seed: int = 1_000_000
    workers: int = 2
    json: Path | None = None
    steering: SteeringConfig = field(default_factory=SteeringConfig)

    def run(self) -> None:
        from rich.console import Console

        from robot_rl.console import evaluation_progress, write_json
        from robot_rl.evaluation import results_table
        from robot_rl.evaluation.steering import evaluate_steering

        journal = self.json.with_name(f"{self.json.stem}.journal.jsonl") if self.json else None
        with evaluation_progress() as on_block:
            result = evaluate_steering(
                self.policy,
                self.critic,
                self.env,
                self.episodes,
                self.seed,
                steering=self.steering,
                workers=self.workers,
                journal=journal,
                on_block=on_block,
            )
        values = result.to_json()
        Console().print(results_table(values))
        if self.json and journal:
            write_json(self.json, values)
            journal.unlink(missing_ok=True)
