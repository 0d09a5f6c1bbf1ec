"""draft: a first robot_rl.json for a dataset that nothing describes, guessed from its features and a sample of its episodes.

Each guess has a line in `notes`; a person should read them before training. Works on every format, by the Dataset protocol alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Dataset, Feature, RawEpisode
from data.open_x.registry import registry
from data.open_x.rule import make_rule

EPISODES = 16
_WRIST = re.compile(r"wrist|hand|gripper|finger")
_PRIMARY = re.compile(r"primary|static|front|agentview|exterior|high|image_0|(^|\W)(image|img)$")
_NOT_RGB = re.compile(r"depth|mask|segment")
_ROBOT = re.compile(r"proprio|state|joint|qpos|eef|effector|tcp|cartesian|pose|robot_obs|gripper")
_WORLD = re.compile(r"env|object|obj\b")
_INSTRUCTION = re.compile(r"instruction|language|task|text|prompt")
_EXTRA = ("image_secondary", "image_tertiary", "image_quaternary")
_ARM = ["x", "y", "z", "roll", "pitch", "yaw"]
_GUESSED_HZ = 10.0
_GUESSED_TEXT = "unknown"


def draft(dataset: Dataset) -> dict[str, Any]:
    """A description that `open_dataset(..., description=)` takes once what nothing tells, and is None in it, is filled in.

    That can be the control rate and the text of the instruction. InputError without an episode or an action.
    A description that the dataset or the registry has, and that fits its features, is given as it is.
    """
    for values, where in (
        (dataset.description, "the dataset itself"),
        (registry().get(dataset.name), "the registry of Open-X"),
    ):
        if values is not None and _fits(values, dataset.features):
            return {**copy.deepcopy(values), "notes": [*values.get("notes", []), f"This description is from {where}."]}
    sample = _sample(dataset)
    notes: list[str] = []
    cameras = _cameras(dataset.features, notes)
    proprio, state = _vectors(dataset.features, notes)
    parts = _action_parts(dataset, notes)
    actions = [_table(episode, parts) for episode in sample]
    measured = [_table(episode, proprio) for episode in sample] if proprio else None
    action = _action(np.concatenate(actions), _relation(actions, measured, notes), _rate(dataset, sample, notes), notes)
    instruction = _first(dataset.features, "text", _INSTRUCTION)
    texts = [text for episode in sample if instruction and (text := str(episode.step(instruction)[0]).strip())]
    instruction = instruction if texts else None
    notes.append(
        f"{instruction} looks like the instruction, such as {texts[0]!r}."
        if texts
        else "No instruction was found: fill in `text` of `instruction`."
    )
    vectors = {"proprio": proprio, "state": state}
    result: dict[str, Any] = {
        "action": action,
        "observations": {**cameras, **{ours: keys[0] if len(keys) == 1 else keys for ours, keys in vectors.items() if keys}},
        "actions": parts[0] if len(parts) == 1 else parts,
        "instruction": instruction or {"text": None},
    }
    for ours, pattern in (("reward", r"reward$"), ("terminated", r"is_terminal$|terminated$|terminations$|(^|\W)dones?$")):
        key = _first(dataset.features, "tensor", re.compile(pattern))
        if key:
            result[ours] = key
    if not result["observations"]:
        raise InputError(
            f"{dataset.path}: no camera and no vector among its features ({', '.join(dataset.features)}); name them"
        )
    return {**result, "notes": notes}


def provisional(drafted: dict[str, Any]) -> dict[str, Any]:
    """A draft with something in the places that a person has to fill in: good enough to look at the data, not to train on them."""
    action = {**drafted["action"], "control_hz": drafted["action"]["control_hz"] or _GUESSED_HZ}
    unsaid = drafted.get("instruction") == {"text": None}
    return {**drafted, "action": action} | ({"instruction": {"text": _GUESSED_TEXT}} if unsaid else {})


def _fits(values: dict[str, Any], features: Mapping[str, Feature]) -> bool:
    try:
        make_rule(values, features, "draft")
    except InputError:
        return False
    return True


def _sample(dataset: Dataset) -> list[RawEpisode]:
    """Episodes spread over the largest split; unreadable ones are left out."""
    split = max(dataset.splits, key=lambda name: dataset.splits[name], default=None)
    count = dataset.splits[split] if split is not None else 0
    episodes, error = [], InputError(f"{dataset.path}: has no episodes to look at")
    for index in sorted({int(i) for i in np.linspace(0, count - 1, min(EPISODES, count))}) if count else ():
        for item in dataset.episodes(str(split), range(index, index + 1)):
            if isinstance(item, InputError):
                error = item
            elif item.num_steps > 1:
                episodes.append(item)
    if not episodes:
        raise error
    return episodes


def _cameras(features: Mapping[str, Feature], notes: list[str]) -> dict[str, str]:
    rgb = [
        key
        for key, leaf in features.items()
        if leaf.kind == "image" and not leaf.unsupported and not _NOT_RGB.search(key.lower())
    ]
    wrist = [key for key in rgb if _WRIST.search(key.lower())]
    others = sorted((key for key in rgb if key not in wrist), key=lambda key: not _PRIMARY.search(key.lower()))
    cameras = dict(zip(("image_primary", *_EXTRA), others, strict=False)) | dict(zip(("image_wrist",), wrist, strict=False))
    if cameras:
        notes.append(
            "Cameras were named by their keys: " + ", ".join(f"{theirs} is {ours}" for ours, theirs in cameras.items())
        )
    left = sorted(set(rgb) - set(cameras.values()))
    return cameras | {f"image_wrist_{number}": key for number, key in enumerate((key for key in left if key in wrist), 2)}


def _vectors(features: Mapping[str, Feature], notes: list[str]) -> tuple[list[str], list[str]]:
    """Keys for proprio, and for state."""
    keys = [key for key in _numbers(features) if not _is_action(key) and len(features[key].shape) == 1]
    world = [key for key in keys if _WORLD.search(key.lower())]
    robot = [key for key in keys if key not in world and _ROBOT.search(key.lower())]
    named = [key for key in robot if re.search(r"proprio$|(^|\W)state$", key)]
    proprio = named[:1] or [key for key in robot if not re.search(r"vel|effort|torque|force|_sin$|_cos$", key)]
    if proprio:
        notes.append(
            f"Proprio is {', '.join(proprio)}, by name; other vectors: {', '.join(k for k in keys if k not in proprio) or 'none'}."
        )
    return proprio, world[:1]


def _action_parts(dataset: Dataset, notes: list[str]) -> list[str]:
    keys = [key for key in _numbers(dataset.features) if _is_action(key)]
    plain = [key for key in keys if re.fullmatch(r"(.*\W)?actions?", key)]
    parts = plain[:1] or [key for key in keys if not re.search(r"terminate|is_|_dict", key)] or keys
    if not parts:
        raise InputError(f"{dataset.path}: no feature looks like an action; its features are {', '.join(dataset.features)}")
    if len(parts) > 1:
        # Motion before the gripper, as everywhere in Open-X.
        parts.sort(key=lambda key: (bool(re.search(r"grip|close|open", key)), bool(re.search(r"rot|angle|orn", key))))
        notes.append(f"The action is put together from {', '.join(parts)}; check the order.")
    return parts


def _numbers(features: Mapping[str, Feature]) -> list[str]:
    return [
        key
        for key, leaf in features.items()
        if leaf.kind == "tensor" and not leaf.unsupported and leaf.dtype != "bool" and len(leaf.shape) <= 1
    ]


def _is_action(key: str) -> bool:
    return bool(re.search(r"(^|\W)actions?($|\W)|^action", key.lower()))


def _first(features: Mapping[str, Feature], kind: str, pattern: re.Pattern[str]) -> str | None:
    return next(
        (k for k, leaf in features.items() if leaf.kind == kind and not leaf.unsupported and pattern.search(k.lower())), None
    )


def _table(episode: RawEpisode, keys: list[str]) -> np.ndarray:
    columns = [np.asarray(episode.step(key), np.float64) for key in keys]
    rows = min(map(len, columns))
    return np.concatenate([column[:rows].reshape(rows, -1) for column in columns], axis=1)


def _relation(actions: list[np.ndarray], measured: list[np.ndarray] | None, notes: list[str]) -> str:
    """What the first numbers of an action are to the proprio: "delta" or "absolute" of it, or "unknown"."""
    if measured is None:
        return "unknown"
    pairs = [(a[: len(p) - 1], p[:-1], p[1:]) for a, p in zip(actions, measured, strict=True)]
    commands, before, after = (np.concatenate([pair[i][: min(map(len, pair))] for pair in pairs]) for i in range(3))
    arm = commands[:, : min(6, commands.shape[1])]
    moved, reached = _best_correlation(arm, after - before), _best_correlation(arm, after)
    relation = "unknown" if max(moved, reached) < 0.5 else "delta" if moved >= reached else "absolute"
    notes.append(
        f"Actions correlate {moved:.2f} with the motion of the proprio and {reached:.2f} with where it arrives: {relation}."
    )
    return relation


def _best_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """The median over the columns of `left` of the best correlation with any column of `right`."""
    scale = [(x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), np.inf) for x in (left, right)]
    return float(np.median(np.abs(scale[0].T @ scale[1] / len(left)).max(1)))


def _action(actions: np.ndarray, relation: str, control_hz: float | None, notes: list[str]) -> dict[str, Any]:
    actions = actions[np.isfinite(actions).all(1)]
    if not len(actions):
        raise InputError("no action of the sampled episodes is finite; repair the data first")
    size = actions.shape[1]
    grippers = [column for column in range(size) if _bimodal(actions[:, column])]
    names = [f"action_{column}" for column in range(size)]
    frame = "unknown"
    if (size == 7 and grippers in ([6], [])) or (size == 6 and not grippers) or (size == 4 and grippers == [3]):
        names = [*_ARM[: 3 if size == 4 else 6], "gripper"][:size]
        frame = {"delta": "end_effector_delta_base", "absolute": "end_effector_pose"}.get(relation, "unknown")
        notes.append(
            f"{size} numbers{' with a gripper last' if grippers else ''}: taken for {', '.join(names)}, which joints might be too."
        )
    elif grippers:
        names = [f"gripper_{column}" if column in grippers else f"joint_{column}" for column in range(size)]
        frame = {"delta": "joint_delta", "absolute": "joint_position"}.get(relation, "unknown")
        notes.append(f"Dimensions {grippers} have two values most of the time: grippers; the others are taken for joints.")
    low, high = np.quantile(actions, 0.001, axis=0), np.quantile(actions, 0.999, axis=0)
    for column in grippers:
        low[column], high[column] = actions[:, column].min(), actions[:, column].max()
        notes.append(f"{names[column]} lies in [{low[column]:g}, {high[column]:g}]: say whether the larger value opens it.")
    notes.append(f"low and high are the 0.1% and 99.9% quantiles of {len(actions)} actions; units are not known.")
    dead = [name for name, a, b in zip(names, low, high, strict=True) if a == b]
    notes += [f"{', '.join(dead)}: never moves in the sample."] if dead else []
    return {
        "names": names,
        "units": ["1"] * size,
        "low": [float(f"{value:.6g}") for value in low],
        "high": [float(f"{value:.6g}") for value in high],
        "frame": frame,
        "control_hz": control_hz,
    }


def _bimodal(values: np.ndarray) -> bool:
    """Nearly always at either end of its range, and at both of them often enough."""
    low, high = values.min(), values.max()
    if high - low < 1e-6:
        return False
    place = (values - low) / (high - low)
    closed, opened = (place < 0.1).mean(), (place > 0.9).mean()
    return bool(closed + opened > 0.85 and min(closed, opened) > 0.01)


def _rate(dataset: Dataset, sample: list[RawEpisode], notes: list[str]) -> float | None:
    described = ((dataset.description or {}).get("action") or {}).get("control_hz")
    if isinstance(described, (int, float)) and described > 0:
        return float(described)
    key = next((key for key in _numbers(dataset.features) if re.search(r"(^|\W)timestamps?$", key)), None)
    if key is not None:
        steps = np.median(np.diff(np.asarray(sample[0].step(key), np.float64).ravel()))
        if steps > 0:
            notes.append(f"control_hz is from {key}.")
            return float(f"{1 / steps:.4g}")
    notes.append("Nothing tells the control rate: fill in `control_hz` of `action`.")
    return None
