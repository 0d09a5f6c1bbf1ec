"""`robot-rl benchmark`: policies x critics x suites x ways of steering, as one table and one page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from data.errors import NONNEGATIVE, POSITIVE, check_settings


@dataclass(frozen=True)
class Benchmark:
    """Compare ways of steering on every policy and task of a plan, a JSON file (the README's part on it says what is in it).

    Killed at any moment, the same command resumes.
    """

    plan: Annotated[Path, tyro.conf.Positional]  # suites with critic and policies, methods, episodes, seed
    out: Path  # folder for results.json, report.html and the journal
    suites: tuple[str, ...] = ()  # only these of the plan's; none means all, as with the next two
    policies: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    episodes: int | None = None  # of each policy, method and task, instead of the plan's
    seed: int | None = None  # of the first episode, instead of the plan's
    elsewhere: tuple[Path, ...] = ()  # folders of other runs; what they have of the plan, methods too, does not run again
    workers: int = 2  # processes
    ray: str | None = None  # spread over Ray: `local`, `auto` for the cluster of this machine, or a cluster's address
    stop_early: bool = False  # a task where the first method is clearly better or worse than base gets no more episodes
    time_limit: float = 3600  # seconds for a block of 25 episodes; what takes longer hangs
    videos: int = 12  # failures to show, those first on which the critic's members disagreed most

    def __post_init__(self) -> None:
        check_settings(self, workers=POSITIVE, time_limit=(1, 1e9), videos=NONNEGATIVE)
        if self.episodes is not None:
            check_settings(self, episodes=POSITIVE)
        if self.seed is not None:
            check_settings(self, seed=NONNEGATIVE)

    def run(self) -> None:
        from rich.console import Console

        from robot_rl.benchmark import cells_table, policies_table, read_elsewhere, read_plan, remarks, run_benchmark
        from robot_rl.benchmark.failures import record_failures
        from robot_rl.benchmark.report import write_benchmark_report
        from robot_rl.benchmark.result import FORMAT
        from robot_rl.console import benchmark_progress, check_replaceable, check_writable, counting_progress, write_json
        from robot_rl.evaluation import local_pool, ray_pool

        plan = read_plan(self.plan).only(self.suites, self.policies, self.methods)
        plan = replace(plan, episodes=self.episodes or plan.episodes, seed=plan.seed if self.seed is None else self.seed)
        results, report = self.out / "results.json", self.out / "report.html"
        elsewhere = read_elsewhere(self.elsewhere, plan)
        check_writable(self.out, "--out", folder=True)
        check_replaceable(results, "--out", FORMAT)
        make_pool = ray_pool(self.workers, self.ray, self.time_limit) if self.ray else local_pool(self.workers, self.time_limit)
        with benchmark_progress() as on_block:
            result = run_benchmark(
                plan,
                make_pool,
                journal=self.out / "journal.jsonl",
                stop_early=self.stop_early,
                on_block=on_block,
                elsewhere=elsewhere,
            )
        values = result.to_json()
        write_json(results, values)
        with counting_progress("recording (episodes)") as on_progress:
            failures = record_failures(result, self.videos, self.workers, on_progress, elsewhere, self.time_limit)
        write_benchmark_report(report, values, failures)
        console = Console()
        console.print(policies_table(values))
        console.print(cells_table(values, next(iter(values["methods"]))))
        for remark in remarks(values):
            console.print(remark, highlight=False)
        console.print(f"page: {report}\nnumbers: {results}", highlight=False)
