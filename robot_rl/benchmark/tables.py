"""The tables of a benchmark's page, as fragments of HTML: methods x policies, tasks x policies, and what ended with an error.

All are made of `BenchmarkResult.to_json`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from robot_rl.benchmark.result import SIGNIFICANT
from robot_rl.evaluation.report import error_list
from robot_rl.evaluation.result import p_value, percent, percent_span, points, points_span
from robot_rl.steering.methods import BASE

ARROW = "\N{RIGHTWARDS ARROW}"
_BETTER = '<span class=better title="better after Holm">\N{BLACK UP-POINTING TRIANGLE}</span>'
_WORSE = '<span class=worse title="worse after Holm">\N{BLACK DOWN-POINTING TRIANGLE}</span>'
_PERHAPS_WORSE = '<span class=worse title="worse before Holm">\N{WHITE DOWN-POINTING TRIANGLE}</span>'


def each_cell(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Suite, policy, environment, and there `arms[method]` with its rate, interval and counts."""
    for suite, policies in values["suites"].items():
        for policy, contest in policies.items():
            for env_id, task in contest["tasks"].items():
                yield suite, policy, env_id, task["arms"]


def policies_section(values: Mapping[str, Any]) -> str:
    """Mean success of each policy under each method, and what the method gains."""
    policies, base = list(values["base"]["policies"]), values["base"]
    count = len(next(iter(values["methods"].values()))["cells"])
    head = _head("method", *policies, "all policies", "relative gain", "cells better, worse")
    scopes = [*((policy, base["policies"][policy]) for policy in policies), ("all policies", base["overall"])]
    means = "".join(f'<td data-name="{escape(name)}">{percent(scope["mean_success"])}</td>' for name, scope in scopes)
    rows = [f"<tr><td class=task>{BASE}</td>{means}<td class=none></td><td class=none></td></tr>"]
    for name, method in values["methods"].items():
        scopes = [*((policy, method["policies"][policy]) for policy in policies), ("all policies", method["overall"])]
        cells = "".join(
            f'<td data-name="{escape(policy)}">{percent(s["mean_success"])} <b>{points(s["difference"])}</b>'
            f"<small>{points_span(s['difference_interval'])}</small></td>"
            for policy, s in scopes
        )
        total = method["overall"]
        rows.append(
            f"<tr><td class=task>{escape(name)}</td>{cells}"
            f'<td data-name="relative gain">{points(total["relative_gain"])}%<small>{points_span(total["relative_gain_interval"])}'
            "%</small></td>"
            f'<td data-name="cells better, worse">{method["better"]}, {method["worse"]}<small>of {count}</small></td></tr>'
        )
    return (
        f"<h2>Methods and policies</h2><div class=scroll><table class=cells>{head}{''.join(rows)}</table></div>"
        "<p class=note>Mean success over tasks; bold: difference to base in points, below it the 95% bootstrap interval (initial "
        "states resampled within each task, the same for all policies). Relative gain: the mean over cells of the difference "
        f"divided by base's success. {_hopeless(values)}Cells: significantly better and worse, exact McNemar p below 0.05 after "
        "Holm over all cells of the method.</p>"
    )


def _hopeless(values: Mapping[str, Any]) -> str:
    cells = next(iter(values["methods"].values()))["cells"]
    hopeless = sum(cell["base_rate"] == 0 for cell in cells)
    where = "one cell" if hopeless == 1 else f"{hopeless} cells"
    return f"In the {where} where base never succeeds, one success stands in its place. " if hopeless else ""


