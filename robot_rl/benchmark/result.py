"""What a benchmark found, as numbers: the JSON that is kept, and the tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from robot_rl.benchmark.plan import BenchmarkPlan
from robot_rl.evaluation.result import EvaluationResult, errors_remark, p_value, percent, points, points_span, successes
from robot_rl.evaluation.statistics import CONFIDENCE, PairedCounts, holm, mcnemar_p, mean_gains, paired_difference_interval
from robot_rl.steering.methods import BASE

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "robot-rl benchmark 1"
SIGNIFICANT = 1 - CONFIDENCE
Cell = tuple[str, str, str]
"""Suite, policy and environment: where a method is compared with the policy alone."""
Results = dict[tuple[str, str], EvaluationResult]
"""By suite and policy."""


@dataclass(frozen=True)
class BenchmarkResult:
    plan: BenchmarkPlan
    results: Results

    def to_json(self) -> dict[str, Any]:
        """`suites[suite][policy]` is that contest's evaluation; `methods[method]` says what each method does for the policies.

        methods[name]: `cells`, each with rates, difference, interval (Newcombe), p (exact McNemar) and p_holm (over all cells of the
        method); `policies[name]` and `overall`: means over cells with intervals of `mean_gains`; `better`, `worse`: how many cells are
        significantly so, after Holm. `first_vs[name]`: the first method against each other one, over all cells.
        """
        challengers = [name for name in self.plan.methods if name != BASE]
        first = challengers[0]
        return {
            "format": FORMAT,
            "plan": self.plan.to_json(),
            "confidence": CONFIDENCE,
            "suites": {
                suite: {policy: self.results[suite, policy].to_json() for policy in plan.policies}
                for suite, plan in self.plan.suites.items()
            },
            "base": self._summary(BASE, BASE),
            "methods": {name: self._method(name) for name in challengers},
            "first_vs": {name: self._summary(first, name) for name in challengers[1:]},
            "work_seconds": sum(result.work_seconds for result in self.results.values()),
        }

    def _method(self, method: str) -> dict[str, Any]:
        cells = {cell: PairedCounts.of(self._successes(cell, method), self._successes(cell, BASE)) for cell in self._cells()}
        p = [mcnemar_p(counts) for counts in cells.values()]
        entries: list[dict[str, Any]] = []
        for (cell, counts), raw, adjusted in zip(cells.items(), p, holm(p), strict=True):
            entries.append(
                {
                    **dict(zip(("suite", "policy", "env_id"), cell, strict=True)),
                    "rate": counts.rates[0],
                    "base_rate": counts.rates[1],
                    "episodes": counts.pairs,
                    "difference": counts.difference,
                    "difference_interval": list(paired_difference_interval(counts)),
                    "p": raw,
                    "p_holm": adjusted,
                }
            )
        significant = [entry["difference"] for entry in entries if entry["p_holm"] < SIGNIFICANT]
        return {
            "cells": entries,
            **self._summary(method, BASE),
            "better": sum(difference > 0 for difference in significant),
            "worse": sum(difference < 0 for difference in significant),
            # Without correction: a cell that is worse by chance alone is one of forty.
            "worse_uncorrected": sum(entry["difference"] < 0 and entry["p"] < SIGNIFICANT for entry in entries),
        }

    def _summary(self, method: str, against: str) -> dict[str, Any]:
        """Means over cells: of each policy, and over all."""
        by_policy: dict[str, list[Cell]] = {}
        for cell in self._cells():
            by_policy.setdefault(cell[1], []).append(cell)
        return {
            "policies": {policy: self._mean(cells, method, against) for policy, cells in by_policy.items()},
            "overall": self._mean(self._cells(), method, against),
        }

    def _mean(self, cells: Sequence[Cell], method: str, against: str) -> dict[str, Any]:
        pairs = [(self._successes(cell, method), self._successes(cell, against)) for cell in cells]
        rates = [sum(sum(pair[side]) / len(pair[side]) for pair in pairs) / len(pairs) for side in (0, 1)]
        if method == against:
            return {"mean_success": rates[0]}
        gains = mean_gains(pairs, self.plan.seed, strata=[(suite, env_id) for suite, _, env_id in cells])
        as_json = {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(gains).items()}
        return {"mean_success": rates[0], "against_mean_success": rates[1], **as_json}

    def _cells(self) -> list[Cell]:
        return [(suite, policy, env_id) for (suite, policy), result in self.results.items() for env_id in result.outcomes[BASE]]

    def _successes(self, cell: Cell, method: str) -> list[bool]:
        suite, policy, env_id = cell
        return successes(self.results[suite, policy].outcomes[method][env_id])


def policies_table(values: Mapping[str, Any]) -> Table:
    """Mean success of each policy under each method, and what the method gains; with intervals over all, those of each are the page's.

    Five policies and a dozen methods fit 80 columns.
    """
    from rich import box
    from rich.table import Table

    caption = "mean success over tasks; difference to base in points, below it the 95% bootstrap interval"
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=caption)
    table.add_column("method", min_width=8, overflow="fold")
    policies = list(values["base"]["policies"])
    for policy in policies:
        table.add_column(policy, justify="right", overflow="fold", min_width=7)  # "57% +32"
    table.add_column("all", justify="right", no_wrap=True)
    table.add_column("relative\ngain", justify="right", no_wrap=True)
    table.add_column("better\nworse", justify="right", no_wrap=True)
    base = values["base"]
    table.add_row(
        BASE,
        *(percent(base["policies"][p]["mean_success"]) for p in policies),
        percent(base["overall"]["mean_success"]),
        "",
        "",
    )
    for name, method in values["methods"].items():
        total = method["overall"]
        cells = [f"{percent(x['mean_success'])} {points(x['difference'])}" for x in (*method["policies"].values(), total)]
        cells[-1] += f"\n[dim]{points_span(total['difference_interval'])}[/]"
        gain = f"{points(total['relative_gain'])}%\n[dim]{points_span(total['relative_gain_interval']).replace('+', '')}[/]"
        count = len(method["cells"])
        table.add_row(name, *cells, gain, f"{method['better']}, {method['worse']}\n[dim]of {count}[/]")
    return table


def remarks(values: Mapping[str, Any]) -> list[str]:
    """What the tables do not show: episodes that ended with an error, and tasks that were decided early."""
    tasks = [
        task for policies in values["suites"].values() for contest in policies.values() for task in contest["tasks"].values()
    ]
    early = [task["arms"][BASE]["episodes"] for task in tasks if task["arms"][BASE]["episodes"] < values["plan"]["episodes"]]
    said = errors_remark(tasks)
    if early:
        after = " to ".join(map(str, sorted({min(early), max(early)})))
        said.append(f"{len(early)} of {len(tasks)} cells were decided early, after {after} episodes")
    return said


def cells_table(values: Mapping[str, Any], method: str) -> Table:
    """Every cell of one method: a row a task, a column a policy."""
    from rich import box
    from rich.table import Table

    cells = values["methods"][method]["cells"]
    policies = list(dict.fromkeys(cell["policy"] for cell in cells))
    found = {(cell["suite"], cell["env_id"], cell["policy"]): cell for cell in cells}
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        caption=f"success of base > {method}, and p after Holm; ! where it got worse at p < 0.05",
    )
    table.add_column(f"{method}: task", overflow="fold")
    for policy in policies:
        table.add_column(policy, justify="right", no_wrap=True)
    for suite, env_id in dict.fromkeys((cell["suite"], cell["env_id"]) for cell in cells):
        row = [found.get((suite, env_id, policy)) for policy in policies]
        table.add_row(env_id, *(_cell(cell) if cell else "" for cell in row))
    return table


def _cell(cell: Mapping[str, Any]) -> str:
    mark = "[bold red]![/]" if cell["difference"] < 0 and cell["p"] < SIGNIFICANT else ""
    return f"{percent(cell['base_rate'])} > {percent(cell['rate'])}{mark}\n[dim]{p_value(cell['p_holm'])}[/]"
