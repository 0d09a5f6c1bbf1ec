"""Minari datasets (Farama's offline RL data, D4RL among them): a folder with `data/metadata.json`, read by Minari's own storages.

Observations of nested spaces are flattened with "/" ("observations/arm/pos"). An episode has one observation more than actions.
Nothing of the dataset's environment is run or imported: its entry point is in the dataset, which may be anybody's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, reason
from data.formats.base import Feature
from data.formats.description import find_description, merge_description

_CAMERAS = ("image_primary", "image_secondary", "image_tertiary", "image_quaternary")
_ROWS = {"rewards": "float64", "terminations": "bool", "truncations": "bool"}


@dataclass(frozen=True)
class MinariEpisode:
    """One episode of T actions and N = T + 1 observations; it is read as a whole when a first feature is asked for."""

    storage: Any
    number: int
    source: str

    @cached_property
    def values(self) -> dict[str, Any]:
        """Step features by name, checked to be of one length."""
        try:
            episode = next(iter(self.storage.get_episodes([self.number])))
            values = {key: episode[key] for key in _ROWS}
            for name in ("observations", "actions", "infos"):
                values |= _flatten(name, episode[name])
        except Exception as error:
            # Of HDF5, of Arrow, of the JPEG decoder, of Minari.
            raise InputError(f"{self.source}: cannot be read ({_line(error)}); copy the dataset again") from None
        count = len(values["rewards"])
        for key, value in values.items():
            expected = count + key.startswith("observations")
            if len(value) != expected and not key.startswith("infos/"):
                raise InputError(f"{self.source}: {key} has {len(value)} steps, expected {expected}; drop it with --skip-bad")
        return values

    @property
    def num_steps(self) -> int:
        return len(self.values["rewards"]) + 1

    def step(self, key: str, limit: int | None = None) -> Any:
        if key not in self.values:
            raise InputError(f"{self.source}: no step feature {key!r} (present: {', '.join(sorted(self.values))})")
        return self.values[key][:limit]

    def metadata(self, key: str, default: Any = None) -> Any:
        """Of the episode, as Minari keeps it; `success` is whether any step's info says so."""
        told = self.values.get("infos/success")
        if key == "success" and told is not None:
            return bool(np.any(np.asarray(told, bool)))
        try:
            return next(iter(self.storage.get_episode_metadata([self.number]))).get(key, default)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{self.source}: its metadata cannot be read ({_line(error)}); copy the dataset again") from None

    def texts(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class MinariDataset:
    """An opened dataset. data: the folder with metadata.json."""

    path: Path
    data: Path
    name: str
    features: dict[str, Feature]
    splits: dict[str, int]
    description: dict[str, Any] | None
    format: str = "minari"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        try:
            return path.is_dir() and "minari_version" in json.loads(_metadata_file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            # A damaged one is still Minari's when its data lie where Minari puts them.
            return (path / "data" / "main_data.hdf5").is_file()

    @classmethod
    def open(cls, path: str | Path) -> MinariDataset:
        """Open `.../D4RL/door/human-v2`, or the `data` within. InputError says what is missing."""
        path = Path(path)
        file = _metadata_file(path)
        storage = _storage(file.parent)
        try:
            metadata = json.loads(file.read_text(encoding="utf-8"))
            name, count = str(metadata["dataset_id"]), int(metadata["total_episodes"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: does not describe a Minari dataset ({reason(error)}); download it again") from None
        features = _features("observations", storage.observation_space) | _features("actions", storage.action_space)
        features |= {key: Feature(key, "tensor", dtype) for key, dtype in _ROWS.items()}
        environment = _environment(metadata)
        derived = _derive(features, storage.action_space, environment, name)
        return cls(path, file.parent, name, features, {"train": count}, merge_description(derived, find_description(path)))

    def episodes(self, split: str, indices: range) -> Iterator[MinariEpisode | InputError]:
        storage = _storage(self.data)
        for number in indices:
            yield MinariEpisode(storage, number, f"{self.name} {split} #{number} ({self.data} episode {number})")


def _metadata_file(path: Path) -> Path:
    inner = path / "data" / "metadata.json"
    return inner if inner.is_file() else path / "metadata.json"


def _storage(data: Path) -> Any:
    """Minari's storage. InputError without Minari, without the data, and for datasets that do not hold their own spaces."""
    try:
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise InputError(
            f"{data}: a Minari dataset is read with Minari; install it: pip install 'minari[hdf5,arrow]'"
        ) from None
    try:
        metadata = MinariStorage.read_raw_metadata(data)
        missing = {"observation_space", "action_space"} - set(metadata)
        if missing:
            # Minari would make the environment to ask it, and so import what the dataset names.
            raise InputError(f"{data}: metadata.json has no {', '.join(sorted(missing))}; save the dataset with a newer Minari")
        return MinariStorage.read(data)
    except InputError:
        raise
    except Exception as error:
        # What Minari raises on a damaged dataset is of no one kind, assertions included.
        raise InputError(f"{data}: not a readable Minari dataset ({_line(error)}); download it again") from None


def _features(name: str, space: Any) -> dict[str, Feature]:
    """The leaves of a Gymnasium space."""
    from gymnasium import spaces

    children = getattr(space, "spaces", None)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        items = children.items() if isinstance(children, Mapping) else enumerate(children or ())
        return {leaf: feature for key, child in items for leaf, feature in _features(f"{name}/{key}", child).items()}
    if isinstance(space, spaces.Text):
        return {name: Feature(name, "text", "string")}
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        return {name: Feature(name, "tensor", unsupported=f"of a {type(space).__name__} space")}
    shape = tuple(space.shape or ())
    image = space.dtype == np.uint8 and len(shape) == 3 and shape[-1] == 3
    return {name: Feature(name, "image" if image else "tensor", str(space.dtype), shape)}


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {leaf: item for key, child in value.items() for leaf, item in _flatten(f"{name}/{key}", child).items()}
    if isinstance(value, tuple):
        return _flatten(name, dict(enumerate(value)))
    return {} if value is None else {name: value}


def _environment(metadata: Mapping[str, Any]) -> str:
    """The id of the environment, "" when the dataset does not name one."""
    try:
        return str(json.loads(metadata["env_spec"])["id"])
    except (KeyError, TypeError, ValueError):
        return ""


def _control_hz(environment: str) -> float | None:
    """What an environment that is installed here says of its steps a second; one that only the dataset knows is not imported."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    spec = gymnasium.registry.get(environment)
    try:
        creator = (
            load_env_creator(spec.entry_point) if spec and isinstance(spec.entry_point, str) else spec and spec.entry_point
        )
        rate = float(creator.metadata["render_fps"])  # type: ignore[union-attr]
    except Exception:
        # An environment may fail to import in any way.
        return None
    return rate if rate > 0 else None


def _derive(features: dict[str, Feature], action_space: Any, environment: str, name: str) -> dict[str, Any]:
    """Cameras by order, all vectors as the state; the limits of the action space; the environment's name as the instruction."""
    observed = {key: feature for key, feature in features.items() if key.startswith("observations") and not feature.unsupported}
    images = [key for key, feature in observed.items() if feature.kind == "image"]
    texts = [key for key, feature in observed.items() if feature.kind == "text"]
    vectors = [key for key, feature in observed.items() if feature.kind == "tensor"]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_/-]+", " ", re.sub(r"-v\d+$", "", environment or name)).lower()
    derived: dict[str, Any] = {
        "actions": "actions",
        "observations": {**dict(zip(_CAMERAS, images, strict=False)), **({"state": vectors} if vectors else {})},
        "instruction": texts[0] if texts else {"text": words.strip()},
        "reward": "rewards",
        "terminated": "terminations",
    }
    if "actions" not in features or not hasattr(action_space, "low"):
        return derived
    # The digits that a float32 has: .05, not .05000000074505806.
    low, high = ([float(f"{x:.7g}") for x in np.ravel(bound)] for bound in (action_space.low, action_space.high))
    if all(map(math.isfinite, [*low, *high])):
        rate = _control_hz(environment)
        names = [f"action_{index}" for index in range(len(low))]
        derived["action"] = {"names": names, "units": ["1"] * len(low), "low": low, "high": high, "frame": "unknown"}
        derived["action"] |= {"control_hz": rate} if rate else {}
    return derived


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