def cells_section(values: Mapping[str, Any]) -> str:
    """Every cell of every method; the first method's are open."""
    first = next(iter(values["methods"]))
    parts = [
        f"<details{' open' if name == first else ''}><summary>{escape(name)}: {method['better']} better, {method['worse']} worse of "
        f"{len(method['cells'])}</summary>{''.join(_suite(values, suite, name) for suite in values['suites'])}</details>"
        for name, method in values["methods"].items()
    ]
    return (
        f"<h2>Every cell</h2><p class=note>Success of base {ARROW} with the method, with 95% Wilson intervals; the difference in "
        "points with its Newcombe interval, paired by seed; exact McNemar p, and p after Holm over all cells of the method. "
        f"{_BETTER} better, {_WORSE} worse after Holm; {_PERHAPS_WORSE} worse at p &lt; 0.05 before it, as one cell in forty is by "
        f"chance alone.</p>{''.join(parts)}"
    )


def _suite(values: Mapping[str, Any], suite: str, method: str) -> str:
    contests = values["suites"][suite]
    found = {(c["policy"], c["env_id"]): c for c in values["methods"][method]["cells"] if c["suite"] == suite}
    rows = []
    for env_id in next(iter(contests.values()))["tasks"]:
        cells = "".join(
            f'<td data-name="{escape(policy)}">'
            f"{_cell(found[policy, env_id], contest['tasks'][env_id]['arms'], method, values['plan']['episodes'])}</td>"
            for policy, contest in contests.items()
        )
        rows.append(f"<tr><td class=task>{_breakable(env_id)}</td>{cells}</tr>")
    return (
        f"<h3>{escape(suite)}</h3><div class=scroll><table class=cells>{_head('task', *contests)}{''.join(rows)}</table></div>"
    )


def _breakable(env_id: str) -> str:
    """With chances for a line to break where a word begins."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", escape(env_id))


def _cell(cell: Mapping[str, Any], arms: Mapping[str, Any], method: str, planned: int) -> str:
    early = f"<small>ended after {cell['episodes']} episodes</small>" if cell["episodes"] < planned else ""
    spans = f"{percent_span(arms[BASE]['interval'])} {ARROW} {percent_span(arms[method]['interval'])}"
    return (
        f"{percent(cell['base_rate'])} {ARROW} {percent(cell['rate'])} {_mark(cell)}<small>{spans}</small>"
        f"<small><b>{points(cell['difference'])}</b> ({points_span(cell['difference_interval'])})</small>"
        f"<small>p {p_value(cell['p'])}, Holm {p_value(cell['p_holm'])}</small>{early}".replace("<0", "&lt;0")
    )


def _mark(cell: Mapping[str, Any]) -> str:
    if cell["p_holm"] < SIGNIFICANT:
        return _WORSE if cell["difference"] < 0 else _BETTER
    return _PERHAPS_WORSE if cell["p"] < SIGNIFICANT and cell["difference"] < 0 else ""


def errors_section(values: Mapping[str, Any]) -> str:
    """How many episodes of which policy and method ended with an error, and the first of their texts."""
    errors = [
        (f"{policy} in {suite}", method, f"{o['env_id']}, seed {o['seed']}: {o['error']}")
        for suite, policy, _, arms in each_cell(values)
        for method, rate in arms.items()
        for o in rate["outcomes"]
        if o["error"]
    ]
    if not errors:
        return "<h2>Errors</h2><p>No episode ended with an error.</p>"
    counts = Counter((policy, method) for policy, method, _ in errors)
    methods = [name for name in values["plan"]["methods"] if any(method == name for _, method in counts)]
    rows = "".join(
        f"<tr><td class=task>{escape(policy)}</td>"
        + "".join(f'<td data-name="{escape(method)}">{counts[policy, method]}</td>' for method in methods)
        + "</tr>"
        for policy in dict.fromkeys(policy for policy, _, _ in errors)
    )
    texts = error_list([f"{policy}, {method}: {text}" for policy, method, text in errors])
    return f"<h2>Errors</h2><div class=scroll><table class=cells>{_head('episodes with errors', *methods)}{rows}</table></div>{texts}"


def _head(*names: str) -> str:
    return f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in names)}</tr></thead>"
