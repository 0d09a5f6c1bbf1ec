"""The page of `robot-rl data inspect --html`: one HTML file that needs nothing else; its numbers are those of data.quality."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.atomic import write_file
from data.quality.sample import Sheet
from data.quality.terminal import describe
from robot_rl.evaluation.figures import Series, histogram, line_chart
from robot_rl.evaluation.page import page

INSTRUCTIONS = 200
STYLE = """
.finding { border-left:4px solid var(--random); padding:2px 0 2px 14px; margin:0 0 12px; max-width:none; overflow-wrap:anywhere }
.finding.error { border-color:var(--bad) } .finding b { font-weight:650 } 
.finding span { display:block; color:var(--soft); font-size:14px }
.plot.histogram { grid-template-columns:1fr; grid-template-rows:110px 18px auto; margin:0 14px }
.cards + dl { margin-top:20px } 
.plot.histogram .ticks,.plot.histogram .unit { grid-column:1 }
.sheet { margin:0 0 14px; font-size:14px } .sheet img { display:block; max-width:100%; height:auto; border-radius:6px; margin-top:4px }
.sheets { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr)); gap:6px 28px; margin-top:12px }
@media (max-width:640px) { tr.text { grid-template-columns:1fr auto } }
"""
COLOURS = ("var(--steered)", "var(--random)", "var(--good)", "var(--bad)", "var(--base)")


def write_data_page(path: Path, report: dict[str, Any], sheets: Sequence[Sheet]) -> None:
    """Write the page of a report of `data.quality.inspection` beside `path` and rename it there."""
    body = "".join((_head(report), _findings(report), _motion(report), _timing(report), _instructions(report), _frames(sheets)))
    write_file(path, page(f"Data: {report['name']}", body, STYLE))


def _head(report: dict[str, Any]) -> str:
    faults = [finding["severity"] for finding in report["findings"]]
    errors, warnings = faults.count("error"), faults.count("warning")
    length, success = report["episode_length"], report["success"]
    cards = [
        ("findings", f"{errors + warnings}", f"{errors} {_noun('error', errors)}, {warnings} {_noun('warning', warnings)}"),
        (
            "episodes",
            f"{report['episodes']:,}",
            f"{success['true']} succeed, {success['false']} fail, {success['unlabelled']} unlabelled",
        ),
        (
            "transitions",
            f"{report['transitions']:,}",
            f"{length['min']} to {length['max']} an episode, median {length['median']:g}",
        ),
        (
            "instructions",
            f"{len(report['instructions']):,}",
            f"{report['action']['control_hz']:g} Hz, {report['action']['frame']}",
        ),
    ]
    shown = "".join(
        f'<div class="card"><div class="what">{escape(what)}</div><div class="big">{escape(big)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
        for what, big, more in cards
    )
    hidden = ("dataset", "episodes", "steps", "episode length", "control")
    facts = [(key, value) for key, value in describe(report).items() if key not in hidden]
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    rows += f"<dt>standardised</dt><dd>{'<br>'.join(map(escape, report['changes']))}</dd>" if report["changes"] else ""
    return f'<h1>{escape(report["name"])}, split {escape(report["split"])}</h1><div class="cards">{shown}</div><dl>{rows}</dl>'


def _noun(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _findings(report: dict[str, Any]) -> str:
    parts = []
    for finding in report["findings"]:
        where = ", ".join(finding["episodes"]) + (", …" if finding["count"] > len(finding["episodes"]) > 0 else "")
        parts.append(
            f'<p class="finding {finding["severity"]}"><b>{finding["severity"]}: {escape(finding["fault"])}</b> '
            f"{escape(finding['message'])}<span>{escape(finding['advice'])}</span>"
            + (f"<span>{escape(where)}</span>" if where else "")
            + "</p>"
        )
    skipped = "".join(f"<p class=note>{escape(line)}</p>" for line in report["skipped"][:20])
    return "<h2>Findings</h2>" + ("".join(parts) or "<p>Nothing suspicious was found.</p>") + skipped


def _motion(report: dict[str, Any]) -> str:
    action, statistics, charts = report["action"], report["statistics"], []
    rows = []
    for i, name in enumerate(action["names"]):
        shape = report["histograms"][name]
        marks = {
            "low, high": ((action["low"][i], action["high"][i]), "var(--bad)"),
            "q01, q99": ((statistics["q01"][i], statistics["q99"][i]), "var(--random)"),
        }
        outside = f", {100 * shape['outside']:.2g}% outside of its bounds" if shape["outside"] else ""
        charts.append(histogram(name, shape["edges"], shape["counts"], marks, action["units"][i] + outside))
        cells = "".join(f'<td data-name="{key}">{statistics[key][i]:.3g}</td>' for key in statistics)
        bounds = f'<td data-name="bounds">{action["low"][i]:g} .. {action["high"][i]:g}</td>'
        rows.append(f'<tr><td class="task">{escape(name)} ({escape(action["units"][i])})</td>{cells}{bounds}</tr>')
    length = report["episode_length"]["histogram"]
    lengths = histogram("episode length", length["edges"], length["counts"], {}, "transitions")
    head = "".join(f"<th>{key}</th>" for key in ("action", *statistics, "bounds"))
    return (
        '<h2>Actions</h2><p class="note">As the trainer sees them, with their bounds (low, high) and 1% and 99% quantiles; heights are '
        f'square roots of counts.</p><div class="charts">{"".join(charts)}</div>'
        f"<table><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
        f'<h2>Lengths</h2><div class="charts">{lengths}</div>'
    )


def _timing(report: dict[str, Any]) -> str:
    if not report["lag"]:
        return ""
    series = [
        Series(name, lag["lags"], lag["curve"], colour, marked=True)
        for (name, lag), colour in zip(report["lag"].items(), COLOURS, strict=False)
    ]
    return (
        '<h2>Timing</h2><p class="note">Correlation at each lag. What the robot does follows its actions at 0 or a step later; its '
        f'motion is seen in the frames at 0.</p><div class="wide">{line_chart("lag", series, "steps")}</div>'
    )


def _instructions(report: dict[str, Any]) -> str:
    texts = list(report["instructions"].items())
    rows = "".join(
        f'<tr class="text"><td>{escape(text) or "<em>empty</em>"}</td><td data-name="episodes">{count}</td></tr>'
        for text, count in texts[:INSTRUCTIONS]
    )
    more = f'<p class="note">and {len(texts) - INSTRUCTIONS} more</p>' if len(texts) > INSTRUCTIONS else ""
    return f"<h2>Instructions</h2><table><thead><tr><th>instruction</th><th>episodes</th></tr></thead>{rows}</table>{more}"


def _frames(sheets: Sequence[Sheet]) -> str:
    if not sheets:
        return ""
    figures = "".join(
        f'<figure class="sheet"><figcaption>{escape(sheet.camera)}, {escape(sheet.source)}, steps {", ".join(map(str, sheet.steps))}'
        f'</figcaption><img alt="frames of {escape(sheet.camera)}" width="{sheet.size[0]}" height="{sheet.size[1]}" '
        f'src="data:image/jpeg;base64,{b64encode(sheet.jpeg).decode()}"></figure>'
        for sheet in sheets
    )
    return f'<h2>Frames</h2><div class="sheets">{figures}</div>'
