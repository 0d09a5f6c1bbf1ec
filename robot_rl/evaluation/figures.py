"""Figures as fragments of HTML and inline SVG, written by hand.

Positions are percentages and lines do not scale with their box, so a figure is legible at any width; colours are the page's CSS
variables, so it follows the reader's light or dark mode. Neither holds of a plotting library's SVG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from robot_rl.evaluation.statistics import Interval

MAX_POINTS = 240
TRACK_HEIGHT = 22


@dataclass(frozen=True)
class Series:
    """One line: x and y of equal length, a legend text, a CSS colour, and whether each point is marked and the line dashed.

    intervals: of each y, drawn as upright lines; for short series.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marked: bool = False
    dashed: bool = False
    intervals: Sequence[Interval] = ()


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, drawn in a CSS colour; `summary` ones are diamonds."""

    label: str
    value: float
    interval: Interval
    colour: str
    summary: bool = False


def interval_bar(value: float, interval: Interval, colour: str) -> str:
    """A rate on a track from 0 to 1: its interval a bar, itself a dot."""
    low, high = interval
    return (
        f'<svg class="bar" role="img" aria-label="{value:.2f}, interval {low:.2f} to {high:.2f}">'
        f'<line class="grid" x2="100%" y1="50%" y2="50%" stroke-width="2"/>'
        f'<line x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="50%" y2="50%" stroke="{colour}" stroke-width="6" opacity=".45"/>'
        f'<circle cx="{100 * value:.2f}%" cy="50%" r="4" fill="{colour}"/></svg>'
    )


def rates(title: str, rows: Sequence[Estimate]) -> str:
    """Rates under each other, each with its name, its interval on a track from 0 to 1, and its percentage."""
    lines = "".join(
        f"<span>{escape(row.label)}</span>{interval_bar(row.value, row.interval, row.colour)}<b>{100 * row.value:.0f}%</b>"
        for row in rows
    )
    return f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption><div class="rates">{lines}</div></figure>'


def forest(rows: Sequence[tuple[str, Sequence[Estimate]]], unit: str) -> str:
    """Labelled rows of estimates on one common axis with a line at zero; the arms of a row lie under each other."""
    ends = [end for _, estimates in rows for e in estimates for end in e.interval]
    ticks = _ticks(min(0.0, *ends), max(0.0, *ends), 7)
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

    def at(value: float) -> str:
        # A margin of 2% keeps marks at the ends whole.
        return f"{2 + 96 * (value - low) / (high - low):.2f}%"

    lines = "".join(f'<line class="{"zero" if t == 0 else "grid"}" x1="{at(t)}" x2="{at(t)}" y2="100%"/>' for t in ticks)
    out = ['<div class="forest">']
    for label, estimates in rows:
        height = TRACK_HEIGHT * len(estimates) + 8
        marks = "".join(_mark(e, at, 4 + TRACK_HEIGHT * (i + 0.5)) for i, e in enumerate(estimates))
        texts = "".join(f'<span style="color:{e.colour}">{escape(e.label)}</span>' for e in estimates)
        said = escape(f"{label}: {'; '.join(e.label for e in estimates)}")
        kind = " total" if any(e.summary for e in estimates) else ""
        out += [
            f'<div class="name{kind}">{escape(label)}</div>',
            f'<svg class="track" height="{height}" role="img" aria-label="{said}">{lines}{marks}</svg>',
            f'<div class="text{kind}">{texts}</div>',
        ]
    labels = "".join(f'<span style="left:{at(t)}">{_signed(100 * t)}</span>' for t in ticks)
    out.append(f'<div class="name"></div><div class="ticks">{labels}</div><div class="text unit">{escape(unit)}</div></div>')
    return "".join(out)


def _mark(estimate: Estimate, at: Callable[[float], str], y: float) -> str:
    low, high = estimate.interval
    line = f'<line x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}" stroke="{estimate.colour}" stroke-width="2.5"/>'
    if estimate.summary:  # a percentage cannot stand in a path, so the diamond is a turned square in a moved frame
        shape = f'<rect x="-5.5" y="-5.5" width="11" height="11" fill="{estimate.colour}" transform="rotate(45)"/>'
        return f'{line}<svg x="{at(estimate.value)}" y="{y}" overflow="visible">{shape}</svg>'
    return f'{line}<circle cx="{at(estimate.value)}" cy="{y}" r="5" fill="{estimate.colour}"/>'


def line_chart(title: str, series: Sequence[Series], x_label: str, log_x: bool = False) -> str:
    """Lines on common axes. A positive quantity that spans more than a factor of 50 gets a logarithmic axis, and says so.

    Values that are not finite break the line. Long series are averaged over bins of steps. log_x: x, which must be positive, has a
    logarithmic axis, with a tick at each value that occurs.
    """
    drawn = [(s, *_thin(s)) for s in series]
    values = np.concatenate([y for _, _, y in drawn] + [np.ravel(s.intervals) for s in series])
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    logarithmic = bool(values.min() > 0 and values.max() / values.min() > 50)
    if logarithmic:
        drawn = [(replace(s, intervals=np.log10(s.intervals).tolist()), x, np.log10(y)) for s, x, y in drawn]
        values = np.log10(values)
    y_ticks = _decades(values.min(), values.max()) if logarithmic else _ticks(values.min(), values.max())
    y_low, y_high = min(y_ticks[0], values.min()), max(y_ticks[-1], values.max())
    xs = np.concatenate([x for _, x, _ in drawn])
    x_low, x_high = float(xs.min()), float(max(xs.max(), xs.min() + 1e-9))
    x_ticks = sorted(set(xs.tolist())) if log_x else [t for t in _ticks(x_low, x_high) if x_low <= t <= x_high]

    def x_at(x: float) -> float:
        if log_x:
            return 100 * math.log(x / x_low) / math.log(x_high / x_low)
        return 100 * (x - x_low) / (x_high - x_low)

    def y_at(y: float) -> float:
        return 100 * (y_high - y) / (y_high - y_low)

    grid = "".join(f'<line x1="0" x2="100" y1="{y_at(t):.2f}" y2="{y_at(t):.2f}" stroke="var(--grid)"/>' for t in y_ticks)
    paths = "".join(_path(s, [(x_at(a), y_at(b)) for a, b in zip(x, y, strict=True)]) for s, x, y in drawn)
    paths += "".join(
        f'<path d="M{x_at(a):.2f} {y_at(low):.2f}V{y_at(high):.2f}" stroke="{s.colour}" stroke-width="2" opacity=".55"/>'
        for s, x, _ in drawn
        for a, (low, high) in zip(x, s.intervals, strict=False)
    )
    y_labels = "".join(f'<span style="top:{y_at(t):.2f}%">{_number(10**t if logarithmic else t)}</span>' for t in y_ticks)
    x_labels = "".join(f'<span style="left:{x_at(t):.2f}%">{_number(t)}</span>' for t in x_ticks)
    legend = "".join(
        f'<span class="key"><i style="background:{s.colour}"></i>{escape(s.label)}</span>' for s in series if s.label
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{"<em>log scale</em>" if logarithmic else ""}{legend}</figcaption>'
        f'<div class="plot"><div class="y">{y_labels}</div><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}, {_number(float(values[0]))} to {_number(float(values[-1]))}">{grid}{paths}</svg>'
        f'<div class="ticks">{x_labels}</div><div class="unit">{escape(x_label)}</div></div></figure>'
    )


def histogram(
    title: str, edges: Sequence[float], counts: Sequence[int], marks: Mapping[str, tuple[Sequence[float], str]], x_label: str
) -> str:
    """Bars of `counts` [N] between `edges` [N+1], equally wide; marks: name -> (places, CSS colour), upright lines with a legend.

    Heights are square roots, so that rare values are seen beside common ones. A mark outside the edges is left out.
    """
    low, high = edges[0], edges[-1]
    top, width = math.sqrt(max(*counts, 1)), 100 / len(counts)
    heights = [100 * math.sqrt(count) / top for count in counts]
    bars = "".join(
        f'<rect x="{i * width:.2f}" width="{width * 0.9:.2f}" y="{100 - h:.2f}" height="{h:.2f}" fill="var(--steered)"/>'
        for i, h in enumerate(heights)
        if h
    )
    inside = {name: ([x for x in places if low <= x <= high], mark) for name, (places, mark) in marks.items()}
    inside = {
        name: ([100 * (x - low) / (high - low) for x in places], mark) for name, (places, mark) in inside.items() if places
    }
    lines = "".join(
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="100" stroke="{mark}" stroke-width="2"/>'
        for places, mark in inside.values()
        for x in places
    )
    legend = "".join(
        f'<span class="key"><i style="background:{mark}"></i>{escape(name)}</span>' for name, (_, mark) in inside.items()
    )
    ticks = [t for t in _ticks(low, high) if low <= t <= high]
    labels = "".join(f'<span style="left:{100 * (t - low) / (high - low):.2f}%">{_number(t)}</span>' for t in ticks)
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption><div class="plot histogram">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}, {_number(low)} to {_number(high)}">{bars}{lines}</svg>'
        f'<div class="ticks">{labels}</div><div class="unit">{escape(x_label)}</div></div></figure>'
    )


def metric_charts(rows: Sequence[Mapping[str, float]], colour: str) -> str:
    """A chart for each metric of a training log: rows of {"step": int, name: value}; a name may be missing from some rows."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    charts = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
        if points:
            x, y = zip(*points, strict=True)
            charts.append(line_chart(name.replace("_", " "), [Series("", x, y, colour)], "step"))
    return f'<div class="charts">{"".join(charts)}</div>'


