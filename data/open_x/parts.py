"""Parts: a vector of ours put together from pieces of a dataset's step features, each described by a string or a small JSON object.

`"observation/state[0:6]"` is a slice of a feature; an object adds what is done to it, in this order whatever the order in the file:

    {"key": "action[3:7]", "scale": 1, "offset": 0, "rotation": ["quaternion_xyzw", "euler_xyz"], "delta": "next", "angles": true,
     "into": {"key": "observation/pose[3:6]", "rotation": "euler_xyz"}, "clip": [0, 1], "gripper": "binarize"}

`{"constant": 0, "size": 3}` fills in what a dataset lacks. A camera is a feature, or `{"key": "obs/agentview_rgb", "rotate180": true}`
where the data have it upside down. There is no function for one dataset.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data.errors import InputError, reason
from data.rotations import convert, from_quaternion, inverse, multiply, representation_size

Read = Callable[[str], np.ndarray]
"""Step feature -> its values over time, [N, D] (or [N-1, D] where a format has no action for the last observation)."""

GRIPPER_OPEN, GRIPPER_CLOSED = 0.95, 0.05
_RELATIVE = 0.1
_QUATERNION = "quaternion_xyzw"
_KEY = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<start>-?\d+)?(?P<colon>:)?(?P<stop>-?\d+)?\])?")


@dataclass(frozen=True)
class Slice:
    """`name[start:stop]` of a feature's (flattened) vector; `name[i]` one number of it; `name` all of it."""

    name: str
    start: int | None = None
    stop: int | None = None

    @classmethod
    def parse(cls, text: Any) -> Slice:
        match = _KEY.fullmatch(text) if isinstance(text, str) else None
        if match is None or (match[2] and not match["colon"] and match["start"] is None):
            raise InputError(f'{text!r} is no feature; write "observation/state", "observation/state[0:6]" or "...[3]"')
        start, stop = (None if match[group] is None else int(match[group]) for group in ("start", "stop"))
        if match[2] and not match["colon"]:
            stop = None if start == -1 else (start or 0) + 1
        return cls(match["name"], start, stop)

    def read(self, read: Read) -> np.ndarray:
        values = read(self.name)
        picked = values[:, self.start : self.stop]
        if not picked.shape[1] or max(abs(self.start or 0), abs(self.stop or 0)) > values.shape[1]:
            raise InputError(f"{self} does not lie within the {values.shape[1]} numbers of {self.name}")
        return picked

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.name
        start, stop = ("" if bound is None else bound for bound in (self.start, self.stop))
        return f"{self.name}[{start}:{stop}]"


