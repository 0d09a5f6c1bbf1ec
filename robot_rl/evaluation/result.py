"""What an evaluation found, as numbers: the JSON that is kept, and the table for the terminal."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from robot_rl.evaluation.rollout import EpisodeOutcome
from robot_rl.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    PairedCounts,
    mcnemar_p,
    mean_gains,
    paired_difference_interval,
    wilson_interval,
)
from robot_rl.steering.methods import BASE

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "robot-rl evaluation 1"


@dataclass(frozen=True)
class EvaluationResult:
    """outcomes[arm][env_id] is a list over episodes, in the order of their seeds, the same seeds for every arm.

    header: arms, settings, versions and provenance. wall_seconds: of the run that finished it. work_seconds: of all blocks
    together, earlier runs of a resumed evaluation included.
    """

    outcomes: Mapping[str, Mapping[str, Sequence[EpisodeOutcome]]]
    seed: int
    header: Mapping[str, Any]
    wall_seconds: float
    work_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Pooled numbers at the top, the same structure for each task under `tasks`, means over tasks under `aggregate`.

        Top and tasks: `arms[name]` has success_rate, interval (Wilson), successes, episodes, errors, outcomes; `<arm>_vs_base`, for
        every arm but the base, has difference, difference_interval (Newcombe), mcnemar_p and the discordant pairs.
        """
        env_ids = list(self.outcomes[next(iter(self.outcomes))])
        pooled = {arm: [o for env_id in env_ids for o in tasks[env_id]] for arm, tasks in self.outcomes.items()}
        return {
            "format": FORMAT,
            **_compare(pooled),
            "tasks": {env_id: _compare({arm: tasks[env_id] for arm, tasks in self.outcomes.items()}) for env_id in env_ids},
            "aggregate": self._aggregate(env_ids),
            "confidence": CONFIDENCE,
            "seed": self.seed,
            "policies": self.header["arms"],
            "settings": self.header["settings"],
            "versions": self.header["versions"],
            "provenance": self.header["provenance"],
            "wall_seconds": self.wall_seconds,
            "work_seconds": self.work_seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], arms: Sequence[str]) -> EvaluationResult:
        """Back from `to_json`, of these arms; without what that leaves out, such as values. KeyError where one is missing."""
        outcomes = {
            arm: {name: [EpisodeOutcome(**o) for o in task["arms"][arm]["outcomes"]] for name, task in values["tasks"].items()}
            for arm in arms
        }
        header = {key: values[key] for key in ("settings", "versions", "provenance")}
        header["arms"] = {arm: values["policies"][arm] for arm in arms}
        return cls(outcomes, values["seed"], header, values["wall_seconds"], values["work_seconds"])

    def _aggregate(self, env_ids: Sequence[str]) -> dict[str, Any]:
        means = {
            arm: sum(sum(o.success for o in tasks[env_id]) / len(tasks[env_id]) for env_id in env_ids) / len(env_ids)
            for arm, tasks in self.outcomes.items()
        }
        aggregate: dict[str, Any] = {
            "tasks": len(env_ids),
            "bootstrap_resamples": RESAMPLES,
            "arms": {arm: {"mean_success": mean} for arm, mean in means.items()},
        }
        for arm in _challengers(self.outcomes):
            gains = mean_gains(
                [(successes(self.outcomes[arm][e]), successes(self.outcomes[BASE][e])) for e in env_ids], self.seed
            )
            aggregate[f"{arm}_vs_base"] = {
                "mean_difference": gains.difference,
                "mean_difference_interval": list(gains.difference_interval),
                "mean_relative_gain": gains.relative_gain,
                "mean_relative_gain_interval": list(gains.relative_gain_interval),
                # There the relative gain counts one success of the base, see `mean_gains`.
                "tasks_without_base_success": [e for e in env_ids if not any(o.success for o in self.outcomes[BASE][e])],
            }
        return aggregate


