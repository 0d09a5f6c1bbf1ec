"""Statistics as LeRobotDataset keeps them: of each feature over an episode, and combined over a dataset.

Names, shapes and units are the original's: images in [0, 1] with shape (3, 1, 1), vectors (D,); quantiles of a dataset are the mean of
its episodes' weighted by length. They are for lerobot's normalisers; our own trainers compute theirs from the store (data.statistics).
"""

from __future__ import annotations

import numpy as np

Statistics = dict[str, np.ndarray]
"""min, max, mean, std, count, q01, q10, q50, q90, q99 of one feature."""

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_MOST_FRAMES, _MOST_PIXELS = 100, 150


def of_vectors(values: np.ndarray) -> Statistics:
    """values [N, D] (or [N]) -> statistics of shape (D,)."""
    values = values.reshape(len(values), -1)
    # The extremes keep their type: those of whole numbers are whole numbers.
    extremes = {"min": values.min(axis=0), "max": values.max(axis=0)}
    return _statistics(values.astype(np.float64), len(values)) | extremes


def of_images(frames: np.ndarray) -> Statistics:
    """frames uint8 [N,H,W,3] -> statistics per channel, (3, 1, 1), in [0, 1]; of at most 100 frames, their pixels thinned out."""
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, _MOST_FRAMES).round().astype(int))]
    rows, columns = (max(1, size // _MOST_PIXELS) for size in frames.shape[1:3])
    pixels = frames[:, ::rows, ::columns].reshape(-1, 3) / 255.0
    statistics = _statistics(pixels, len(frames))
    return {name: value if name == "count" else value.reshape(3, 1, 1) for name, value in statistics.items()}


def combine(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both sets of steps taken together."""
    counts = first["count"] + second["count"]
    share = float(second["count"][0] / counts[0])

    def weighted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a * (1 - share) + b * share

    mean = weighted(first["mean"], second["mean"])
    spread = [item["std"] ** 2 + (item["mean"] - mean) ** 2 for item in (first, second)]
    return {
        "min": np.minimum(first["min"], second["min"]),
        "max": np.maximum(first["max"], second["max"]),
        "mean": mean,
        "std": np.sqrt(weighted(*spread)),
        "count": counts,
        **{name: weighted(first[name], second[name]) for name in _QUANTILES},
    }


def _statistics(values: np.ndarray, count: int) -> Statistics:
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([count]),
        **dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values()), axis=0), strict=True)),
    }