@dataclass(frozen=True)
class Part:
    """One piece; see the module. Without `key` it is `size` times `constant`.

    scale, offset: x * scale + offset, a number or one a dimension. rotation: from one representation of data.rotations to another.
    delta: "next", the difference to the following step, or another feature, which is subtracted (absolute targets become motions).
    angles: differences are wrapped into [-pi, pi]; with `rotation` a delta is a rotation, about the axes of the base. into: an
    orientation; a vector, or a small rotation (first converted to axis-angle), is expressed in its frame. clip: [low, high].
    gripper: "binarize" (above .95 is 1, below .05 is 0, between is the next settled value) or "relative" (above .1 closes, below -.1
    opens, between keeps; becomes 1 open, 0 closed).
    """

    key: Slice | None = None
    constant: float = 0.0
    size: int = 0
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    rotation: tuple[str, str] | None = None
    delta: Slice | None = None
    angles: bool = False
    into: tuple[Slice, str] | None = None
    clip: tuple[float, float] | None = None
    gripper: str = ""

    @classmethod
    def parse(cls, value: Any, where: str) -> Part:
        value = {"key": value} if isinstance(value, str) else value
        known = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) - known or ("key" in value) == ("size" in value):
            raise InputError(
                f"{where}: {value!r} is no part; it needs `key`, or `constant` and `size`, and may have {sorted(known)}"
            )
        try:
            return cls(**{name: _parse_field(name, content) for name, content in value.items()})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"{where}: {value!r} is no part ({reason(error)})") from None

    @property
    def features(self) -> set[str]:
        """The step features that it reads."""
        slices = (self.key, self.delta, self.into[0] if self.into else None)
        return {item.name for item in slices if item is not None and item.name != "next"}

    def __call__(self, read: Read, num_steps: int) -> np.ndarray:
        """[N, D], or [N-1, D] where there is nothing for the last step."""
        if self.key is None:
            return np.full((num_steps, self.size), self.constant, np.float32)
        values = self._scaled(self.key.read(read))
        values = self._difference(values, read) if self.delta else self._rotated(values)
        if self.into:
            values = self._turned(values, read)
        if self.clip:
            values = np.clip(values, *self.clip)
        if self.gripper:
            kind = binarize_gripper if self.gripper == "binarize" else absolute_gripper
            values = np.stack([kind(column) for column in values.T], axis=1)
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is then told
            return values.astype(np.float32)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        if self.scale == 1.0 and self.offset == 0.0:
            return values.astype(np.float32) if values.dtype == bool else values
        for number in (self.scale, self.offset):
            if np.size(number) not in (1, values.shape[1]):
                raise InputError(f"{self.key} has {values.shape[1]} numbers, its scale or offset {np.size(number)}")
        return values * np.asarray(self.scale) + np.asarray(self.offset)

    def _rotated(self, values: np.ndarray) -> np.ndarray:
        return convert(values, *self.rotation) if self.rotation else values

    def _difference(self, values: np.ndarray, read: Read) -> np.ndarray:
        assert self.delta is not None
        if self.delta.name == "next":
            after, before = values[1:], values[:-1]
        else:
            before = self._scaled(self.delta.read(read))
            if before.shape[1] != values.shape[1]:
                raise InputError(f"{self.key} has {values.shape[1]} numbers, {self.delta} {before.shape[1]}")
            count = min(len(values), len(before))
            after, before = values[:count], before[:count]
        if self.rotation:
            source, target = self.rotation
            turn = multiply(convert(after, source, _QUATERNION), inverse(convert(before, source, _QUATERNION)))
            return from_quaternion(np.where(turn[..., 3:] < 0, -turn, turn), target)
        moved = (after - before).astype(np.float64)
        # Only those that cross are touched: wrapping the others would cost them their last bits.
        crossed = self.angles & (np.abs(moved) > np.pi)
        return np.where(crossed, (moved + np.pi) % (2 * np.pi) - np.pi, moved)

    def _turned(self, values: np.ndarray, read: Read) -> np.ndarray:
        assert self.into is not None
        key, representation = self.into
        frame = inverse(convert(key.read(read)[: len(values)], representation, _QUATERNION))
        kind = self.rotation[1] if self.rotation else None
        vector = convert(values, kind, "axis_angle") if kind else np.asarray(values, np.float64)
        if vector.shape[1] != 3:
            raise InputError(f"{self.key} has {vector.shape[1]} numbers; only a vector of 3 or a rotation has a frame")
        pure = np.concatenate([vector, np.zeros_like(vector[:, :1])], axis=1)
        turned = multiply(multiply(frame, pure), inverse(frame))[:, :3]
        return convert(turned, "axis_angle", kind) if kind else turned

    def changes(self) -> list[str]:
        """What it does to the values, a line each, for people."""
        if self.key is None:
            return [f"{self.size} of {self.constant:g}, which the data lack"]
        lines = []
        if self.scale != 1.0 or self.offset != 0.0:
            inverted = (self.scale, self.offset) == (-1.0, 1.0)
            lines.append("inverted (1 - x)" if inverted else f"times {self.scale} plus {self.offset}")
        if self.delta is not None:
            lines.append("x[t+1] - x[t]" if self.delta.name == "next" else f"minus {self.delta}")
            lines += ["angle differences wrapped into [-pi, pi]"] if self.angles else []
        if self.rotation and self.rotation[0] != self.rotation[1]:
            lines.append(f"{self.rotation[0]} to {self.rotation[1]}")
        if self.into:
            lines.append(f"from the base's frame into that of {self.into[0]}")
        if self.clip:
            lines.append(f"clipped to {list(self.clip)}")
        if self.gripper:
            binary = "binarised: above 0.95 is 1, below 0.05 is 0, between is the next settled value"
            lines.append(binary if self.gripper == "binarize" else "relative gripper commands made absolute, 1 is open")
        return [f"{self.key}: {line}" for line in lines]


