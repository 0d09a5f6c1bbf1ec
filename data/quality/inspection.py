"""inspect: what a dataset holds, as the trainer will see it, in numbers. Any EpisodeSource: a dataset of any format, or a store."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data.quality.check import findings
from data.quality.frames import frame_lags
from data.quality.motion import DEAD
from data.quality.signals import LaggedCorrelation
from data.quality.survey import REWARD_VALUES, Progress, Survey, survey
from data.source import EpisodeSource
from data.statistics import STATISTICS

BINS, LENGTH_BINS = 48, 32
IDLE = 0.02  # of the 99% quantile of every dimension that moves: the arm is told to stay
SHOW_BOUNDS = 4.0  # bounds are within a histogram as long as that makes it no more than so many times wider than the data


def inspect(
    source: EpisodeSource, limit: int | None = None, skip_bad: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Describe a source, or its first `limit` episodes, JSON-ready; see `report`.

    InputError for a bad episode; with `skip_bad`, bad ones are left out and `skipped` has a line for each.
    """
    return report(survey(source, limit, skip_bad, progress))


def report(found: Survey) -> dict[str, Any]:
    """A survey in JSON-ready numbers.

    name, path, split; changes (what standardisation did); episodes; steps (observations: T+1 an episode); transitions; instructions
    {text: episodes}; episode_length {min, median, max, histogram} in transitions; cameras {name: [H,W]}; vectors {name: size}; action
    (its description); statistics and proprio_statistics (mean, std, min, max, q01, q99, lists); histograms {action: {edges, counts,
    outside: share of steps outside of its bounds}}; dead_dimensions (action dimensions that never move); idle (share of steps in which
    no motion is asked for; None for absolute actions); success {true, false, unlabelled}; rewards {episodes (that have them), min, max,
    steps: {reward: steps}, empty where there are many}; lag {signal: {steps, seconds, correlation, at_zero, lags, curve}}: of
    the proprio after the actions, and of each camera after the proprio; looked_at {episodes, frames}: whose frames were decoded;
    findings, as of `check`; skipped; left_out (by the conversion that made a store).

    Quantiles and histograms are of a sample where there are more than 131,072 steps.
    """
    rows, lengths = found.rows.rows(), np.array([facts.length for facts in found.episodes])
    success = Counter(facts.success for facts in found.episodes)
    width, names = len(found.wraps), found.action["names"]
    instructions = Counter(facts.instruction for facts in found.episodes)
    rewards = [(facts.reward[1], min(facts.reward[0])) for facts in found.episodes if facts.reward]
    frames = sum(facts.shape[0] for cameras in found.sample.cameras for facts in cameras.values())
    return {
        "name": found.name,
        "path": found.location,
        "split": found.split,
        "changes": list(found.changes),
        "episodes": len(lengths),
        "steps": int(lengths.sum() + len(lengths)),
        "transitions": int(lengths.sum()),
        "instructions": dict(sorted(instructions.items(), key=lambda item: (-item[1], item[0]))),
        "episode_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
            "histogram": _lengths(lengths),
        },
        "cameras": {key: list(facts.shape[1:3]) for cameras in found.sample.cameras[:1] for key, facts in cameras.items()},
        "vectors": {key: shape[0] for key, shape in found.shapes.most_common(1)[0][0]},
        "action": found.action,
        "statistics": _statistics(found, rows, 0, found.size),
        "proprio_statistics": _statistics(found, rows, found.size, width) if width else {},
        "histograms": {
            name: _histogram(rows[:, i], found.action["low"][i], found.action["high"][i]) | {"outside": float(found.outside[i])}
            for i, name in enumerate(names)
        },
        "dead_dimensions": [name for name, std in zip(names, found.rows.std[: found.size], strict=True) if std < DEAD],
        "idle": _idle(found, rows),
        "success": {"true": success[True], "false": success[False], "unlabelled": success[None]},
        "rewards": {
            "episodes": len(rewards),
            "min": min((low for _, low in rewards), default=None),
            "max": max((high for high, _ in rewards), default=None),
            "steps": {f"{value:g}": count for value, count in sorted(found.reward_steps.items())}
            if len(found.reward_steps) <= REWARD_VALUES
            else {},
        },
        "lag": _lags(found),
        "looked_at": {"episodes": len(found.sample.episodes), "frames": frames},
        "findings": [finding.to_json() for finding in findings(found)],
        "skipped": found.errors,
        "left_out": list(found.left_out),
    }


def _statistics(found: Survey, rows: np.ndarray, start: int, size: int) -> dict[str, list[float]]:
    columns = slice(start, start + size)
    q01, q99 = np.quantile(rows[:, columns], [0.01, 0.99], axis=0)
    all_of_them = found.rows
    values = (
        all_of_them.mean[columns],
        all_of_them.std[columns],
        all_of_them.low[columns],
        all_of_them.high[columns],
        q01,
        q99,
    )
    return {key: [float(x) for x in value] for key, value in zip(STATISTICS, values, strict=True)}


def _histogram(values: np.ndarray, low: float, high: float) -> dict[str, list[float] | list[int]]:
    """Of all but the outermost thousandth, with the bounds in it where they are not far away."""
    first, last = (float(x) for x in np.quantile(values, [0.001, 0.999]))
    if max(last, high) - min(first, low) <= SHOW_BOUNDS * (last - first):
        first, last = min(first, low), max(last, high)
    margin = 0.02 * (last - first) or 1e-3
    counts, edges = np.histogram(values, BINS, (first - margin, last + margin))
    return {"edges": [float(x) for x in edges], "counts": [int(x) for x in counts]}


def _lengths(lengths: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Bins of whole numbers of steps."""
    width = -(-(int(np.ptp(lengths)) + 1) // LENGTH_BINS)
    edges = np.arange(lengths.min(), lengths.max() + width + 1, width)
    return {"edges": [float(x) for x in edges], "counts": [int(x) for x in np.histogram(lengths, edges)[0]]}


def _idle(found: Survey, rows: np.ndarray) -> float | None:
    moving = [i for i in range(found.size) if i not in found.grippers and found.rows.std[i] >= DEAD]
    if not moving or any(pair.absolute for pair in found.pairs):
        return None
    size = np.abs(rows[:, moving])
    return float((size < IDLE * np.quantile(size, 0.99, axis=0)).all(1).mean())


def _lags(found: Survey) -> dict[str, Any]:
    curves: dict[str, LaggedCorrelation] = {}
    if found.pairs:
        curves[f"{found.proprio_key} after the actions"] = found.lags[0].merged(found.lags[1])
    for camera, halves in sorted(frame_lags(found).items()):
        curves[f"{camera} after {found.proprio_key}"] = halves[0].merged(halves[1])
    result = {}
    for name, lagged in curves.items():
        peak = lagged.peak()
        result[name] = {
            "steps": peak.steps,
            "seconds": peak.steps / found.hz,
            "correlation": peak.correlation,
            "at_zero": peak.at_zero,
            "lags": [int(lag) for lag in lagged.lags],
            "curve": [float(x) for x in lagged.curve()],
        }
    return result
