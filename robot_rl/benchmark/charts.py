"""The figures of a benchmark's page, as fragments of HTML: gains by policy and method, every task, and success against K.

All are made of `BenchmarkResult.to_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from robot_rl.benchmark.settings import options
from robot_rl.benchmark.tables import each_cell
from robot_rl.evaluation.figures import Estimate, Series, forest, line_chart, rates
from robot_rl.evaluation.result import percent, points, points_span
from robot_rl.evaluation.statistics import Interval, mean_gains
from robot_rl.steering.methods import BASE

FAMILY_COLOURS = ("var(--steered)", "var(--random)", "var(--good)", "var(--bad)", "var(--ink)")


def colour(values: Mapping[str, Any], method: str) -> str:
    """The first method's, chance's and the base's are their own; all others are drawn in ink."""
    if method == BASE:
        return "var(--base)"
    if method == next(iter(values["methods"])):
        return "var(--steered)"
    return "var(--random)" if values["plan"]["methods"][method]["method"] == "random" else "var(--ink)"


def mean_success(values: Mapping[str, Any], method: str, task: tuple[str, str] | None = None) -> tuple[float, Interval]:
    """Mean over cells, or over those of one task (suite, environment), with its bootstrap interval."""
    cells = [(arms[method], (suite, env_id)) for suite, _, env_id, arms in each_cell(values) if task in (None, (suite, env_id))]
    # The gain over somebody who never succeeds.
    pairs = [([o["success"] for o in rate["outcomes"]], [False] * rate["episodes"]) for rate, _ in cells]
    gains = mean_gains(pairs, values["plan"]["seed"], strata=[stratum for _, stratum in cells])
    return gains.difference, gains.difference_interval


def gains_section(values: Mapping[str, Any]) -> str:
    """Forest plots: the first method by policy, all methods overall, each other one by policy, and the first against each."""
    methods = values["methods"]
    first, *peers = methods
    parts = [
        f"<h2>Gain over the base policy</h2><p class=note>Difference of mean success over tasks, in points, on the same seeds; "
        f"95% bootstrap intervals. Right of the line: better than base. An interval that crosses it leaves the sign open.</p>"
        f"<h3>{escape(first)}</h3>{_by_policy(values, first)}"
    ]
    if peers:
        overall = [
            (name, [_estimate(method["overall"], colour(values, name), name == first)]) for name, method in methods.items()
        ]
        against = [
            (f"{first} \N{MINUS SIGN} {name}", [_estimate(values["first_vs"][name]["overall"], "var(--steered)")])
            for name in peers
        ]
        others = "".join(f"<h3>{escape(name)}</h3>{_by_policy(values, name)}" for name in peers)
        parts.append(
            f"<h3>All methods, over all policies and tasks</h3>{forest(overall, 'points')}"
            f"<details><summary>Each other method by policy</summary>{others}</details>"
            f"<h3>{escape(first)} against each other method</h3>{forest(against, 'points')}"
        )
    return "".join(parts)


def _by_policy(values: Mapping[str, Any], method: str) -> str:
    found, mark = values["methods"][method], colour(values, method)
    rows = [(policy, [_estimate(gains, mark)]) for policy, gains in found["policies"].items()]
    return forest([*rows, ("all policies", [_estimate(found["overall"], mark, True)])], "points")


def _estimate(gains: Mapping[str, Any], mark: str, summary: bool = False) -> Estimate:
    interval = tuple(gains["difference_interval"])
    return Estimate(f"{points(gains['difference'])} ({points_span(interval)})", gains["difference"], interval, mark, summary)


def tasks_section(values: Mapping[str, Any]) -> str:
    """Success of every method in each task, mean over policies."""
    parts = [
        "<h2>Task by task</h2><p class=note>Success in each task, mean over policies; 95% bootstrap intervals, which have no width "
        "where all episodes end alike.</p>"
    ]
    for suite, policies in values["suites"].items():
        env_ids = next(iter(policies.values()))["tasks"]
        charts = []
        for env_id in env_ids:
            rows = []
            for method in (BASE, *values["methods"]):
                rate, interval = mean_success(values, method, (suite, env_id))
                rows.append(Estimate(method, rate, interval, colour(values, method)))
            charts.append(rates(env_id, rows))
        parts.append(f"<h3>{escape(suite)}</h3><div class=charts>{''.join(charts)}</div>")
    return "".join(parts)


def families(plan: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Methods that are the same but for K: label -> K -> name. What has no two values of K is no family."""
    found: dict[str, dict[int, str]] = {}
    for name, entry in plan["methods"].items():
        if "num_samples" in entry:
            other = [f"{key} {value}" for key, value in options(entry).items() if key != "num_samples"]
            found.setdefault(", ".join([entry["method"], *other]), {}).setdefault(entry["num_samples"], name)
    return {label: dict(sorted(members.items())) for label, members in found.items() if len(members) > 1}


def samples_section(values: Mapping[str, Any]) -> str:
    """Mean success against the number of candidates, a line for each family; nothing without one."""
    found = families(values["plan"])
    if not found:
        return ""
    every = [k for members in found.values() for k in members]
    base = 100 * mean_success(values, BASE)[0]
    series = [Series(f"base {percent(base / 100)}", [min(every), max(every)], [base, base], "var(--base)", dashed=True)]
    for (label, members), mark in zip(found.items(), FAMILY_COLOURS * len(found), strict=False):
        means = [mean_success(values, name) for name in members.values()]
        spans = [(100 * low, 100 * high) for _, (low, high) in means]
        series.append(Series(label, list(members), [100 * rate for rate, _ in means], mark, marked=True, intervals=spans))
    chart = line_chart("mean success, %", series, "candidates a decision, K", log_x=True)
    return (
        "<h2>More candidates</h2><p class=note>Methods that are the same but for the number of candidates K: mean success over all "
        f"policies and tasks, with 95% bootstrap intervals.</p><div class=wide>{chart}</div>"
    )
