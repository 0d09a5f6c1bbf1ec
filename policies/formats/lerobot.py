"""What a LeRobot checkpoint says of its inputs and outputs: features, their names here, and how each is normalised.

LeRobot 0.4 keeps normalisation in processor files beside the weights; up to 0.3.3 its statistics are tensors among the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import InputError
from policies.checkpoint import read_tensors
from policies.formats.foreign import camera_names

STATE, ACTION = "observation.state", "action"
# Statistics that a mode needs: the two values that become 0 and 1, or -1 and 1.
_NEEDS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
# Steps that leave the numbers alone: batching, devices, and the names that a robot's own keys are given.
_HARMLESS = {"rename_observations_processor", "to_batch_processor", "device_processor"}
_NORMALIZING = {"normalizer_processor", "unnormalizer_processor"}
_OLD = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


@dataclass(frozen=True)
class Feature:
    """One input or output. kind: VISUAL, STATE, ENV or ACTION. shape: (C,h,w) of pictures, (D,) of vectors. ours: its name here."""

    name: str
    kind: str
    shape: tuple[int, ...]
    ours: str


class Normalization(nn.Module):
    """One feature's, by LeRobot's formulas; `epsilon` as 0.4 uses it, or as 0.3 did (`old`)."""

    zero: torch.Tensor
    one: torch.Tensor

    def __init__(self, mode: str, zero: torch.Tensor, one: torch.Tensor, epsilon: float = 1e-8, old: bool = False) -> None:
        super().__init__()
        self.mode, self.epsilon, self.old = mode, epsilon, old
        self.register_buffer("zero", zero.float())
        self.register_buffer("one", one.float())

    def _range(self, forward: bool) -> torch.Tensor:
        span = self.one - self.zero
        if self.old:
            return span + self.epsilon if forward else span
        return torch.where(span == 0, self.epsilon, span)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "IDENTITY":
            return x
        if self.mode == "MEAN_STD":
            return (x - self.zero) / (self.one + self.epsilon)
        return 2 * (x - self.zero) / self._range(forward=True) - 1

    def unnormalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "IDENTITY":
            return x
        if self.mode == "MEAN_STD":
            return x * self.one + self.zero
        return (x + 1) / 2 * self._range(forward=False) + self.zero

    def bounds(self, clip: float | None) -> tuple[list[float], list[float]]:
        """What actions stay within: exactly, where the model clips at `clip`, else by a wide margin (5 std, or twice the range)."""
        if clip is None:
            clip = {"MEAN_STD": 5.0, "IDENTITY": math.inf}.get(self.mode, 2.0)
        ends = [self.unnormalize(torch.full_like(self.zero, side)).tolist() for side in (-clip, clip)]
        return ends[0], ends[1]


def read_features(config: Mapping[str, Any], where: Path) -> dict[str, Feature]:
    """Inputs, in the checkpoint's order, and the action. InputError where the config does not give them."""
    given = {}
    for side in ("input_features", "output_features"):
        for name, feature in (config.get(side) or {}).items():
            try:
                given[name] = (str(feature["type"]), tuple(int(size) for size in feature["shape"]))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{where}: {side} has no type and shape for {name!r}") from error
    if given.get(ACTION, ("",))[0] != "ACTION":
        raise InputError(f"{where}: output_features has no 'action'; policies that put out something else cannot be steered")
    ours = camera_names([name for name, (kind, _) in given.items() if kind == "VISUAL"])
    # LeRobot's networks see these: pictures, the one state, the first ENV; what else is listed they ignore.
    environment = next((name for name, (kind, _) in given.items() if kind == "ENV"), None)
    features = {}
    for name, (kind, shape) in given.items():
        if kind == "VISUAL":
            features[name] = Feature(name, kind, shape, ours[name])
        elif name in (STATE, ACTION, environment):
            features[name] = Feature(name, kind, shape, {"STATE": "proprio", "ENV": "state", "ACTION": ACTION}[kind])
    return features


def read_normalization(
    folder: Path, config: Mapping[str, Any], features: Iterable[Feature], weights: dict[str, torch.Tensor]
) -> dict[str, Normalization]:
    """Each feature's normalisation; the old format's tensors are taken out of `weights`. InputError where statistics are missing."""
    old = {key: weights.pop(key) for key in list(weights) if key.startswith(_OLD)}
    if (folder / "policy_preprocessor.json").is_file():
        before, after = (_processor(folder, f"policy_{side}processor.json") for side in ("pre", "post"))
        return {
            feature.name: _from_step(feature, after if feature.kind == "ACTION" else before, folder) for feature in features
        }
    modes = config.get("normalization_mapping") or {}
    return {feature.name: _from_weights(feature, modes.get(feature.kind, "IDENTITY"), old, folder) for feature in features}