def versions() -> dict[str, str]:
    """Versions of what can change a number."""
    found = {"python": platform.python_version()}
    for package in ("robot-rl", "torch", "numpy", "gymnasium", "pybullet", "mujoco", "robosuite"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _challengers(arms: Mapping[str, Any]) -> list[str]:
    return [arm for arm in arms if arm != BASE] if BASE in arms else []


def successes(outcomes: Sequence[EpisodeOutcome]) -> list[bool]:
    return [outcome.success for outcome in outcomes]


def _compare(outcomes: Mapping[str, Sequence[EpisodeOutcome]]) -> dict[str, Any]:
    result: dict[str, Any] = {"arms": {arm: _rate(episodes) for arm, episodes in outcomes.items()}}
    for arm in _challengers(outcomes):
        counts = PairedCounts.of(successes(outcomes[arm]), successes(outcomes[BASE]))
        result[f"{arm}_vs_base"] = {
            "difference": counts.difference,
            "difference_interval": list(paired_difference_interval(counts)),
            "mcnemar_p": mcnemar_p(counts),
            f"only_{arm}": counts.first_only,
            "only_base": counts.second_only,
        }
    return result


def _rate(episodes: Sequence[EpisodeOutcome]) -> dict[str, Any]:
    succeeded = sum(successes(episodes))
    return {
        "success_rate": succeeded / len(episodes),
        "interval": list(wilson_interval(succeeded, len(episodes))),
        "successes": succeeded,
        "episodes": len(episodes),
        "errors": sum(o.error is not None for o in episodes),
        "outcomes": [
            {
                "env_id": o.env_id,
                "seed": o.seed,
                "success": o.success,
                "steps": o.steps,
                "instruction": o.instruction,
                "error": o.error,
            }
            for o in episodes
        ],
    }


def errors_remark(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """What tables do not show: how many episodes of these tasks ended with an error, and the first one. Empty without any."""
    errors = [o for task in tasks for rate in task["arms"].values() for o in rate["outcomes"] if o["error"]]
    if not errors:
        return []
    first = errors[0]
    count = "1 episode" if len(errors) == 1 else f"{len(errors)} episodes"
    return [
        f"{count} ended with an error, counted as failed; the first: {first['env_id']}, seed {first['seed']}: {first['error']}"
    ]


def percent(rate: float) -> str:
    """0.5 -> "50%"."""
    return f"{100 * rate:.0f}%"


def points(difference: float) -> str:
    """0.12 -> "+12", in percentage points; with a true minus, and no sign for zero."""
    rounded = round(100 * difference)
    return f"{rounded:+d}".replace("-", "\N{MINUS SIGN}") if rounded else "0"


def percent_span(interval: Sequence[float]) -> str:
    """(0.41, 0.61) -> "41-61%", with an en dash."""
    return "\N{EN DASH}".join(f"{100 * value:.0f}" for value in interval) + "%"


def points_span(interval: Sequence[float]) -> str:
    """(-0.02, 0.25) -> "-2 to +25"; a dash between signed numbers would be read as a sign."""
    return " to ".join(points(value) for value in interval)


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def results_table(result: Mapping[str, Any]) -> Table:
    """The JSON of a result as a rich table: a row a task, and all of them together (each has equally many episodes).

    Each number stands above its interval; six tasks and three arms fit 80 columns.
    """
    from rich import box
    from rich.table import Table

    challengers = _challengers(result["arms"])
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,  # the box's dividers are spaces
        caption=f"{percent(result['confidence'])} intervals below; differences in points, paired by seed; p: exact McNemar",
    )
    table.add_column("task", no_wrap=True)
    for arm in result["arms"]:
        table.add_column(arm, justify="right", no_wrap=True)
    for arm in challengers:
        table.add_column(f"{arm}\n\N{MINUS SIGN} base", justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    for env_id, task in result["tasks"].items():
        gains = [(task[f"{arm}_vs_base"]["difference"], task[f"{arm}_vs_base"]["difference_interval"]) for arm in challengers]
        table.add_row(*_table_row(env_id, task, challengers, gains))
    if len(result["tasks"]) > 1:
        means = [result["aggregate"][f"{arm}_vs_base"] for arm in challengers]
        gains = [(mean["mean_difference"], mean["mean_difference_interval"]) for mean in means]
        table.add_section()
        table.add_row(*_table_row("all tasks", result, challengers, gains), style="bold")
    return table


def _table_row(
    name: str, scope: Mapping[str, Any], challengers: Sequence[str], gains: Sequence[tuple[float, Sequence[float]]]
) -> list[str]:
    cells = [name]
    cells += [f"{percent(rate['success_rate'])}\n[dim]{percent_span(rate['interval'])}[/]" for rate in scope["arms"].values()]
    for arm, (difference, interval) in zip(challengers, gains, strict=True):
        cells += [f"{points(difference)}\n[dim]{points_span(interval)}[/]", p_value(scope[f"{arm}_vs_base"]["mcnemar_p"])]
    return cells
