"""Per-dimension affine normalisation from dataset statistics; the only thing that rescales actions and proprioception.

`quantile` maps [q01, q99] to [-1, 1] (V-GPS, OpenVLA), `min_max` maps [min, max] to [-1, 1], `mean_std` standardises. Values outside
the range are extrapolated, not clipped, so that `unnormalize` is an exact inverse. A dimension that never moves in the data has no
scale: it is only centred, on its constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from data.errors import InputError
from data.statistics import STATISTICS as STATISTICS
from data.statistics import compute_statistics as compute_statistics

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Kind = Literal["quantile", "min_max", "mean_std"]
_DEAD = 1e-6


@dataclass(frozen=True)
class Normalizer:
    """normalize(x) = (x - offset) / scale, elementwise over the last axis; float32 [D] each."""

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def from_statistics(cls, statistics: Mapping[str, Any], kind: Kind = "quantile") -> Normalizer:
        stat = {name: np.asarray(statistics[name], dtype=np.float64) for name in STATISTICS}
        if kind == "mean_std":
            return cls._guarded(stat["mean"], stat["std"])
        low, high = (stat["q01"], stat["q99"]) if kind == "quantile" else (stat["min"], stat["max"])
        # A binary dimension that is rarely on (a gripper) has equal quantiles: its extremes are its range.
        rare = high - low < _DEAD
        low, high = np.where(rare, stat["min"], low), np.where(rare, stat["max"], high)
        return cls._guarded((high + low) / 2, (high - low) / 2)

    @classmethod
    def _guarded(cls, offset: np.ndarray, scale: np.ndarray) -> Normalizer:
        return cls(offset.astype(np.float32), np.where(scale < _DEAD, 1.0, scale).astype(np.float32))

    def normalize(self, values: Array) -> Array:
        return (values - self._like(self.offset, values)) / self._like(self.scale, values)

    def unnormalize(self, values: Array) -> Array:
        return values * self._like(self.scale, values) + self._like(self.offset, values)

    def _like(self, array: np.ndarray, values: Any) -> Any:
        if values.shape[-1] != len(array):
            raise InputError(f"the normaliser has {len(array)} dimensions but the values have {values.shape[-1]}")
        return torch.as_tensor(array, device=values.device) if isinstance(values, torch.Tensor) else array

    def to_json(self) -> dict[str, list[float]]:
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Normalizer:
        return cls(np.asarray(values["offset"], np.float32), np.asarray(values["scale"], np.float32))
