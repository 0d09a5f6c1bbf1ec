"""Training of the success classifier, on the labelled episodes of a store, and what it is worth on those it never saw.

Episodes are split into training (60%), calibration (20%) and test (20%), successes and failures alike. Heads learn from the ends of
training episodes, labelled, and from their middles, where nothing has succeeded yet; scaling and threshold come from the calibration
part; the report from the test part.
"""

from __future__ import annotations

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
    project,
    requirements,
)
from robot_rl.success_classifier.config import ClassifierConfig
from robot_rl.success_classifier.features import FrozenFeatures

LEAST = 10
"""Successes, and failures, that are needed: two of each to calibrate and to test on."""
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
    training, calibration, test = split(truth, config.seed)

    ends = look(store, features, config, fits, store.episode_ends[episodes] - 1, episodes, progress)
    projections = _fit_projections(_at(ends, training), config)
    x, y, weight = [project(_at(ends, training), projections)], [truth[training]], [_balanced(truth[training], config.early)]
    if config.early:
        first = np.concatenate([[0], store.episode_ends[:-1]])[episodes[training]]
        steps = store.episode_ends[episodes[training]] - 1 - first
        moments = np.concatenate([first + np.round(share * steps).astype(int) for share in _MIDDLES])
        middles = look(store, features, config, fits, moments, np.tile(episodes[training], len(_MIDDLES)), progress)
        x.append(project(middles, projections))
        y.append(np.zeros(len(moments), bool))
        weight.append(np.full(len(moments), config.early / 2 / len(moments)))
    inputs, targets, weights = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in (x, y, weight))
    seeds = [config.seed * 1000 + member for member in range(config.members)]
    heads = nn.ModuleList([_train_head(inputs, targets, weights, config, seed) for seed in seeds])

    instructions = sorted({store.instructions[i] for i in store.gather("instruction_index", store.episode_ends[episodes] - 1)})
    made = SuccessClassifier(config, fits, projections, heads.eval(), Scaling(), 0.5, instructions, {})
    logits = made.logits(ends)
    made.scaling = fit_scaling(logits[calibration], truth[calibration])
    probabilities = made.scaling(logits)
    made.threshold = best_threshold(probabilities[calibration], truth[calibration])
    made.report = {
        "store": store.name,
        "split": {"training": len(training), "calibration": len(calibration), "test": len(test)},
        "threshold": made.threshold,
        "temperature": made.scaling.temperature,
        "test": measure(probabilities[test], Scaling()(logits[test]), truth[test], made.threshold, config.seed),
    }
    return made


def split(truth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the training, calibration and test episodes, each with its share of successes and of failures."""
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    for outcome in (True, False):
        order = generator.permutation(np.flatnonzero(truth == outcome))
        fifth = len(order) // 5
        for part, chosen in zip(parts, (order[2 * fifth :], order[:fifth], order[fifth : 2 * fifth]), strict=True):
            part.append(chosen)
    training, calibration, test = (np.sort(np.concatenate(part)) for part in parts)
    return training, calibration, test


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
