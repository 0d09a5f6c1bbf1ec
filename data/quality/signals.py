"""Signals over time: steps of the proprio, motion in frames, lagged correlation. Pure numbers; what they mean is said elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL = (
    64  # pixels of the longer side at which motion in frames is measured: sensor and coding noise average out, an arm remains
)

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Peak:
    """Where a lagged correlation is highest: the lag in steps, the correlation there and at lag 0, over `samples` steps."""

    steps: int
    correlation: float
    at_zero: float
    samples: int

    def stands_out_from(self, correlation: float, ratio: float) -> bool:
        """Whether what the peak leaves unexplained is at most `ratio` of what `correlation` leaves.

        Differences of correlations do not say much for smooth motions, whose correlation one step off is still .97.
        """
        return 1 - self.correlation**2 <= ratio * (1 - min(abs(correlation), 1.0) ** 2)


class LaggedCorrelation:
    """Correlation of x_t with y_{t+k}, |k| <= max_lag, for K pairs of signals; episodes are added and only sums are kept."""

    def __init__(self, pairs: int, max_lag: int) -> None:
        self.lags = np.arange(-max_lag, max_lag + 1)
        self._sums = np.zeros((6, pairs, len(self.lags)))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """One episode: x and y, both [T,K]."""
        for index, lag in enumerate(self.lags.tolist()):
            a, b = x[max(0, -lag) : len(x) - max(0, lag)], y[max(0, lag) : len(y) - max(0, -lag)]
            if abs(lag) < len(x):
                moments = (a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0))
                self._sums[:, :, index] += [np.full(x.shape[1], len(a)), *moments]

    def merged(self, other: LaggedCorrelation) -> LaggedCorrelation:
        both = LaggedCorrelation(self._sums.shape[1], int(self.lags[-1]))
        both._sums = self._sums + other._sums
        return both

    def correlations(self) -> np.ndarray:
        """[K, 2 max_lag + 1]; 0 where a signal does not move."""
        covariance, x, y = self._moments()
        scale = np.sqrt(np.maximum(x, 0) * np.maximum(y, 0))
        return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)

    def slopes(self) -> np.ndarray:
        """[K, 2 max_lag + 1]: how much y moves for a unit of x."""
        covariance, x, _ = self._moments()
        return np.divide(covariance, x, out=np.zeros_like(x), where=x > 1e-12)

    def curve(self) -> np.ndarray:
        """[2 max_lag + 1]: the mean over the pairs, each with the sign that it has at its own peak."""
        values = self.correlations()
        sign = np.sign(np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1))
        return (values * sign).mean(0)

    def peak(self) -> Peak:
        curve, zero = self.curve(), len(self.lags) // 2
        best = int(curve.argmax())
        return Peak(int(self.lags[best]), float(curve[best]), float(curve[zero]), int(self._sums[0, 0, zero]))

    def _moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, x, y, xx, yy, xy = self._sums
        n = np.maximum(n, 1)
        return xy / n - x * y / n**2, xx / n - (x / n) ** 2, yy / n - (y / n) ** 2


def steps(values: np.ndarray, wraps: np.ndarray) -> np.ndarray:
    """values [T+1,P] -> what each step changed, float64 [T,P]; where `wraps` [P] says that it is an angle, the short way round."""
    moved = np.diff(values.astype(np.float64), axis=0)
    turned = wraps & (np.abs(moved) > np.pi)
    return np.where(turned, (moved + np.pi) % (2 * np.pi) - np.pi, moved)


def isolated(change: np.ndarray) -> np.ndarray:
    """change [T,P] -> [T,P]: by how much each step differs from both its neighbours; 0 at the ends. Smooth motion has next to none."""
    alone = np.zeros_like(change)
    bend = np.abs(np.diff(change, axis=0))
    alone[1:-1] = np.minimum(bend[1:], bend[:-1])
    return alone


def wrapping(episodes: list[np.ndarray]) -> np.ndarray:
    """Which of the P columns are angles that jump by a turn: bool [P], from some episodes' values, [T+1,P] each."""
    within = np.all([np.abs(values).max(0) <= 2 * np.pi + 0.1 for values in episodes], axis=0)
    # A step of nearly a turn, and not merely a fast one, is what tells an angle from a length or a joint without stops.
    turns = np.any([(np.abs(np.diff(values.astype(np.float64), axis=0)) > 1.5 * np.pi).any(0) for values in episodes], axis=0)
    return np.asarray(within & turns)


def shrink(frames: np.ndarray) -> np.ndarray:
    """uint8 [N,H,W,3] -> float32 grey [N,h,w], at most SMALL pixels a side."""
    import cv2

    height, width = frames.shape[1:3]
    scale = min(1.0, SMALL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack(
        [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for frame in frames]
    ).astype(np.float32)


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """(length, start) of the longest run of True in bool [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int((ends - starts).argmax())
    return int(ends[longest] - starts[longest]), int(starts[longest])


class Reservoir:
    """A uniform sample of at most `size` of the rows that went by, and exact moments of all of them."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._rng = size, np.random.default_rng(seed)
        self._rows: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """rows [N,D]."""
        if not self.count:
            self._total, self._squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
            self._origin = rows[0].astype(np.float64)
            self.low, self.high = np.full(rows.shape[1], np.inf), np.full(rows.shape[1], -np.inf)
        shifted = rows - self._origin  # sums about a value of the data keep their digits
        self._total += shifted.sum(0)
        self._squares += (shifted**2).sum(0)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self.count += len(rows)
        self._rows.append(np.clip(rows, -LARGEST, LARGEST).astype(np.float32))
        self._keys.append(self._rng.random(len(rows)))
        if sum(map(len, self._keys)) > 2 * self._size:
            self._trim()

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self._origin + self._total / self.count)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(np.maximum(self._squares / self.count - (self._total / self.count) ** 2, 0))

    def rows(self) -> np.ndarray:
        """float32 [at most size, D]; all rows where there were no more."""
        self._trim()
        return self._rows[0]

    def _trim(self) -> None:
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        if len(keys) > self._size:
            kept = np.argpartition(keys, self._size)[: self._size]
            rows, keys = rows[kept], keys[kept]
        self._rows, self._keys = [rows], [keys]
