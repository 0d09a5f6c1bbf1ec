"""Per-dimension statistics of a dataset, as JSON; what normalisers are made from."""

from __future__ import annotations

import numpy as np

from data.errors import InputError

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


def compute_statistics(values: np.ndarray) -> dict[str, list[float]]:
    """mean, std, min, max, q01 and q99 of [N,D] over N, as JSON-ready lists of D."""
    if values.ndim != 2 or not len(values):
        raise InputError(f"statistics need a non-empty [N,D] array, got shape {values.shape}")
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    result = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0), "q01": q01, "q99": q99}
    return {name: [float(x) for x in result[name]] for name in STATISTICS}
