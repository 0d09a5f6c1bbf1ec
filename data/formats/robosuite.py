"""What robosuite's `env_args` (in robomimic's files, LIBERO's and robocasa's) say of actions and observations, as a robot_rl.json.

A controller is given numbers in [-1, 1] and scales them to metres and radians; so does the description. Rotations, which robosuite
takes as axis-angle vectors, become roll, pitch and yaw, and its gripper (-1 open, 1 closed) 1 open and 0 closed, as in Open-X data.
Not a reader: it opens nothing, and answers None for a controller that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from data.formats.base import Feature

Bounds = Callable[[], tuple[list[float], list[float]]]
"""The least and greatest of each number of the data's actions."""

_ACTIONS = "actions"
_CAMERAS = {
    "image_primary": ("agentview_image", "agentview_rgb", "robot0_agentview_left_image"),
    "image_secondary": ("robot0_agentview_right_image",),
    "image_wrist": ("robot0_eye_in_hand_image", "eye_in_hand_rgb"),
}
_OTHER_CAMERAS = ("image_primary", "image_secondary", "image_tertiary", "image_quaternary", "image_quinary", "image_senary")
_PROPRIO = (
    ("robot{}_eef_pos", "robot{}_eef_quat", "robot{}_gripper_qpos"),
    ("ee_pos", "ee_ori", "gripper_states"),
)
_MOTIONS = {
    "JOINT_POSITION": ("joint_delta", "rad"),
    "JOINT_VELOCITY": ("joint_velocity", "rad/s"),
    "JOINT_TORQUE": ("joint_torque", "N m"),
}
_KINDS = {"OSC_POSE": 6, "OSC_POSITION": 3, **dict.fromkeys(_MOTIONS, 0)}
_GRIPPER = {"scale": -0.5, "offset": 0.5}


def describe_actions(env_args: Mapping[str, Any], size: int, bounds: Bounds) -> dict[str, Any]:
    """`action`, `actions` and `notes` of a robot_rl.json for actions of `size` numbers; no control_hz where the file has none.

    bounds: reads the data for those numbers that no controller limits.
    """
    settings = env_args.get("env_kwargs")
    settings = settings if isinstance(settings, Mapping) else {}
    rate = settings.get("control_freq")
    try:
        arms = [_Arm(config, name) for name, config in _controllers(settings)]
        columns = _assemble(arms, size, bounds)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Settings of a robosuite that we have not seen.
        arms, columns = [], None
    notes = []
    if columns is None:
        frame, columns = "unknown", _unnamed(range(size), bounds)
        notes = ["the file does not say what the actions are: they are unnamed and their limits are those of the data"]
    else:
        frame = arms[0].frame
        named = sum(len(arm) for arm in arms)
        if named < size - len(arms):
            notes = [
                f"actions {named + len(arms)} to {size - 1} (base, torso, mode) are unnamed; their limits are those of the data"
            ]
    action = {
        "names": [column["name"] for column in columns],
        "units": [column["unit"] for column in columns],
        "low": [column["low"] for column in columns],
        "high": [column["high"] for column in columns],
        "frame": frame,
        **({"control_hz": float(rate)} if isinstance(rate, (int, float)) and rate > 0 else {}),
    }
    return {"action": action, "actions": _parts(columns), **({"notes": notes} if notes else {})}


def describe_observations(features: Mapping[str, Feature]) -> dict[str, Any]:
    """`observations` of a robot_rl.json from the names that robosuite gives them; ours -> "obs/..."."""
    images = [key for key, feature in features.items() if feature.kind == "image"]
    observations: dict[str, Any] = {}
    for ours, names in _CAMERAS.items():
        found = [f"obs/{name}" for name in names if f"obs/{name}" in images]
        if found:
            observations[ours] = found[0]
    wrists = [key for key in images if "eye_in_hand" in key or "wrist" in key]
    if "image_wrist" not in observations and wrists:
        observations["image_wrist"] = wrists[0]
    for key in images:
        free = [ours for ours in _OTHER_CAMERAS if ours not in observations]
        if key not in observations.values() and free:
            observations[free[0]] = key
    proprio = [f"obs/{name.format(robot)}" for names in _PROPRIO for robot in range(4) for name in names]
    present = [key for key in dict.fromkeys(proprio) if key in features and features[key].kind == "tensor"]
    if present:
        observations["proprio"] = present
    state = next((key for key in ("obs/object", "obs/object-state") if key in features), None)
    return {**observations, "state": state} if state else observations


def task_name(env_args: Mapping[str, Any]) -> str:
    """The environment's name in words: "NutAssemblySquare" -> "nut assembly square"; "" without one."""
    name = env_args.get("env_name")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_-]+", " ", name).lower().strip() if isinstance(name, str) else ""


