"""SuccessClassifier: probabilities that episodes of a store succeeded at their instructions. Loaded, it labels any store that fits.

It looks at the first frames, the last ones and what has changed between them, at the robot's own state at the end, and at the
instruction's embedding; not at the length of an episode, which tells success only because recording stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data import Store
from data.errors import InputError
from policies.checkpoint import read_config, read_tensors, resolve_checkpoint, save_checkpoint
from robot_rl.success_classifier.calibration import Scaling
from robot_rl.success_classifier.config import ClassifierConfig
from robot_rl.success_classifier.features import FrozenFeatures

FAMILY = "success_classifier"
_DROPOUT = 0.3
FeatureProgress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Projection:
    """Whitened principal components: (x - mean) / scale @ matrix."""

    mean: np.ndarray
    scale: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, components: int) -> Projection:
        """x [N,F] -> at most `components`, and no more than the data have."""
        mean, std = x.mean(0), x.std(0)
        scale = std + 1e-2 * float(x.std()) + 1e-6
        _, singular, axes = np.linalg.svd((x - mean) / scale, full_matrices=False)
        count = max(min(components, int((singular > 1e-4 * max(singular[0], 1e-6)).sum())), 1)
        matrix = axes[:count].T / np.maximum(singular[:count] / np.sqrt(len(x)), 1e-6)
        # Contiguous, as it is when loaded: the product is the same to the bit then.
        return cls(mean.astype(np.float32), scale.astype(np.float32), np.ascontiguousarray(matrix, np.float32))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(((x - self.mean) / self.scale) @ self.matrix, np.float32)


def make_head(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(_DROPOUT), nn.Linear(hidden, 1))


@dataclass(frozen=True)
class Looks:
    """What a classifier sees of moments in episodes, before projection: [N, ...] each."""

    images: np.ndarray
    proprio: np.ndarray | None
    language: np.ndarray


@dataclass
class SuccessClassifier:
    """fits: what a store must have: {cameras: {key: [H,W,3]}, proprio: size or None, language_model, features: fingerprint}.

    report: what `train_classifier` measured. instructions: those it was trained on.
    """

    config: ClassifierConfig
    fits: dict[str, Any]
    projections: dict[str, Projection]
    heads: nn.ModuleList
    scaling: Scaling
    threshold: float
    instructions: list[str]
    report: dict[str, Any]

    def probabilities(self, store: Store, progress: FeatureProgress | None = None) -> np.ndarray:
        """float64 [E]. InputError when the store does not fit."""
        check_fit(store, self.fits)
        features = FrozenFeatures(self.config.features, self.config.image_size)
        if features.fingerprint != self.fits["features"]:
            raise InputError(
                f"features {self.config.features!r} are now {features.fingerprint}, "
                f"the classifier was trained on {self.fits['features']}; train it again"
            )
        looks = look(store, features, self.config, self.fits, store.episode_ends - 1, np.arange(store.length), progress)
        return self.scaling(mean_logits(looks, self.projections, self.heads))

    def label(self, probabilities: np.ndarray, certainty: float | None = None) -> np.ndarray:
        """success int8 [E]. certainty: leave unlabelled (-1) what is less certain than that; None labels everything."""
        if certainty is None:
            return (probabilities >= self.threshold).astype(np.int8)
        return np.where(probabilities >= certainty, 1, np.where(probabilities <= 1 - certainty, 0, -1)).astype(np.int8)

    def save(self, folder: Path) -> None:
        config = {
            "family": FAMILY,
            "config": {**self.config.__dict__, "cameras": list(self.config.cameras)},
            "fits": self.fits,
            "calibration": {**self.scaling.__dict__, "threshold": self.threshold},
            "instructions": self.instructions,
            "report": self.report,
        }
        arrays = {f"{name}.{key}": value for name, p in self.projections.items() for key, value in p.__dict__.items()}
        groups = {
            "heads": self.heads.state_dict(),
            "projections": {key: torch.from_numpy(value) for key, value in arrays.items()},
        }
        save_checkpoint(folder, self.config.steps, config, groups)


def load_classifier(folder: str | Path) -> SuccessClassifier:
    """InputError when there is none, or it is damaged."""
    checkpoint = resolve_checkpoint(folder)
    values = read_config(checkpoint)
    if values.get("family") != FAMILY:
        raise InputError(
            f"{folder}: holds a {values.get('family')!r}, not a success classifier; give the folder of one, or a new one to train it"
        )
    tensors, weights = read_tensors(checkpoint, "projections"), read_tensors(checkpoint, "heads")
    try:
        config = ClassifierConfig(**{**values["config"], "cameras": tuple(values["config"]["cameras"])})
        names = {key.split(".")[0] for key in tensors}
        projections = {
            name: Projection(*(tensors[f"{name}.{key}"].numpy() for key in ("mean", "scale", "matrix")))
            for name in sorted(names)
        }
        heads = _make_heads(config, projections)
        heads.load_state_dict(weights)
        calibration = dict(values["calibration"])
        threshold = float(calibration.pop("threshold"))
        scaling = Scaling(**calibration)
        return SuccessClassifier(
            config, values["fits"], projections, heads.eval(), scaling, threshold, values["instructions"], values["report"]
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{checkpoint}: damaged ({' '.join(str(error).split())[:120]}); train it again") from None


def _make_heads(config: ClassifierConfig, projections: dict[str, Projection]) -> nn.ModuleList:
    inputs = sum(projection.matrix.shape[1] for projection in projections.values())
    return nn.ModuleList([make_head(inputs, config.hidden) for _ in range(config.members)])


def requirements(store: Store, config: ClassifierConfig, fingerprint: str) -> dict[str, Any]:
    """What stores must have to be labelled by a classifier trained on this one. InputError when it lacks a camera."""
    cameras = config.cameras or tuple(key for key in store.observation_keys if key.startswith("image_"))
    if not cameras:
        raise InputError(f"{store.path}: has no camera for a classifier to look through; label by a rule")
    missing = [key for key in cameras if key not in store.observation_keys]
    if missing:
        raise InputError(f"{store.path}: has no {', '.join(missing)}; it has {', '.join(store.observation_keys)}")
    proprio = store.shape("proprio")[0] if config.proprio and "proprio" in store.observation_keys else None
    shapes = {key: list(store.shape(key)) for key in cameras}
    model = store.attributes["language_model"]
    return {"cameras": shapes, "proprio": proprio, "language_model": model, "features": fingerprint}


def check_fit(store: Store, fits: dict[str, Any]) -> None:
    keys = {**fits["cameras"], **({"proprio": [fits["proprio"]]} if fits["proprio"] else {})}
    for key, shape in keys.items():
        found = list(store.shape(key)) if key in store.observation_keys else None
        if found != shape:
            raise InputError(
                f"{store.path}: {key} is {found or 'not there'}, the classifier was trained on {shape}; train one on this store"
            )
    if store.attributes["language_model"] != fits["language_model"]:
        raise InputError(
            f"{store.path}: instructions embedded by {store.attributes['language_model']}, the classifier's by {fits['language_model']}"
        )


def look(
    store: Store,
    features: FrozenFeatures,
    config: ClassifierConfig,
    fits: dict[str, Any],
    moments: np.ndarray,
    episodes: np.ndarray,
    progress: FeatureProgress | None = None,
) -> Looks:
    """What is seen at moments (rows [N]) of episodes [N], the `last` observations up to there averaged, beside each episode's first."""
    first = np.concatenate([[0], store.episode_ends[:-1]])[episodes]
    window = np.maximum(moments[:, None] - np.arange(config.last), first[:, None])  # [N, last]
    parts = []
    for camera in fits["cameras"]:
        rows = np.concatenate([first[:, None], window], axis=1)
        values = features.of(store, camera, rows.ravel(), progress).reshape(*rows.shape, -1)
        now = values[:, 1:].mean(1)
        parts += [now, now - values[:, 0]]
    proprio = store.gather("proprio", moments) if fits["proprio"] else None
    table = np.stack([store.language.table[text] for text in store.instructions])
    language = table[store.gather("instruction_index", moments)]
    return Looks(np.concatenate(parts, axis=1), proprio, language)


def project(looks: Looks, projections: dict[str, Projection]) -> np.ndarray:
    """[N, inputs of a head]."""
    parts: dict[str, Any] = {"images": looks.images, "proprio": looks.proprio, "language": looks.language}
    return np.concatenate([projections[name](parts[name]) for name in sorted(projections)], axis=1)


def mean_logits(looks: Looks, projections: dict[str, Projection], heads: nn.ModuleList) -> np.ndarray:
    """The mean over the heads, uncalibrated: float64 [N]."""
    x = torch.from_numpy(project(looks, projections))
    with torch.inference_mode():
        return np.asarray(torch.stack([head(x)[:, 0] for head in heads]).double().mean(0).numpy())
