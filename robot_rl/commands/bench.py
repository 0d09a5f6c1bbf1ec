"""`robot-rl bench ...`: how fast things run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import POSITIVE, check_settings


@dataclass(frozen=True)
class BenchSim:
    """Control steps, steps with a camera and resets a second of the simulators, on one core."""

    env: tuple[str, ...] = ("tabletop/stack", "robosuite/stack")  # tasks to measure
    seconds: float = 3.0  # of each task's measurement
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, seconds=(0.1, 3600))

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from robot_rl.console import check_writable, write_json
        from sim.bench import bench

        check_writable(self.json)
        values = {env: bench(self.seconds, env) for env in self.env}
        table = Table("task", "steps", "steps with a camera", "resets", title="a second, on one core")
        for env, rates in values.items():
            table.add_row(env, *(f"{rate:.0f}" for rate in rates.values()))
        Console().print(table)
        if self.json:
            write_json(self.json, values)


@dataclass(frozen=True)
class BenchSampling:
    """Time of drawing K candidates, as a multiple of drawing one, and against the naive ways in the same run, on one thread.

    Without --policy: an untrained policy of each family, of a size that people run.
    """

    policy: str | None = None  # a policy to measure instead: a folder or a spec
    families: tuple[str, ...] = ()  # only these of the untrained ones; none means all
    repeats: int = 5  # timed samplings of each K
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, repeats=POSITIVE)

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from policies import load_policy
        from policies.bench import bench_sampling
        from policies.examples import examples
        from robot_rl.console import check_writable, console, write_json

        check_writable(self.json)
        given = self.policy
        builders = {given: lambda: load_policy(given)} if given else examples(self.families)
        columns = ("policy", "K", "ms (median)", "x K=1", "K calls, ms", "x", "K copies, ms", "x")
        table = Table(*columns, title="drawing K candidates, one observation, one thread")
        rows = []
        for name, build in builders.items():
            console.print(f"measuring {name} ...", highlight=False)
            for row in bench_sampling(build(), self.repeats):
                rows.append({"policy": name, **row})
                naive = ("calls_milliseconds", "calls_ratio", "copies_milliseconds", "copies_ratio")
                digits = (0, 1, 0, 1)
                cells = [f"{row[key]:.{digit}f}" if key in row else "" for key, digit in zip(naive, digits, strict=True)]
                table.add_row(name, str(row["k"]), f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}", *cells)
            table.add_section()
        Console().print(table)
        if self.json:
            write_json(self.json, {"rows": rows})


@dataclass(frozen=True)
class BenchSteering:
    """Time of one decision, steered with K candidates, as a multiple of the policy's own in the same run, on one thread.

    With --env: beside the success that it buys.
    """

    policy: str  # a folder that `robot-rl train policy` wrote, or any other policy's spec
    critic: Path  # folder that `robot-rl train critic` wrote
    repeats: int = 50  # timed decisions of each variant
    env: str | None = None  # measure success too, in these environments, as for `robot-rl evaluate`
    episodes: int = 50  # of each environment and variant
    seed: int = 6_000_000  # of the first episode
    workers: int = 2  # processes for the episodes
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, repeats=POSITIVE, episodes=POSITIVE, workers=POSITIVE)

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from policies import load_policy
        from robot_rl.console import check_writable, write_json
        from robot_rl.critic import load_critic
        from robot_rl.steering.bench import bench

        check_writable(self.json)
        rates = self._success()
        rows = [
            {**row, **rates.get(row["what"], {})}
            for row in bench(load_policy(self.policy), load_critic(self.critic), self.repeats)
        ]
        table = Table(
            "decision", "ms (median)", "x policy alone", *["success (95%)"] * bool(rates), title="one observation, one thread"
        )
        parts = Table("what it is made of", "ms (median)", "x encoding")
        for row in rows:
            cells = [row["what"], f"{row['milliseconds']:.2f}", f"{row.get('ratio', row.get('encodings')):.2f}"]
            if "ratio" in row:
                low, high = row.get("interval", (0, 0))
                table.add_row(*cells, *[f"{100 * row['success']:.0f}% ({100 * low:.0f} to {100 * high:.0f})"] if rates else [])
            else:
                parts.add_row(*cells)
        console = Console()
        console.print(table)
        console.print(parts)
        if self.json:
            write_json(self.json, {"rows": rows})

    def _success(self) -> dict[str, dict[str, object]]:
        """Of each decision's name: success and its interval, over all episodes."""
        if self.env is None:
            return {}
        from robot_rl.console import evaluation_progress
        from robot_rl.evaluation.evaluate import local_pool, run_contests
        from robot_rl.evaluation.statistics import wilson_interval
        from robot_rl.evaluation.steering import make_contest
        from robot_rl.steering import Method
        from robot_rl.steering.bench import ALONE, VARIANTS

        methods = {ALONE: Method("base"), **{name: Method("steered", config) for name, config in VARIANTS.items()}}
        contest = make_contest(self.policy, self.critic, self.env, self.episodes, self.seed, methods)
        with evaluation_progress() as progress:
            result = run_contests({"": contest}, local_pool(self.workers), on_block=progress)[""]
        found = {}
        for name, tasks in result.outcomes.items():
            won = [outcome.success for outcomes in tasks.values() for outcome in outcomes]
            found[name] = {"success": sum(won) / len(won), "interval": list(wilson_interval(sum(won), len(won)))}
        return found


@dataclass(frozen=True)
class BenchEvaluation:
    """Episodes a second, batched in worker processes as `evaluate` and `benchmark` do, against one by one in the same run."""

    policy: str  # a folder that `robot-rl train policy` wrote, or any other policy's spec
    critic: Path  # folder that `robot-rl train critic` wrote
    env: str = "tabletop"  # as for `robot-rl evaluate`
    methods: tuple[str, ...] = ("base", "steered")  # ways of steering, as in vgps?num_samples=50
    workers: int = 2  # processes
    episodes: int = 4  # in each environment, one after the other
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, workers=POSITIVE, episodes=POSITIVE)

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from robot_rl.console import check_writable, console, write_json
        from robot_rl.evaluation.bench import bench
        from robot_rl.evaluation.steering import make_contest
        from robot_rl.steering import parse_method

        check_writable(self.json)
        methods = {spec: parse_method(spec) for spec in self.methods}
        contest = make_contest(self.policy, self.critic, self.env, 1, 1, methods)
        console.print("measuring ...", highlight=False)
        rows = bench(contest, self.workers, self.episodes)
        table = Table("arm", "one by one", "batched", "ratio", title=f"episodes a second, {self.workers} workers")
        for row in rows:
            table.add_row(row["arm"], f"{row['one_by_one']:.2f}", f"{row['batched']:.2f}", f"{row['ratio']:.1f}x")
        Console().print(table)
        if self.json:
            write_json(self.json, {"rows": rows})