def _path(series: Series, points: Sequence[tuple[float, float]]) -> str:
    runs: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append(f"{x:.2f} {y:.2f}")
        else:
            runs.append([])
    d = "".join("M" + "L".join(run) for run in runs if run)
    dash = ' stroke-dasharray="6 4"' if series.dashed else ""
    path = f'<path d="{d}" fill="none" stroke="{series.colour}" stroke-width="2" stroke-linejoin="round"{dash}/>'
    if series.marked:  # a line of no length with round ends is a dot that stays round in a stretched box
        dots = "".join(f"M{point}h0" for run in runs for point in run)
        path += f'<path d="{dots}" stroke="{series.colour}" stroke-width="7" stroke-linecap="round"/>'
    return path


def _thin(series: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff(edges, append=len(x))
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    extent = high - low if high > low else abs(high) or 1.0
    raw = extent / (count - 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.95)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(low), math.ceil(high)
    stride = max(1, -(-(last - first) // 5))
    return [float(t) for t in range(first, last + stride, stride)]


def _number(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 1e6:
        text = f"{value / 1e6:g}M"
    elif magnitude >= 1e4:
        text = f"{value / 1e3:g}k"
    elif magnitude >= 1e-3 or value == 0:
        text = f"{value:.4g}"
    else:
        text = f"{value:.0e}".replace("e-0", "e-")
    return text.replace("-", "\N{MINUS SIGN}")


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"
