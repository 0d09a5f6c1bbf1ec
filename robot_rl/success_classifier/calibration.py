"""How far probabilities of success can be believed: scaling, thresholds, and the measures of a report. Pure functions of arrays.

logits, probabilities: float [N]. truth: bool [N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robot_rl.evaluation.statistics import CONFIDENCE, Interval, wilson_interval

BINS = 5


@dataclass(frozen=True)
class Scaling:
    """probability = sigmoid(logit / temperature + bias)."""

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(logits / self.temperature + self.bias, -50, 50)))


def fit_scaling(logits: np.ndarray, truth: np.ndarray) -> Scaling:
    """Temperature and bias of least cross-entropy, with Platt's (1999) smoothed targets, so that separable data keep it finite.

    The bias is there because the head saw more failures (those from the middle of episodes) than there are.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale = max(float(logits.std()), 1e-6)
    x = np.stack([logits / scale, np.ones(len(logits))], axis=1)
    weight = np.array([1.0, 0.0])
    for _ in range(50):  # Newton's method; the ridge keeps constant logits solvable
        p = 1 / (1 + np.exp(-np.clip(x @ weight, -50, 50)))
        gradient = x.T @ (p - target) + 1e-3 * weight
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weight -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    # A head that is no better than chance may have a slope below 0; its order is kept, and its probabilities are nearly constant.
    return Scaling(float(scale / max(weight[0], 1e-3)), float(weight[1]))


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The probability from which on to call it a success, of best balanced accuracy; among equals the nearest to 0.5."""
    values = np.unique(probabilities)
    candidates = np.unique([*((values[:-1] + values[1:]) / 2), 0.5])
    called = probabilities[None] >= candidates[:, None]
    score = (called & truth).sum(1) / max(truth.sum(), 1) + (~called & ~truth).sum(1) / max((~truth).sum(), 1)
    best = candidates[score >= score.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a success scores above a failure (ties count half); nan without both."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap(
    measure: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, truth: np.ndarray, seed: int, resamples: int = 1000
) -> Interval:
    """Percentile interval of a measure over episodes drawn again."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(truth), (resamples, len(truth)))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.nanquantile([measure(scores[draw], truth[draw]) for draw in draws], tails).tolist()
    return low, high


@dataclass(frozen=True)
class Bin:
    """Episodes of like probability: how many, the mean probability, the share that succeeded and its interval."""

    count: int
    mean: float
    rate: float
    interval: Interval


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> list[Bin]:
    """Bins of as nearly equal numbers of episodes as can be."""
    result = []
    for part in _bins(probabilities):
        successes = int(truth[part].sum())
        interval = wilson_interval(successes, len(part))
        result.append(Bin(len(part), float(probabilities[part].mean()), successes / len(part), interval))
    return result


def _bins(probabilities: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(probabilities, kind="stable")
    return np.array_split(order, min(BINS, len(order)))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """ECE: the mean over those bins, by their sizes, of |mean probability - success rate|."""
    parts = _bins(probabilities)
    return sum(abs(float(probabilities[part].sum() - truth[part].sum())) for part in parts) / len(truth)


def chance_error(probabilities: np.ndarray, seed: int, draws: int = 1000) -> float:
    """The calibration error that so few episodes would show on average if the probabilities were exactly right."""
    truths = np.random.default_rng(seed).random((draws, len(probabilities))) < probabilities
    return float(np.mean([calibration_error(probabilities, truth) for truth in truths]))


def proportion(successes: int, trials: int) -> dict[str, object]:
    """A share with its Wilson interval, JSON-ready; value None of nothing."""
    if not trials:
        return {"value": None, "interval": None, "of": 0}
    return {"value": successes / trials, "interval": list(wilson_interval(successes, trials)), "of": trials}


def measure(
    probabilities: np.ndarray, uncalibrated: np.ndarray, truth: np.ndarray, threshold: float, seed: int
) -> dict[str, object]:
    """Everything a report says of held-out episodes, JSON-ready.

    accuracy, precision, recall, majority (always calling the commoner outcome): {value, interval, of}. auroc: {value, interval}. ece,
    ece_uncalibrated, ece_chance (as `chance_error`). bins: as `reliability`. abstaining: for some certainties c, the accuracy over
    those with p >= c or p <= 1 - c.
    """
    called = probabilities >= threshold
    right = called == truth
    abstaining = []
    for certainty in (0.7, 0.8, 0.9, 0.95):
        sure = np.maximum(probabilities, 1 - probabilities) >= certainty
        correct = int(((probabilities >= 0.5) == truth)[sure].sum())
        abstaining.append(
            {"certainty": certainty, "labelled": float(sure.mean()), "accuracy": proportion(correct, int(sure.sum()))}
        )
    return {
        "episodes": len(truth),
        "successes": int(truth.sum()),
        "accuracy": proportion(int(right.sum()), len(truth)),
        "majority": proportion(int(max(truth.sum(), (~truth).sum())), len(truth)),
        "precision": proportion(int((called & truth).sum()), int(called.sum())),
        "recall": proportion(int((called & truth).sum()), int(truth.sum())),
        "auroc": {"value": auroc(probabilities, truth), "interval": list(bootstrap(auroc, probabilities, truth, seed))},
        "ece": calibration_error(probabilities, truth),
        "ece_chance": chance_error(probabilities, seed),
        "ece_uncalibrated": calibration_error(uncalibrated, truth),
        "bins": [
            {"count": b.count, "mean": b.mean, "rate": b.rate, "interval": list(b.interval)}
            for b in reliability(probabilities, truth)
        ],
        "abstaining": abstaining,
    }
