"""robomimic's HDF5 files (`data/demo_k/{actions,rewards,dones,obs/*,next_obs/*}`), and folders of them, as LIBERO comes.

Episodes are in the order of their numbers. The splits are the file's masks (filter keys). `train` is all episodes unless there is a
mask of that name; then all of them are `all`. An episode with `next_obs` has one observation more than actions. This module knows
the format; what robosuite's `env_args` say of actions is read in `data.formats.robosuite`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Feature
from data.formats.description import find_description, merge_description
from data.formats.robosuite import describe_actions, describe_observations, task_name

SUFFIXES = (".hdf5", ".h5")
OWN = "robot_rl"
"""The attribute of `data` in which our writer keeps a description; its episodes say themselves whether they succeeded."""

_TEXT, _EMBEDDING = "language_instruction", "language_embedding"
_ROWS = ("actions", "rewards", "dones")
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, UnicodeError)
"""What h5py raises on a damaged file."""


@dataclass(frozen=True)
class RobomimicEpisode:
    """One demonstration. demo: its h5py group, which keeps the file open; task: its instruction when it has none of its own.

    features: of the dataset, to which its shapes are held.
    """

    demo: Any
    source: str
    task: str
    features: Mapping[str, Feature]

    @cached_property
    def num_actions(self) -> int:
        count = self._shape("actions")[0]
        declared = self.demo.attrs.get("num_samples", count)
        if int(declared) != count:
            raise InputError(f"{self.source}: has {count} actions, its num_samples says {declared}; drop it with --skip-bad")
        return int(count)

    @property
    def num_steps(self) -> int:
        with _reading(f"{self.source}: it"):
            return self.num_actions + self._has_next

    @property
    def _has_next(self) -> bool:
        return "next_obs" in self.demo and len(self.demo["next_obs"]) > 0

    def step(self, key: str, limit: int | None = None) -> Any:
        with _reading(f"{self.source}: it"):
            return self._step(key, limit)

    def _step(self, key: str, limit: int | None) -> Any:
        if key == _TEXT:
            return [self._instruction()] * self.num_steps
        if key == _EMBEDDING and _EMBEDDING in self.demo.attrs:
            return np.tile(self.demo.attrs[_EMBEDDING], (self.num_steps, 1))
        count, observed = self.num_actions, key.startswith("obs/")
        rows = count if limit is None else min(limit, count)
        values = self._read(key, rows)
        if not observed or not self._has_next or (limit is not None and limit <= count):
            return values
        return np.concatenate([values, self._read(f"next_{key}", 1, last=True)])

    def metadata(self, key: str, default: Any = None) -> Any:
        """An attribute of the demonstration; `success` of a file that has none is whether a reward of 1 was reached."""
        with _reading(f"{self.source}: it"):
            if key in self.demo.attrs:
                return self.demo.attrs[key]
            if key == "success" and OWN not in self.demo.parent.attrs and "rewards" in self.demo:
                return bool((self.step("rewards") >= 1).any())
        return default

    def texts(self) -> dict[str, str]:
        with _reading(f"{self.source}: it"):
            texts = {name: _text(value) for name, value in self.demo.attrs.items() if isinstance(value, (bytes, str))}
        # model_file is the simulator's whole XML, ep_meta its JSON.
        return {
            name.removeprefix("info/"): text for name, text in texts.items() if name not in (_TEXT, "model_file", "ep_meta")
        }

    def _instruction(self) -> str:
        own = _text(self.demo.attrs.get(_TEXT))
        if own:
            return own
        try:
            return str(json.loads(_text(self.demo.attrs.get("ep_meta")) or "{}")["lang"])
        except (ValueError, KeyError, TypeError):
            return self.task

    def _shape(self, name: str) -> tuple[int, ...]:
        import h5py

        with _reading(f"{self.source}: {name}"):
            item = self.demo.get(name)
        if not isinstance(item, h5py.Dataset) or not item.shape:
            present = ", ".join(
                sorted([*(set(self.demo) - {"obs", "next_obs"}), *(f"obs/{key}" for key in self.demo.get("obs", ()))])
            )
            raise InputError(f"{self.source}: no {name!r} (present: {present}); drop it with --skip-bad")
        return tuple(item.shape)

    def _read(self, name: str, rows: int, last: bool = False) -> np.ndarray:
        shape = self._shape(name)
        if shape[0] != self.num_actions:
            raise InputError(f"{self.source}: {name} has {shape[0]} steps, actions {self.num_actions}; drop it with --skip-bad")
        usual = self.features.get(name.removeprefix("next_"))
        if usual is not None and shape[1:] != usual.shape:
            raise InputError(
                f"{self.source}: {name} is {list(shape[1:])} a step, {list(usual.shape)} in the first episode; drop it with --skip-bad"
            )
        with _reading(f"{self.source}: {name}"):
            values = self.demo[name][-rows:] if last else self.demo[name][:rows]
        if values.dtype.kind not in "biuf":
            raise InputError(f"{self.source}: {name} is of {values.dtype}, not numbers; drop it with --skip-bad")
        return np.asarray(values)


@dataclass(frozen=True)
class RobomimicDataset:
    """An opened dataset. demos: split -> [(file, name of the group)]; tasks: file -> its instruction.

    damaged: files of a folder that cannot be read -> why; each is an unreadable episode of every split (how many it had, nobody knows).
    """

    path: Path
    name: str
    features: dict[str, Feature]
    demos: dict[str, list[tuple[Path, str]]]
    tasks: dict[Path, str]
    damaged: dict[Path, str]
    description: dict[str, Any] | None
    format: str = "robomimic"

    @property
    def splits(self) -> Mapping[str, int]:
        return {name: len(demos) for name, demos in self.demos.items()}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.suffix in SUFFIXES if path.is_file() else bool(_files(path)) and not (path / "metadata.json").exists()

    @classmethod
    def open(cls, path: str | Path) -> RobomimicDataset:
        """Open a file, or a folder of files of one robot, of which some may be damaged. InputError says what is missing."""
        path = Path(path)
        files = _files(path)
        if not files:
            raise InputError(f"{path}: no .hdf5 file; give robomimic's file, or a folder of them")
        heads: dict[Path, _Head] = {}
        damaged: dict[Path, str] = {}
        for file in files:
            try:
                with _reading(f"{file}: it"), _open(file) as opened:
                    heads[file] = _head(opened, file)
            except InputError as error:
                if len(files) == 1:
                    raise
                damaged[file] = f"{error}, or leave the file out with --skip-bad"
        if not heads:
            raise InputError(f"{path}: none of its {len(files)} files can be read; {next(iter(damaged.values()))}")
        first = next(iter(heads.values()))
        for file, head in heads.items():
            if head.derived.get("action") != first.derived.get("action") and not _same_but_limits(head.derived, first.derived):
                raise InputError(
                    f"{file}: has other actions than {next(iter(heads)).name} (env_args); give files of one robot, one by one"
                )
        derived = first.derived
        if "action" in derived and len(heads) > 1:
            derived = {
                **derived,
                "action": {**derived["action"], **_limits([head.derived["action"] for head in heads.values()])},
            }
        splits = dict.fromkeys(split for head in heads.values() for split in head.splits)
        demos = {
            split: [
                (file, name)
                for file in files
                for name in (heads[file].splits.get(split, ()) if file in heads else ("episodes",))
            ]
            for split in splits
        }
        tasks = {file: head.task for file, head in heads.items()}
        description = merge_description(derived, find_description(path))
        name = path.stem if path.is_file() else path.name
        return cls(path, name, first.features, demos, tasks, damaged, description)

    def episodes(self, split: str, indices: range) -> Iterator[RobomimicEpisode | InputError]:
        opened: tuple[Path, Any] | None = None
        for number, (file, name) in zip(indices, self.demos[split][indices.start : indices.stop], strict=True):
            source = f"{self.name} {split} #{number} ({file.name} {name})"
            if file in self.damaged:
                yield InputError(f"{source}: {self.damaged[file]}")
                continue
            try:
                # Never closed: the episodes that were given out still read from it, and h5py closes it after the last of them.
                opened = opened if opened and opened[0] == file else (file, _open(file))
                demo = opened[1]["data"].get(name)
            except InputError as error:
                yield InputError(f"{source}: {error}")
                continue
            except _DAMAGE as error:
                yield InputError(f"{source}: cannot be read ({_line(error)}); copy the file again")
                continue
            if demo is None:
                yield InputError(f"{source}: the mask {split!r} names it, but it is not in the file; drop it with --skip-bad")
            else:
                yield RobomimicEpisode(demo, source, self.tasks[file], self.features)


@dataclass(frozen=True)
class _Head:
    """What a file says of all its episodes."""

    features: dict[str, Feature]
    derived: dict[str, Any]
    task: str
    splits: dict[str, list[str]]


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """Damage of an HDF5 file, which h5py raises anywhere, as an InputError about `what`."""
    try:
        yield
    except _DAMAGE as error:
        raise InputError(f"{what} cannot be read ({_line(error)}); copy the file again") from None


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}"))


def _open(file: Path) -> Any:
    import h5py

    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file}: not a readable HDF5 file ({_line(error)}); copy it again") from None
    if not isinstance(opened.get("data"), h5py.Group) or not len(opened["data"]):
        raise InputError(
            f"{file}: no episodes under `data` ({', '.join(opened) or 'it is empty'}); give a file in robomimic's layout"
        )
    return opened


def _splits(opened: Any, file: Path) -> dict[str, list[str]]:
    with _reading(f"{file}: its list of episodes or a mask"):
        everything = _sorted(list(opened["data"]))
        masks = {name: _sorted([_text(entry) for entry in mask[:]]) for name, mask in opened.get("mask", {}).items()}
    if OWN in opened["data"].attrs:
        return masks
    return {"train": everything, **masks, **({"all": everything} if "train" in masks and "all" not in masks else {})}


def _sorted(names: list[str]) -> list[str]:
    """By their number: demo_10 after demo_9."""
    return sorted(names, key=lambda name: (int((re.findall(r"\d+", name) or ["0"])[-1]), name))


def _head(opened: Any, file: Path) -> _Head:
    data = opened["data"]
    splits = _splits(opened, file)
    own, args, problem = (_json(data, key, file) for key in (OWN, "env_args", "problem_info"))
    demos = _sorted(list(data))
    try:
        demo = next(data[name] for name in demos if "actions" in data[name] and "obs" in data[name])
        features = _features(demo)
        size = int(demo["actions"].shape[1])
    except StopIteration:
        raise InputError(
            f"{file}: its episodes have no `actions` or no `obs`; make them of the states with robomimic's dataset_states_to_obs.py"
        ) from None
    except _DAMAGE as error:
        raise InputError(f"{file}: its first episode cannot be read ({_line(error)}); copy it again") from None
    task = problem.get(_TEXT)
    # LIBERO has written it as text, as a list of words and as quoted text.
    text = (" ".join(map(str, task)) if isinstance(task, list) else str(task or "")).strip('" ') or task_name(args)
    if own:
        return _Head(features, own, text, splits)
    derived = describe_actions(args, size, lambda: _bounds(data, demos, size))
    observations: dict[str, Any] = describe_observations(features)
    if _upside_down(data):
        cameras = [ours for ours in observations if ours.startswith("image_")]
        observations |= {ours: {"key": observations[ours], "rotate180": True} for ours in cameras}
    derived |= {"observations": observations, "instruction": _TEXT}
    if "rewards" in features:
        derived["reward"] = "rewards"
    return _Head(features, derived, text, splits)


def _upside_down(data: Any) -> bool:
    """LIBERO keeps its pictures as OpenGL renders them, the lowest row first; its files have the task's BDDL. robomimic's are upright.

    They are turned rather than mirrored, as OpenVLA has turned them for its RLDS copies and everybody since.
    """
    return "bddl_file_name" in data.attrs and _text(data.attrs.get("macros_image_convention")) != "opencv"


def _features(demo: Any) -> dict[str, Feature]:
    import h5py

    features = {_TEXT: Feature(_TEXT, "text", "string")}
    if _EMBEDDING in demo.attrs:
        features[_EMBEDDING] = Feature(_EMBEDDING, "tensor", "float32", tuple(demo.attrs[_EMBEDDING].shape))
    items = {name: demo[name] for name in (*_ROWS, "states") if name in demo} | {
        f"obs/{key}": demo["obs"][key] for key in demo["obs"]
    }
    for name, item in items.items():
        if not isinstance(item, h5py.Dataset) or not item.shape:
            continue
        dtype, shape = item.dtype, tuple(item.shape[1:])
        image = dtype == np.uint8 and len(shape) == 3 and shape[-1] == 3 and name.startswith("obs/")
        features[name] = Feature(
            name, "image" if image else "tensor", str(dtype), shape, "" if dtype.kind in "biuf" else f"of {dtype}, not numbers"
        )
    return features


def _bounds(data: Any, demos: list[str], size: int) -> tuple[list[float], list[float]]:
    """Least and greatest of each of `size` actions, over the episodes that can be read and have so many."""
    low, high = [], []
    for name in demos:
        try:
            actions = data[name]["actions"][:]
        except _DAMAGE:
            continue
        if actions.shape[1:] == (size,) and len(actions) and actions.dtype.kind in "biuf":
            low.append(actions.min(axis=0))
            high.append(actions.max(axis=0))
    if not low:
        raise InputError(f"{data.file.filename}: no actions can be read; copy it again")
    return np.nanmin(low, axis=0).tolist(), np.nanmax(high, axis=0).tolist()


def _limits(actions: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        "low": np.min([action["low"] for action in actions], axis=0).tolist(),
        "high": np.max([action["high"] for action in actions], axis=0).tolist(),
    }


def _same_but_limits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    without = [
        {key: value for key, value in (head.get("action") or {}).items() if key not in ("low", "high")} for head in (a, b)
    ]
    return without[0] == without[1] and a["actions"] == b["actions"]


def _json(data: Any, key: str, file: Path) -> dict[str, Any]:
    text = _text(data.attrs.get(key))
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{file}: its attribute {key} is not valid JSON ({error}); repair it with h5py") from None
    return values if isinstance(values, dict) else {}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
