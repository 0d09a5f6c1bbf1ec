"""What a LeRobotDataset's info.json says of its features, as a description that data.open_x reads. Nothing is guessed about units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.formats.base import Feature

_WRIST = re.compile(r"wrist|hand|gripper", re.IGNORECASE)
_ORDER = ("secondary", "tertiary", "quaternary")


def describe(
    info: Mapping[str, Any], features: Mapping[str, Feature], limits: Mapping[str, list[float]] | None
) -> dict[str, Any]:
    """The description; without an action, or without its limits where there are no statistics that tell them.

    limits: min and max of the action over the dataset. info.json does not say in which unit an action is, whether it is a target or
    a motion, or of what, unless the names do: units are "1", and the frame is the robot's type and what its names show.
    """
    description: dict[str, Any] = {"observations": _observations(features), "instruction": "task"}
    action = features.get("action")
    if action is not None and len(action.shape) == 1:
        names = _names(info["features"]["action"].get("names"), action.shape[0])
        kind = "joint positions" if all(name.endswith(".pos") for name in names) else "actions as recorded"
        description["action"] = {
            "names": names,
            "units": ["1"] * len(names),
            "frame": f"{info.get('robot_type') or 'unknown robot'} {kind}",
            "control_hz": info["fps"],
        }
        if limits is not None:
            description["action"] |= {"low": limits["min"], "high": limits["max"]}
    # `next.done` marks the last frame of a recording, which a time limit ends too: it does not say that the task ended.
    keys = {"reward": "next.reward", "terminated": "next.terminated"}
    return description | {ours: theirs for ours, theirs in keys.items() if theirs in features}


def _names(names: Any, size: int) -> list[str]:
    # {"motors": [...]} or {"axes": [...]} in older datasets.
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == size:
        return [str(name) for name in names]
    return [f"action_{index}" for index in range(size)]


def _observations(features: Mapping[str, Feature]) -> dict[str, str]:
    cameras = [key for key, feature in features.items() if feature.kind == "image" and not feature.unsupported]
    wrists = [key for key in cameras if _WRIST.search(key)]
    others = [key for key in cameras if key not in wrists]
    if not others:
        others, wrists = wrists[:1], wrists[1:]
    found = dict(zip(_cameras("image_primary", "image"), others, strict=False))
    found |= dict(zip(_cameras("image_wrist", "image_wrist"), wrists, strict=False))
    found |= {"proprio": "observation.state"} if "observation.state" in features else {}
    return found | ({"state": "observation.environment_state"} if "observation.environment_state" in features else {})


def _cameras(first: str, more: str) -> list[str]:
    return [first, *(f"{more}_{word}" for word in _ORDER), *(f"{more}_{number}" for number in range(5, 100))]
