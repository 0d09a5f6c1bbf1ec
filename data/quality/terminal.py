"""render: the report of `inspect` as rich tables, and findings as lines, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.statistics import STATISTICS

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from data.formats.base import Dataset

BLOCKS = " ▁▂▃▄▅▆▇█"
COLUMNS = 24
INSTRUCTIONS = 20
CLEAR = 0.3  # below it a lag is not told


def render(report: dict[str, Any]) -> Group:
    """The report of `inspect`, for `rich.print`."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    facts = Table(show_header=False, box=None)
    for key, value in describe(report).items():
        facts.add_row(f"[bold]{key}[/bold]", escape(value))
    for line in report["changes"]:
        facts.add_row("[bold]standardised[/bold]", escape(line))
    action = report["action"]
    # Two tables of few columns rather than one that a terminal of 80 columns folds.
    actions = Table("standardised action", *STATISTICS, box=box.SIMPLE_HEAD)
    bounds = Table("", "bounds", "outside", "histogram", box=box.SIMPLE_HEAD)
    for index, name in enumerate(action["names"]):
        actions.add_row(
            escape(f"{name} ({action['units'][index]})"), *(f"{report['statistics'][key][index]:.2g}" for key in STATISTICS)
        )
        shape = report["histograms"][name]
        span = f"{shape['edges'][0]:8.2g} {bars(shape['counts'])} {shape['edges'][-1]:.2g}"
        bounds.add_row(
            escape(name), f"{action['low'][index]:g} .. {action['high'][index]:g}", f"{100 * shape['outside']:.2g}%", span
        )
    instructions = Table(f"{len(report['instructions'])} instructions", "episodes", box=box.SIMPLE_HEAD)
    for text, count in list(report["instructions"].items())[:INSTRUCTIONS]:
        instructions.add_row(escape(text), str(count))
    return Group(facts, actions, bounds, instructions, render_findings(report["findings"]))


def describe(report: dict[str, Any]) -> dict[str, str]:
    """The facts of a report in words, by what they are about."""
    length, success = report["episode_length"], report["success"]
    looked = report["looked_at"]
    lags = (
        f"{name} by {lag['steps']} steps, {1000 * lag['seconds']:.0f} ms (correlation {lag['correlation']:.2f})"
        if lag["correlation"] >= CLEAR
        else f"{name}: unclear"
        for name, lag in report["lag"].items()
    )
    return {
        "dataset": f"{report['name']} (split {report['split']})",
        "path": report["path"],
        "episodes": f"{report['episodes']} ({success['true']} succeed, {success['false']} fail, {success['unlabelled']} unlabelled)",
        "steps": f"{report['steps']} ({report['transitions']} transitions)",
        "episode length": f"{length['min']} to {length['max']} transitions, median {length['median']:g}  "
        + bars(length["histogram"]["counts"]),
        "cameras": ", ".join(f"{key} {height}x{width}" for key, (height, width) in report["cameras"].items()) or "none",
        "vectors": ", ".join(f"{key} ({size})" for key, size in report["vectors"].items()) or "none",
        "control": f"{report['action']['control_hz']:g} Hz, {report['action']['frame']}",
        "rewards": _rewards(report),
        "dead dimensions": ", ".join(report["dead_dimensions"]) or "none",
        "idle": "not told by absolute actions" if report["idle"] is None else f"{100 * report['idle']:.0f}% of the steps",
        "lag": "; ".join(lags) or "nothing that follows the actions was found",
        "bad episodes": f"{len(report['skipped'])} left out" if report["skipped"] else "none",
        "frames looked at": f"{looked['frames']}, of {looked['episodes']} episodes" if looked["frames"] else "none",
    }


def _rewards(report: dict[str, Any]) -> str:
    rewards = report["rewards"]
    if not rewards["episodes"]:
        return "none"
    total = sum(rewards["steps"].values())
    values = ", ".join(f"{value} in {100 * count / total:.3g}%" for value, count in rewards["steps"].items())
    lacking = report["episodes"] - rewards["episodes"]
    return (f"{values} of the steps" if values else f"{rewards['min']:g} to {rewards['max']:g}") + (
        f"; {lacking} episodes have none" if lacking else ""
    )


def render_findings(findings: Sequence[dict[str, Any]]) -> Group:
    """Findings (`Finding.to_json`), a paragraph each, for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Text] = [_finding(finding) for finding in findings]
    return Group(*lines or [Text("nothing suspicious was found", style="green")])


def _finding(finding: dict[str, Any]) -> Text:
    from rich.text import Text

    style = {"error": "bold red", "warning": "yellow"}[finding["severity"]]
    where = ", ".join(finding["episodes"]) + (", ..." if finding["count"] > len(finding["episodes"]) > 0 else "")
    return Text.assemble(
        (f"{finding['severity']}: {finding['fault']}: ", style),
        finding["message"],
        (f" ({where})" if where else "", "dim"),
        f"; {finding['advice']}",
    )


def render_features(dataset: Dataset) -> Table:
    """The features of a dataset by its own names, for `rich.print`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("feature", "kind", "type", "shape of a step", title=f"{escape(dataset.name)} ({dataset.format})")
    for key, feature in dataset.features.items():
        kind = f"{feature.kind} ({feature.unsupported})" if feature.unsupported else feature.kind
        shape = "x".join("?" if size in (None, -1) else str(size) for size in feature.shape) or "scalar"
        table.add_row(*map(escape, (key, kind, feature.dtype, shape)))
    return table


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line of at most COLUMNS characters; heights are square roots, and what is there is seen."""
    width = -(-len(counts) // COLUMNS)
    sums = [sum(counts[start : start + width]) for start in range(0, len(counts), width)]
    top = max(*sums, 1)
    return "".join(BLOCKS[0] if not count else BLOCKS[max(1, round(8 * (count / top) ** 0.5))] for count in sums)
