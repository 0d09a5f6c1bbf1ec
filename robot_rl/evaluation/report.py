"""The report of an evaluation: one HTML file that needs nothing else, for a laptop or a phone, in light or dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from data.atomic import write_file
from data.errors import InputError
from robot_rl.evaluation.clips import VIDEO_BYTES, outcome_word, side_by_side
from robot_rl.evaluation.figures import Estimate, Series, forest, interval_bar, line_chart, metric_charts
from robot_rl.evaluation.page import page
from robot_rl.evaluation.result import p_value, percent, percent_span, points, points_span
from robot_rl.evaluation.rollout import EpisodeOutcome
from robot_rl.steering.methods import BASE

MAX_BYTES = 8_000_000


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Whatever is left empty has no section.

    result: `EvaluationResult.to_json()`. curves: heading -> the rows of a metrics.jsonl, {"step": int, name: value}. value_traces:
    episodes with `values`, best one success and one failure. decision_seconds: time between two decisions, executed steps divided
    by the control rate. videos: (base, steered) of the same seed, both recorded. control_hz: control rate, hence the videos' speed.
    """

    title: str
    explanation: str
    result: Mapping[str, Any]
    control_hz: float
    decision_seconds: float
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    value_traces: Sequence[EpisodeOutcome] = ()
    videos: Sequence[tuple[EpisodeOutcome, EpisodeOutcome]] = ()
    commands: Sequence[str] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Write the page beside `path` and rename it there. InputError: a video without frames, or too many for 8 MB."""
    sections = [_header(data), _table(data), _forest(data), _curves(data), _values(data), _videos(data), _settings(data)]
    write_page(path, page(data.title, "".join(sections)), len(data.videos))


def write_page(path: Path, document: str, pairs: int) -> None:
    """Write a page with so many pairs of videos beside `path` and rename it there. InputError: more than 8 MB."""
    content = document.encode()
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: the report would have {len(content) / 1e6:.1f} MB; show fewer than {pairs} pairs of videos")
    write_file(path, content)


def _colour(arm: str) -> str:
    return f"var(--{arm})" if arm in (BASE, "steered", "random") else "var(--ink)"


def _challengers(result: Mapping[str, Any]) -> list[str]:
    return [arm for arm in result["arms"] if f"{arm}_vs_base" in result]


def _gain(scope: Mapping[str, Any], arm: str, result: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
    """Difference and interval: Newcombe's for one task, the bootstrap's over tasks for the whole."""
    if scope is result and len(result["tasks"]) > 1:
        gains = result["aggregate"][f"{arm}_vs_base"]
        return gains["mean_difference"], tuple(gains["mean_difference_interval"])
    comparison = scope[f"{arm}_vs_base"]
    return comparison["difference"], tuple(comparison["difference_interval"])


def _header(data: ReportData) -> str:
    result = data.result
    cards = []
    for arm, rate in result["arms"].items():
        cards.append(
            f'<div class="card"><div class="what">{escape(arm)} succeeds</div><div class="big">{percent(rate["success_rate"])}</div>'
            f"{interval_bar(rate['success_rate'], tuple(rate['interval']), _colour(arm))}"
            f'<div class="more">{rate["successes"]} of {rate["episodes"]} episodes<br>'
            f"{percent(result['confidence'])} interval {percent_span(rate['interval'])}</div></div>"
        )
    for arm in _challengers(result)[:1]:
        difference, interval = _gain(result, arm, result)
        relative = result["aggregate"][f"{arm}_vs_base"]
        low, high = relative["mean_relative_gain_interval"]
        cards.append(
            f'<div class="card main"><div class="what">{escape(arm)} gains, in points</div>'
            f'<div class="big">{points(difference)}</div><div class="more">{points_span(interval)}, '
            f"p {_p(result[f'{arm}_vs_base']['mcnemar_p'])}<br>relative {points(relative['mean_relative_gain'])}% "
            f"({points(low)} to {points(high)}%)</div></div>"
        )
    return (
        f'<h1>{escape(data.title)}</h1><p class="lead">{escape(data.explanation)}</p><div class="cards">{"".join(cards)}</div>'
    )


def _p(p: float) -> str:
    return escape(p_value(p) if p < 0.001 else f"= {p_value(p)}")


def _table(data: ReportData) -> str:
    result = data.result
    head = "".join(f"<th>{escape(arm)}</th>" for arm in result["arms"])
    head += "".join(f"<th>{escape(arm)} \N{MINUS SIGN} base</th><th>p</th>" for arm in _challengers(result))
    rows = [_row(env_id, task, result) for env_id, task in result["tasks"].items()]
    if len(result["tasks"]) > 1:
        rows.append(_row("all tasks", result, result))
    several = ""
    if len(result["tasks"]) > 1:
        several = (
            f" The last row pools all episodes; its interval of the difference is a bootstrap within tasks"
            f" ({result['aggregate']['bootstrap_resamples']:,} resamples)."
        )
    errors = [
        f"{arm} in {o['env_id']}, seed {o['seed']}: {o['error']}"
        for arm, rate in result["arms"].items()
        for o in rate["outcomes"]
        if o["error"]
    ]
    return (
        f"<h2>Success rates</h2><table><thead><tr><th>task</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note" style="margin-top:10px">All intervals cover {percent(result["confidence"])}: '
        "Wilson for a rate; Newcombe (1998, method 10) for a difference, in points, paired by seed. "
        f"p: exact McNemar.{several}</p>{error_list(errors)}"
    )


def error_list(errors: Sequence[str]) -> str:
    """How many episodes ended with an error, and the first 20 of these texts; nothing where there are none."""
    if not errors:
        return ""
    named = "".join(f"<li>{escape(error)}</li>" for error in errors[:20])
    more = f"<li>and {len(errors) - 20} more, in the JSON</li>" if len(errors) > 20 else ""
    return (
        f'<details class="note"><summary>{len(errors)} episodes ended with an error and count as failures</summary>'
        f"<ul>{named}{more}</ul></details>"
    )


def _row(name: str, scope: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    cells = [f'<td class="task">{escape(name)}</td>']
    for arm, rate in scope["arms"].items():
        cells.append(
            f'<td class="rate" data-name="{escape(arm)}">{percent(rate["success_rate"])} '
            f'<span class="interval">{percent_span(rate["interval"])}</span>'
            f"{interval_bar(rate['success_rate'], tuple(rate['interval']), _colour(arm))}</td>"
        )
    for arm in _challengers(result):
        difference, interval = _gain(scope, arm, result)
        cells.append(
            f'<td data-name="{escape(arm)} \N{MINUS SIGN} base" class="gain">{points(difference)} '
            f'<span class="interval">{points_span(interval)}</span></td>'
            f'<td class="p" data-name="p">{escape(p_value(scope[f"{arm}_vs_base"]["mcnemar_p"]))}</td>'
        )
    return f"<tr{' class=total' if scope is result else ''}>{''.join(cells)}</tr>"


def _forest(data: ReportData) -> str:
    result, challengers = data.result, _challengers(data.result)
    if not challengers:
        return ""
    scopes: list[tuple[str, Mapping[str, Any]]] = list(result["tasks"].items())
    if len(scopes) > 1:
        scopes.append(("all tasks", result))
    rows = []
    for name, scope in scopes:
        estimates = []
        for arm in challengers:
            difference, interval = _gain(scope, arm, result)
            label = f"{arm} {points(difference)} ({points_span(interval)})"
            estimates.append(Estimate(label, difference, interval, _colour(arm), summary=scope is result))
        rows.append((name, estimates))
    return (
        "<h2>Gain over the base policy</h2><p class='note'>Difference of success rates on the same seeds. Right of the line: "
        f"better than base. An interval that crosses it leaves the sign open.</p>{forest(rows, 'points')}"
    )


def _curves(data: ReportData) -> str:
    parts = [f"<h3>{escape(name)}</h3>{metric_charts(rows, 'var(--steered)')}" for name, rows in data.curves.items() if rows]
    return f"<h2>Training</h2>{''.join(parts)}" if parts else ""


def _values(data: ReportData) -> str:
    traces = [trace for trace in data.value_traces if trace.values]
    if not traces:
        return ""
    series = [
        Series(
            f"{outcome_word(t)}, {t.env_id} seed {t.seed}: {t.instruction}",
            [i * data.decision_seconds for i in range(len(t.values))],
            t.values,
            "var(--good)" if t.success else "var(--bad)",
            marked=True,
            dashed=not t.success,
        )
        for t in traces
    ]
    return (
        "<h2>What the critic thought</h2><p class='note'>Value of the chosen action chunk at each decision.</p>"
        f'<div class="wide">{line_chart("Q of the chosen chunk", series, "seconds")}</div>'
    )


def _videos(data: ReportData) -> str:
    if not data.videos:
        return ""
    budget = VIDEO_BYTES // (2 * len(data.videos))
    pairs = [
        side_by_side(
            base.instruction or base.env_id,
            f"{base.env_id}, seed {base.seed}",
            {BASE: base, "steered": steered},
            data.control_hz,
            budget,
        )
        for base, steered in data.videos
    ]
    return (
        "<h2>Side by side</h2><p class='note'>Base and steered policy from the same initial state, at real speed. "
        f"The border tells the outcome.</p><div class='pairs'>{''.join(pairs)}</div>"
    )


def _settings(data: ReportData) -> str:
    result = data.result
    last = result["seed"] + result["settings"]["episodes"] - 1
    entries: dict[str, Any] = {
        "environment seeds": f"{result['seed']} to {last}, the same for every arm",
        **{f"policy: {arm}": identity for arm, identity in result["policies"].items()},
        **{key.replace("_", " "): value for key, value in result["settings"].items() if key != "seed"},
        **{key.replace("_", " "): value for key, value in result["provenance"].items()},
        "versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
        "time": f"{result['work_seconds'] / 60:.1f} minutes of work, {result['wall_seconds'] / 60:.1f} on the clock",
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd>" for name, value in entries.items())
    commands = f"<h3>Reproduce</h3><pre>{escape(chr(10).join(data.commands))}</pre>" if data.commands else ""
    return f"<h2>Settings</h2><dl>{items}</dl>{commands}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
