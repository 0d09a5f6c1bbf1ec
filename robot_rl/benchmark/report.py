"""The page of a benchmark: one HTML file that a lab could put beside its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from robot_rl.benchmark.charts import colour, gains_section, mean_success, samples_section, tasks_section
from robot_rl.benchmark.failures import Failure, failures_section
from robot_rl.benchmark.settings import settings_section
from robot_rl.benchmark.tables import ARROW, cells_section, each_cell, errors_section, policies_section
from robot_rl.evaluation.figures import interval_bar
from robot_rl.evaluation.page import page
from robot_rl.evaluation.report import write_page
from robot_rl.evaluation.result import percent, percent_span, points, points_span
from robot_rl.steering.methods import BASE

FEW_EPISODES = 20
"""Of a cell: with fewer, a bootstrap over them says too little."""

STYLE = """
.card .big { font-size:30px; white-space:nowrap }
.scroll { overflow-x:auto; margin-bottom:10px }
table.cells { font-size:14px } table.cells td { padding:7px 11px 7px 0; white-space:nowrap }
table.cells td.task { white-space:normal; min-width:96px; position:sticky; left:0; background:var(--paper) }
table.cells small { display:block; font-size:11.5px; line-height:1.45; color:var(--soft) } table.cells small b { color:var(--ink) }
.better { color:var(--good) } .worse { color:var(--bad) }
summary { cursor:pointer; padding:5px 0; font-size:15px; font-weight:600 } details.note summary { font-weight:400 }
.rates { display:grid; grid-template-columns:minmax(60px,auto) 1fr auto; gap:1px 12px; align-items:center; font-size:13px }
.rates span { overflow-wrap:anywhere } .rates b { font-weight:600; text-align:right; font-variant-numeric:tabular-nums }
pre.plan { max-height:320px; overflow:auto }
@media (max-width:640px) {
  .card .big { font-size:23px } td.none { display:none } table.cells td { white-space:normal; padding:3px 0 }
  table.cells td[data-name]::before { display:block } }
"""


def write_benchmark_report(path: Path, values: Mapping[str, Any], failures: Sequence[Failure] = ()) -> None:
    """Write the page beside `path` and rename it there. values: `BenchmarkResult.to_json`. InputError: videos for more than 8 MB."""
    sections = (
        _header(values),
        policies_section(values),
        gains_section(values),
        cells_section(values),
        tasks_section(values),
        samples_section(values),
        failures_section(failures),
        errors_section(values),
        settings_section(values),
    )
    write_page(path, page(_title(values), "".join(sections), STYLE), len(failures))


def _title(values: Mapping[str, Any]) -> str:
    return f"Benchmark: {next(iter(values['methods']))} on {_count(len(values['base']['policies']), 'policy', 'policies')}"


def _header(values: Mapping[str, Any]) -> str:
    return (
        f'<h1>{escape(_title(values))}</h1><p class="lead">{escape(_explanation(values))}</p>'
        f'<div class="cards">{"".join(_cards(values))}</div>'
    )


def _explanation(values: Mapping[str, Any]) -> str:
    plan, methods = values["plan"], list(values["methods"])
    suites = [
        f"{name} ({_count(len(next(iter(policies.values()))['tasks']), 'task')}, {_count(len(policies), 'policy', 'policies')})"
        for name, policies in values["suites"].items()
    ]
    cells = [arms[BASE]["episodes"] for *_, arms in each_cell(values)]
    early = sum(episodes < plan["episodes"] for episodes in cells)
    said = (
        f" {_count(early, 'cell')} ended earlier, as is said there: a clear difference between {methods[0]} and base "
        "decided it, and is overstated a little."
        if early
        else ""
    )
    if min(cells) < FEW_EPISODES:
        said += (
            " With so few episodes a cell the bootstrap intervals of means are too narrow, down to no width where all episodes end "
            "alike; those of single cells hold."
        )
    upto = "up to " if early else ""
    return (
        f"{'Suites' if len(suites) > 1 else 'Suite'} {_listed(suites)}. In each task, every policy acts alone (base) and with "
        f"{_count(len(methods), 'method')} ({_listed(methods)}), {upto}{plan['episodes']} episodes each, from the same initial states "
        f"for all. A policy in a task is a cell; there are {len(cells)}.{said}"
    )


def _cards(values: Mapping[str, Any]) -> list[str]:
    first, method = next(iter(values["methods"].items()))
    bars = []
    for name in (BASE, first):
        rate, interval = mean_success(values, name)
        bars.append(f"{interval_bar(rate, interval, colour(values, name))}{escape(name)} {percent_span(interval)}")
    total, cells = method["overall"], len(method["cells"])
    every = [rate for *_, arms in each_cell(values) for rate in arms.values()]
    episodes, errors = (sum(rate[key] for rate in every) for key in ("episodes", "errors"))
    return [
        _card(
            f"mean success, base {ARROW} {escape(first)}",
            f"{percent(total['against_mean_success'])} {ARROW} {percent(total['mean_success'])}",
            "<br>".join(bars),
        ),
        _card(
            "gain, in points",
            points(total["difference"]),
            f"{points_span(total['difference_interval'])}<br>mean relative gain {points(total['relative_gain'])}% "
            f"({points_span(total['relative_gain_interval'])}%)",
            main=True,
        ),
        _card(
            "cells better, worse",
            f"{method['better']}, {method['worse']}",
            f"of {cells}, after Holm<br>{method['worse_uncorrected']} worse without it",
        ),
        _card(
            "episodes",
            f"{episodes:,}",
            f"{_count(cells, 'cell')}, base and {_count(len(values['methods']), 'method')}<br>{_count(errors, 'error')}",
        ),
    ]


def _card(what: str, big: str, more: str, main: bool = False) -> str:
    return (
        f'<div class="card{" main" if main else ""}"><div class="what">{what}</div><div class="big">{big}</div>'
        f'<div class="more">{more}</div></div>'
    )


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