@dataclass(frozen=True)
class Camera:
    """A camera, a whole feature. rotate180: the data have it upside down."""

    key: str
    rotate180: bool = False

    @classmethod
    def parse(cls, value: Any, where: str) -> Camera:
        value = {"key": value} if isinstance(value, str) else value
        fits = isinstance(value, dict) and "key" in value and set(value) <= {"key", "rotate180"}
        if not fits or not isinstance(value["key"], str) or not isinstance(value.get("rotate180", False), bool):
            raise InputError(
                f'{where}: {value!r} is no camera; it must be one step feature, or {{"key": feature, "rotate180": true}}'
            )
        return cls(**value)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """[N,H,W,3] -> the same, upright."""
        return np.ascontiguousarray(frames[:, ::-1, ::-1]) if self.rotate180 else frames

    def changes(self) -> list[str]:
        return [f"{self.key}: turned by 180 degrees"] if self.rotate180 else []


def parse_parts(value: Any, where: str) -> tuple[Part, ...]:
    """A part or a list of them, concatenated in this order. InputError for anything else."""
    parts = value if isinstance(value, list) else [value]
    if not parts:
        raise InputError(f"{where}: an empty list of parts; name at least one feature")
    return tuple(Part.parse(part, where) for part in parts)


def assemble(parts: tuple[Part, ...], read: Read, num_steps: int, rows: int) -> np.ndarray:
    """Concatenate parts to float32 [rows, D]; rows is N for observations and N-1 for actions. InputError when one has fewer."""
    pieces = [part(read, num_steps) for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        if len(piece) < rows:
            raise InputError(f"{part.key} gives {len(piece)} rows, {rows} are needed (N observations, N-1 actions)")
    return np.concatenate([piece[:rows] for piece in pieces], axis=1).astype(np.float32)


def binarize_gripper(gripper: np.ndarray) -> np.ndarray:
    """[N] -> {0,1}: above .95 is open (1), below .05 closed (0), and in between is the next settled value.

    A tail that never settles is rounded; the original leaves it as it is, which is not binary.
    """
    index = np.arange(len(gripper))
    settled = (gripper > GRIPPER_OPEN) | (gripper < GRIPPER_CLOSED)
    following = np.minimum.accumulate(np.where(settled, index, len(gripper) - 1)[::-1])[::-1]
    return (gripper[following] > 0.5).astype(np.float32)


def absolute_gripper(command: np.ndarray) -> np.ndarray:
    """[N] relative commands (above .1 closes, below -.1 opens) -> [N] in {0,1}, 1 open, as Octo's RT-1 standardisation.

    Before the first command the gripper is as that command did not find it useless: open before a closing one. Without any it is open.
    """
    change = np.where(command < -_RELATIVE, 1, np.where(command > _RELATIVE, -1, 0))
    given = np.flatnonzero(change)
    if not len(given):
        return np.ones(len(command), np.float32)
    latest = np.maximum.accumulate(np.where(change != 0, np.arange(len(change)), -1))
    state = np.where(latest < 0, -change[given[0]], change[np.maximum(latest, 0)])
    return (state > 0).astype(np.float32)


def _parse_field(name: str, content: Any) -> Any:
    if name == "key":
        return Slice.parse(content)
    if name == "delta":
        return Slice.parse(content)
    if name in ("scale", "offset"):
        return tuple(map(float, content)) if isinstance(content, list) else float(content)
    if name == "clip":
        low, high = content
        return float(low), float(high)
    if name == "rotation":
        source, target = content
        representation_size(source), representation_size(target)
        return source, target
    if name == "into":
        representation_size(content["rotation"])
        return Slice.parse(content["key"]), content["rotation"]
    if name == "gripper" and content not in ("binarize", "relative"):
        raise InputError(f'gripper is {content!r}; it may be "binarize" or "relative"')
    if name == "angles" and not isinstance(content, bool):
        raise TypeError("angles is true or false")
    if name == "size" and (not isinstance(content, int) or content < 1):
        raise TypeError("size is a positive whole number")
    return float(content) if name == "constant" else content