class _Arm:
    """The numbers of one arm's controller, in order, without the gripper. KeyError, ValueError for an unknown one."""

    def __init__(self, config: Mapping[str, Any], prefix: str) -> None:
        self._config, self._prefix, self.kind = config, prefix, str(config["type"])
        if self.kind not in _KINDS or config.get("impedance_mode", "fixed") != "fixed":
            raise ValueError(self.kind)
        self._size = _KINDS[self.kind] or len(config["output_max"])
        # robosuite 1.4 says control_delta, 1.5 input_type.
        self._moves = bool(config.get("control_delta", config.get("input_type", "delta") == "delta"))

    def __len__(self) -> int:
        return self._size

    @property
    def frame(self) -> str:
        if self.kind in _MOTIONS:
            return _MOTIONS[self.kind][0] if self._moves or self.kind != "JOINT_POSITION" else "joint_position"
        place = "world" if self._config.get("input_ref_frame") == "world" else "base"
        return f"end_effector_delta_{place}" if self._moves else f"end_effector_{place}"

    def columns(self, start: int, bounds: Bounds) -> list[dict[str, Any]]:
        if self.kind in _MOTIONS:
            names, units = [f"joint_{index + 1}" for index in range(self._size)], [_MOTIONS[self.kind][1]] * self._size
            rotated = [False] * self._size
        else:
            names, units = ["x", "y", "z", "roll", "pitch", "yaw"][: self._size], (["m"] * 3 + ["rad"] * 3)[: self._size]
            rotated = [unit == "rad" for unit in units]
        if self._moves or self.kind in ("JOINT_VELOCITY", "JOINT_TORQUE"):
            low, high, scale, offset = self._scaling()
        else:
            # What is absolute is taken as it is given.
            low, high = (np.asarray(bound[start:]) for bound in bounds())
            scale, offset = np.ones(self._size), np.zeros(self._size)
        return [
            {
                "index": start + index,
                "name": self._prefix + names[index],
                "unit": units[index],
                "low": float(low[index]),
                "high": float(high[index]),
                "part": {
                    **({} if scale[index] == 1 else {"scale": float(scale[index])}),
                    **({} if offset[index] == 0 else {"offset": float(offset[index])}),
                    **({"rotation": ["axis_angle", "euler_xyz"]} if rotated[index] else {}),
                },
            }
            for index in range(self._size)
        ]

    def _scaling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(low, high, scale, offset), each [size]: output = input * scale + offset."""
        ends = [
            np.broadcast_to(np.asarray(self._config[f"{side}_{end}"], np.float64), self._size)
            for side in ("input", "output")
            for end in ("min", "max")
        ]
        scale = (ends[3] - ends[2]) / (ends[1] - ends[0])
        # Limits in decimal digits: of a scale of .05 nothing but .05 should be left.
        return ends[2], ends[3], np.round(scale, 12), np.round(ends[2] - ends[0] * scale, 12)


def _controllers(settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(prefix of the names, arm controller) of each robot, in the order of the action."""
    robots, configs = settings.get("robots", ["robot"]), settings["controller_configs"]
    count = len(robots) if isinstance(robots, list) else 1
    configs = configs if isinstance(configs, list) else [configs] * count
    return [(f"robot{index}_" if count > 1 else "", _arm_config(config)) for index, config in enumerate(configs)]


def _arm_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """robosuite 1.5 composes controllers of body parts; the arm's comes first in the action when there is one arm."""
    if "body_parts" not in config:
        return config
    parts = {**config["body_parts"], **config["body_parts"].get("arms", {})}
    arms = [parts[side] for side in ("right", "left") if side in parts]
    if len(arms) != 1:
        raise ValueError(f"{len(arms)} arms")
    return arms[0]


def _assemble(arms: list[_Arm], size: int, bounds: Bounds) -> list[dict[str, Any]] | None:
    """Columns of the whole action: each arm and its gripper, then, for a single robot, whatever else it has."""
    if not arms or len({arm.frame for arm in arms}) != 1:
        return None
    grippers = sum(map(len, arms)) != size
    columns: list[dict[str, Any]] = []
    for arm in arms:
        columns += arm.columns(len(columns), bounds)
        if grippers:
            name = f"{arm._prefix}gripper"
            columns.append({"index": len(columns), "name": name, "unit": "open", "low": 0.0, "high": 1.0, "part": _GRIPPER})
    if len(columns) > size or (len(columns) < size and len(arms) > 1):
        return None
    return columns + _unnamed(range(len(columns), size), bounds)


def _unnamed(indices: range, bounds: Bounds) -> list[dict[str, Any]]:
    low, high = bounds() if indices else ([], [])
    return [{"index": i, "name": f"action_{i}", "unit": "1", "low": low[i], "high": high[i], "part": {}} for i in indices]


def _parts(columns: list[dict[str, Any]]) -> list[Any]:
    """Neighbours that are treated alike are one part; so are the numbers of a rotation, whatever their scales."""
    parts: list[Any] = []
    for alike, group in groupby(columns, lambda column: column["part"].get("rotation", column["part"])):
        run = list(group)
        key = f"{_ACTIONS}[{run[0]['index']}:{run[-1]['index'] + 1}]"
        how = dict(run[0]["part"])
        if any(column["part"] != how for column in run):
            how |= {
                name: [column["part"].get(name, default) for column in run]
                for name, default in (("scale", 1.0), ("offset", 0.0))
            }
        parts.append({"key": key, **how} if alike else key)
    return parts
