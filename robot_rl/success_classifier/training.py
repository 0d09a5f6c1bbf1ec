"""Training of the success classifier, on the labelled episodes of a store, and what it is worth on those it never saw.

A fifth of the episodes, of successes and of failures, is kept for the report and never trained on. Heads learn from the ends of the
others, labelled, and from their middles, where nothing has succeeded yet. Scaling and threshold come from the same others, but
cross-fitted: what heads that were trained on four fifths of them say of the last fifth. A calibration part of its own would leave
fewer episodes to either, and some fifty are too few to calibrate on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data import Store
from data.errors import InputError
from robot_rl.success_classifier.calibration import Scaling, best_threshold, fit_scaling, measure
from robot_rl.success_classifier.classifier import (
    FeatureProgress,
    Looks,
    Projection,
    SuccessClassifier,
    look,
    make_head,
    mean_logits,
    project,
    requirements,
)
from robot_rl.success_classifier.config import ClassifierConfig
from robot_rl.success_classifier.features import FrozenFeatures

LEAST = 10
"""Successes, and failures, that are needed: two of each to test on, eight to train and to calibrate on."""
_MIDDLES = (0.4, 0.6)
_BATCH = 64
_WEIGHT_DECAY = 1e-2
_INSTRUCTION_COMPONENTS = 8


def train_classifier(
    store: Store, config: ClassifierConfig | None = None, progress: FeatureProgress | None = None
) -> SuccessClassifier:
    """A calibrated classifier, whose `report` is of held-out episodes. Same store, settings and machine: same classifier.

    progress: called with (frames done, frames in all) while features are computed. InputError when too little is labelled.
    """
    config = config or ClassifierConfig()
    episodes = np.flatnonzero(store.success >= 0)
    truth = store.success[episodes] == 1
    if truth.sum() < LEAST or (~truth).sum() < LEAST:
        raise InputError(
            f"{store.path}: {truth.sum()} successes and {(~truth).sum()} failures are labelled, a classifier needs {LEAST} of each; "
            "label more by hand"
        )
    features = FrozenFeatures(config.features, config.image_size)
    fits = requirements(store, config, features.fingerprint)
    training, test = split(truth, config.seed)

    ends = look(store, features, config, fits, store.episode_ends[episodes] - 1, episodes, progress)
    middles = _look_at_middles(store, features, config, fits, episodes, progress) if config.early else []
    crossed = np.empty(len(training))
    for fold in _folds(truth[training], config.seed):
        rest = np.delete(training, fold)
        crossed[fold] = mean_logits(_at(ends, training[fold]), *_fit(ends, middles, truth, rest, config))
    projections, heads = _fit(ends, middles, truth, training, config)
    scaling = fit_scaling(crossed, truth[training])
    threshold = best_threshold(scaling(crossed), truth[training])

    logits = mean_logits(_at(ends, test), projections, heads)
    report = {
        "store": store.name,
        "training": len(training),
        "threshold": threshold,
        "temperature": scaling.temperature,
        "test": measure(scaling(logits), Scaling()(logits), truth[test], threshold, config.seed),
    }
    instructions = sorted({store.instructions[i] for i in store.gather("instruction_index", store.episode_ends[episodes] - 1)})
    return SuccessClassifier(config, fits, projections, heads, scaling, threshold, instructions, report)


def split(truth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test episodes, a fifth, each with its share of successes and of failures."""
    parts = _folds(truth, seed)
    return np.sort(np.concatenate(parts[1:])), parts[0]


def _folds(truth: np.ndarray, seed: int) -> list[np.ndarray]:
    """Positions in five parts, each with its share of successes and of failures."""
    generator = np.random.default_rng(seed)
    dealt = np.empty(len(truth), int)
    for outcome in (True, False):
        positions = generator.permutation(np.flatnonzero(truth == outcome))
        dealt[positions] = np.arange(len(positions)) % 5
    return [np.flatnonzero(dealt == part) for part in range(5)]


def _look_at_middles(
    store: Store,
    features: FrozenFeatures,
    config: ClassifierConfig,
    fits: dict[str, Any],
    episodes: np.ndarray,
    progress: FeatureProgress | None,
) -> list[Looks]:
    first = np.concatenate([[0], store.episode_ends[:-1]])[episodes]
    steps = store.episode_ends[episodes] - 1 - first
    moments = [first + np.round(share * steps).astype(int) for share in _MIDDLES]
    return [look(store, features, config, fits, rows, episodes, progress) for rows in moments]


def _fit(
    ends: Looks, middles: list[Looks], truth: np.ndarray, chosen: np.ndarray, config: ClassifierConfig
) -> tuple[dict[str, Projection], nn.ModuleList]:
    """Projections and heads from the chosen episodes: their ends, as labelled, and their middles, as failures."""
    projections = _fit_projections(_at(ends, chosen), config)
    x = [project(_at(looks, chosen), projections) for looks in (ends, *middles)]
    y = [truth[chosen], *(np.zeros(len(chosen), bool) for _ in middles)]
    early = [np.full(len(chosen), config.early / 2 / len(middles) / len(chosen)) for _ in middles]
    weight = [_balanced(truth[chosen], config.early), *early]
    inputs, targets, weights = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in (x, y, weight))
    seeds = [config.seed * 1000 + member for member in range(config.members)]
    heads = nn.ModuleList([_train_head(inputs, targets, weights, config, seed) for seed in seeds])
    return projections, heads.eval()


def _fit_projections(looks: Looks, config: ClassifierConfig) -> dict[str, Projection]:
    projections = {"images": Projection.fit(looks.images, config.components)}
    if looks.proprio is not None:
        projections["proprio"] = Projection.fit(looks.proprio, looks.proprio.shape[1])
    projections["language"] = Projection.fit(looks.language, _INSTRUCTION_COMPONENTS)
    return projections


def _balanced(truth: np.ndarray, early: float) -> np.ndarray:
    """Weights of the ends: successes have half of all, failures what the middles leave of the other half."""
    return np.where(truth, 0.5 / truth.sum(), (1 - early) / 2 / (~truth).sum())


def _train_head(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, config: ClassifierConfig, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the first weights and of dropout
        head = make_head(x.shape[1], config.hidden)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
        for _ in range(config.steps):
            batch = torch.multinomial(weight, _BATCH, replacement=True, generator=generator)
            loss = F.binary_cross_entropy_with_logits(head(x[batch])[:, 0], y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def _at(looks: Looks, positions: np.ndarray) -> Looks:
    return Looks(
        looks.images[positions], None if looks.proprio is None else looks.proprio[positions], looks.language[positions]
    )
