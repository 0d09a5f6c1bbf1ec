"""`robot-rl evaluate`: the policy alone, steered, and with a random choice among its candidates, on the same episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data.errors import NONNEGATIVE, POSITIVE, check_settings
from robot_rl.steering.config import SteeringConfig


@dataclass(frozen=True)
class Evaluate:
    """Compare a policy with and without steering on the same episodes.

    With --json, a killed evaluation is resumed by the same command.
    """

    policy: str  # a folder that `robot-rl train policy` wrote, or any other policy's spec, `[family:]place[?option=value]`
    critic: Path  # folder that `robot-rl train critic` wrote
    env: str = "tabletop"  # Gymnasium id, or several with commas between; `tabletop` is all tasks of that suite
    episodes: int = 100  # in each environment and for each arm
    seed: int = 1_000_000  # of the first episode; the following ones count up
    workers: int = 2  # processes
    json: Path | None = None  # where to write per-episode outcomes, rates, intervals and paired tests
    steering: SteeringConfig = field(default_factory=SteeringConfig)

    def __post_init__(self) -> None:
        check_settings(self, episodes=POSITIVE, seed=NONNEGATIVE, workers=POSITIVE)

    def run(self) -> None:
        from rich.console import Console

        from robot_rl.console import check_replaceable, check_writable, evaluation_progress, write_json
        from robot_rl.evaluation import errors_remark, results_table
        from robot_rl.evaluation.result import FORMAT
        from robot_rl.evaluation.steering import evaluate_steering

        check_writable(self.json)
        check_replaceable(self.json, "--json", FORMAT)
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
        console = Console()
        console.print(results_table(values))
        for remark in errors_remark(values["tasks"].values()):
            console.print(remark, highlight=False)
        if self.json and journal:
            write_json(self.json, values)
            journal.unlink(missing_ok=True)