def action_bounds(folder: Path, action: Feature) -> tuple[list[float], list[float]]:
    """What actions stay within by a wide margin; without limits where the checkpoint does not say in a way that is known here."""
    try:
        normalization = _from_step(action, _processor(folder, "policy_postprocessor.json", strict=False), folder)
    except InputError:
        return [-math.inf] * action.shape[0], [math.inf] * action.shape[0]
    return normalization.bounds(None)


def _processor(folder: Path, file: str, strict: bool = True) -> dict[str, Any]:
    """The settings of the normalising step of a pipeline, with its `statistics`; {} where it has none.

    strict: InputError for a step that is not known.
    """
    path = folder / file
    try:
        steps = json.loads(path.read_text())["steps"]
        names = [str(step.get("registry_name") or step.get("class", "").rpartition(".")[2]) for step in steps]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); the checkpoint is damaged, download it again") from error
    found: dict[str, Any] = {}
    for name, step in zip(names, steps, strict=True):
        if name in _HARMLESS or (not strict and name not in _NORMALIZING):
            continue
        if name not in _NORMALIZING:
            raise InputError(
                f"{path}: its step {name!r} changes the data in a way that is not known here; open it with lerobot itself"
            )
        state = str(step.get("state_file") or "")
        if state != Path(state).name:
            raise InputError(f"{path}: state_file {state!r} is not a file beside it")
        statistics = read_tensors(folder, state.removesuffix(".safetensors")) if state else {}
        found = {**step.get("config", {}), "statistics": statistics}
    return found


def _from_step(feature: Feature, step: Mapping[str, Any], folder: Path) -> Normalization:
    mode = step.get("norm_map", {}).get(feature.kind, "IDENTITY")
    chosen = step.get("normalize_observation_keys")
    if feature.name not in step.get("features", {}) or (chosen is not None and feature.name not in chosen):
        mode = "IDENTITY"
    prefix = f"{feature.name}."
    statistics = {
        key.removeprefix(prefix): value for key, value in step.get("statistics", {}).items() if key.startswith(prefix)
    }
    return _make(feature, mode, statistics, folder, epsilon=float(step.get("eps", 1e-8)))


def _from_weights(feature: Feature, mode: str, old: Mapping[str, torch.Tensor], folder: Path) -> Normalization:
    owner = "unnormalize_outputs" if feature.kind == "ACTION" else "normalize_inputs"
    prefix = f"{owner}.buffer_{feature.name.replace('.', '_')}."
    statistics = {key.removeprefix(prefix): value for key, value in old.items() if key.startswith(prefix)}
    return _make(feature, mode, statistics, folder, old=True)


def _make(
    feature: Feature, mode: str, statistics: Mapping[str, torch.Tensor], folder: Path, epsilon: float = 1e-8, old: bool = False
) -> Normalization:
    shape = (feature.shape[0], 1, 1) if feature.kind == "VISUAL" else feature.shape
    if mode == "IDENTITY":
        return Normalization(mode, torch.zeros(shape), torch.ones(shape))
    if mode not in _NEEDS:
        raise InputError(f"{folder}: normalises {feature.name!r} by {mode!r}; known are {', '.join(_NEEDS)} and IDENTITY")
    missing = [name for name in _NEEDS[mode] if name not in statistics]
    if missing:
        raise InputError(
            f"{folder}: has no {' and '.join(missing)} of {feature.name!r}, so its {mode} normalisation would be dropped; the policy_*"
            "processor files, or in LeRobot <= 0.3.3 the normalize_inputs tensors, must come with the checkpoint"
        )
    zero, one = (statistics[name] for name in _NEEDS[mode])
    if not (torch.isfinite(zero).all() and torch.isfinite(one).all()):
        raise InputError(
            f"{folder}: the {' or '.join(_NEEDS[mode])} of {feature.name!r} is not finite; it was never set in training"
        )
    try:
        return Normalization(mode, zero.expand(shape), one.expand(shape), epsilon, old)
    except RuntimeError as error:
        raise InputError(f"{folder}: statistics of {feature.name!r} have shape {tuple(zero.shape)}, not {shape}") from error
