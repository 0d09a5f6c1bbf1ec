"""The action half of a map: segments, each some of their numbers, what they mean, and some of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import InputError
from data.rotations import convert, from_quaternion, inverse, multiply, representation_size, to_quaternion
from policies.base import ActionSpec
from policies.maps.fields import Fields
from policies.maps.grippers import StickyGripper

Grippers = Mapping[str, StickyGripper]


@dataclass(frozen=True)
class Reference:
    """Between positions and motions. absolute: whose are the positions, `theirs` or `ours`; the others' are motions.

    proprio: where in our proprio the present position stands (rotation: how). start: what a motion starts from, the position when the
    chunk was `observed` (openpi's deltas), or the `previous` action of the chunk (what a controller of deltas does). frame: of turns,
    about the axes of the `base` or of the `tool`.
    """

    absolute: str
    proprio: tuple[int, int]
    rotation: str | None = None
    start: str = "previous"
    frame: str = "base"

    @classmethod
    def read(cls, fields: Fields, rotates: bool) -> Reference:
        absolute = fields.text("absolute", choices=("theirs", "ours"))
        start = fields.text("from", "previous", ("previous", "observed"))
        proprio, rotation = fields.interval("proprio"), None
        frame = "base"
        if rotates:
            rotation, _ = fields.rotation("rotation")
            frame = fields.text("frame", "base", ("base", "tool"))
            if proprio[1] - proprio[0] != representation_size(rotation):
                raise fields.wrong("proprio", list(proprio), f"{representation_size(rotation)} numbers, as {rotation} has")
        fields.done()
        return cls(absolute, proprio, rotation, start, frame)

    def position(self, proprio: Any, actions: np.ndarray) -> np.ndarray:
        """The present one, with axes before the last that fit those of the actions [..., H, D]."""
        if proprio is None:
            raise InputError("these actions are positions, to be told from motions by a 'proprio', which the observation lacks")
        proprio = np.asarray(proprio, np.float64)
        shape, axes = proprio.shape[:-1], actions.ndim - 2
        fits = proprio.ndim >= 1 and proprio.shape[-1] >= self.proprio[1] and len(shape) <= axes
        if not fits or shape != actions.shape[: len(shape)]:
            raise InputError(
                f"'proprio' has shape {list(proprio.shape)}; for actions {list(actions.shape)} the map needs {self.proprio[1]} numbers "
                "or more, after the same first axes or none"
            )
        position = proprio[..., self.proprio[0] : self.proprio[1]]
        position = position if self.rotation is None else to_quaternion(position, self.rotation)
        return position.reshape(*shape, *(1,) * (actions.ndim - 1 - len(shape)), position.shape[-1])

    def motions(self, positions: np.ndarray, position: np.ndarray) -> np.ndarray:
        """[..., H, n] numbers or quaternions."""
        start = np.broadcast_to(position, (*positions.shape[:-2], 1, positions.shape[-1]))
        if self.start == "previous":
            start = np.concatenate([start, positions[..., :-1, :]], axis=-2)
        if self.rotation is None:
            return positions - start
        return multiply(positions, inverse(start)) if self.frame == "base" else multiply(inverse(start), positions)

    def positions(self, motions: np.ndarray, position: np.ndarray) -> np.ndarray:
        if self.rotation is None:
            return position + (motions.cumsum(axis=-2) if self.start == "previous" else motions)
        steps, at = [], np.broadcast_to(position[..., 0, :], motions[..., 0, :].shape)
        for step in range(motions.shape[-2]):
            motion = motions[..., step, :]
            moved = multiply(motion, at) if self.frame == "base" else multiply(at, motion)
            steps.append(moved)
            at = moved if self.start == "previous" else at
        return np.stack(steps, axis=-2)


@dataclass(frozen=True)
class Segment:
    """theirs [start, stop) -> ours, named, with a unit and bounds: scale * x + offset, then the rotation, then the reference.

    rotation: (theirs, ours). threshold: ours goes over to theirs as its upper bound where it is above, else as its lower: exact for
    what is at a bound, and lost in between. sticky: steps of a StickyGripper.
    """

    theirs: tuple[int, int]
    names: tuple[str, ...]
    unit: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    rotation: tuple[str, str] | None = None
    reference: Reference | None = None
    threshold: float | None = None
    sticky: int | None = None

    @classmethod
    def read(cls, fields: Fields) -> Segment:
        theirs, names, rotation = fields.interval("theirs"), fields.texts("names"), fields.rotation("rotation", None)
        size, length = len(names), theirs[1] - theirs[0]
        sizes = (size, size) if rotation is None else (representation_size(rotation[0]), representation_size(rotation[1]))
        if (length, size) != sizes:
            raise InputError(
                f"{fields.where}: has {length} numbers of theirs and {size} names of ours; it must have {sizes[0]} and {sizes[1]}"
            )
        reference = None
        if fields.has("reference"):
            reference = Reference.read(Fields(fields.take("reference"), f"{fields.where}.reference"), rotation is not None)
            if rotation is None and reference.proprio[1] - reference.proprio[0] != size:
                raise fields.wrong("reference.proprio", list(reference.proprio), f"{size} numbers")
        segment = cls(
            theirs,
            names,
            fields.text("unit"),
            fields.numbers("low", size),
            fields.numbers("high", size),
            fields.scale("scale", length),
            fields.numbers("offset", length, 0),
            rotation,
            reference,
            fields.number("threshold", None),
            fields.count("sticky", None),
        )
        if any(low >= high for low, high in zip(segment.low, segment.high, strict=True)):
            raise InputError(f"{fields.where}: 'low' must be below 'high'")
        plain = rotation is None and reference is None and segment.scale == (1.0,) and segment.offset == (0.0,)
        if segment.sticky is not None and not (plain and segment.threshold is None):
            raise InputError(f"{fields.where}: a 'sticky' gripper is one number and has no other transform")
        if segment.threshold is not None and (rotation is not None or reference is not None):
            raise InputError(f"{fields.where}: a 'threshold' goes with no 'rotation' and no 'reference'")
        fields.done()
        return segment

    def from_theirs(self, values: np.ndarray, proprio: Any, grippers: Grippers) -> np.ndarray:
        """[..., H, theirs] -> [..., H, ours]."""
        if self.sticky is not None:
            return _each(values, grippers[self.names[0]], StickyGripper.openness)
        values = values * np.array(self.scale) + np.array(self.offset)
        if self.reference is not None:
            position = self.reference.position(proprio, values)
            move = self.reference.motions if self.reference.absolute == "theirs" else self.reference.positions
            if self.rotation is None:
                return move(values, position)
            return from_quaternion(move(to_quaternion(values, self.rotation[0]), position), self.rotation[1])
        return convert(values, *self.rotation) if self.rotation else values

    def to_theirs(self, values: np.ndarray, proprio: Any, grippers: Grippers) -> np.ndarray:
        if self.sticky is not None:
            return _each(values, grippers[self.names[0]], StickyGripper.commands)
        if self.threshold is not None:
            values = np.where(values > self.threshold, np.array(self.high), np.array(self.low))
        if self.reference is not None:
            position = self.reference.position(proprio, values)
            move = self.reference.positions if self.reference.absolute == "theirs" else self.reference.motions
            if self.rotation is None:
                values = move(values, position)
            else:
                values = from_quaternion(move(to_quaternion(values, self.rotation[1]), position), self.rotation[0])
        elif self.rotation:
            values = convert(values, self.rotation[1], self.rotation[0])
        return (values - np.array(self.offset)) / np.array(self.scale)


@dataclass(frozen=True)
class ActionMap:
    """size: D, how many numbers theirs has; those in no segment are written as 0. frame, control_hz: as in ActionSpec."""

    size: int
    segments: tuple[Segment, ...]
    frame: str
    control_hz: float

    @classmethod
    def read(cls, fields: Fields) -> ActionMap:
        places = fields.objects("segments")
        segments = tuple(Segment.read(place) for place in places)
        size = fields.count("size", max(segment.theirs[1] for segment in segments))
        taken: set[int] = set()
        for place, segment in zip(places, segments, strict=True):
            own = set(range(*segment.theirs))
            if taken & own or max(own) >= size:
                raise place.wrong("theirs", list(segment.theirs), f"within {size} numbers and apart from other segments")
            taken |= own
        names = [name for segment in segments for name in segment.names]
        if len(set(names)) < len(names):
            raise InputError(f"{fields.where}: two dimensions of ours have one name")
        hz = fields.number("control_hz")
        if hz < 0:
            raise fields.wrong("control_hz", hz, "0 (unknown) or more")
        frame = fields.text("frame")
        fields.done()
        return cls(size, segments, frame, float(hz))

    @property
    def dim(self) -> int:
        return sum(len(segment.names) for segment in self.segments)

    def spec(self, chunk: int) -> ActionSpec:
        segments = self.segments
        return ActionSpec(
            tuple(name for segment in segments for name in segment.names),
            tuple(segment.unit for segment in segments for _ in segment.names),
            tuple(low for segment in segments for low in segment.low),
            tuple(high for segment in segments for high in segment.high),
            self.frame,
            self.control_hz,
            chunk,
        )

    def is_affine(self) -> bool:
        """Whether ours are scaled and shifted theirs, one by one or as differences, and all of theirs are used."""
        plain = all(
            segment.rotation is None and segment.threshold is None and segment.sticky is None for segment in self.segments
        )
        return plain and self.size == self.dim

    def grippers(self) -> dict[str, StickyGripper]:
        """The memory that an episode begins with."""
        return {segment.names[0]: StickyGripper(segment.sticky) for segment in self.segments if segment.sticky is not None}

    def from_theirs(self, actions: Any, proprio: Any, grippers: Grippers) -> np.ndarray:
        """[..., D] -> [..., A]; the axis before the last, if there is one, is the chunk's."""
        theirs, dtype = _checked(actions, self.size, "theirs")
        chunk = theirs[None] if theirs.ndim == 1 else theirs
        parts = [
            segment.from_theirs(chunk[..., segment.theirs[0] : segment.theirs[1]], proprio, grippers)
            for segment in self.segments
        ]
        return np.concatenate(parts, axis=-1).reshape(*theirs.shape[:-1], self.dim).astype(dtype)

    def to_theirs(self, actions: Any, proprio: Any, grippers: Grippers) -> np.ndarray:
        ours, dtype = _checked(actions, self.dim, "ours")
        chunk = ours[None] if ours.ndim == 1 else ours
        theirs, start = np.zeros((*chunk.shape[:-1], self.size)), 0
        for segment in self.segments:
            stop = start + len(segment.names)
            theirs[..., segment.theirs[0] : segment.theirs[1]] = segment.to_theirs(chunk[..., start:stop], proprio, grippers)
            start = stop
        return theirs.reshape(*ours.shape[:-1], self.size).astype(dtype)


def _checked(actions: Any, size: int, whose: str) -> tuple[np.ndarray, Any]:
    """The actions in float64, and what the answer shall be: float64 for float64, else float32."""
    array = np.asarray(actions)
    if array.dtype.kind not in "biuf" or array.ndim < 1 or array.shape[-1] != size:
        raise InputError(f"actions of shape {list(array.shape)} and type {array.dtype}; the map says [..., {size}] for {whose}")
    return array.astype(np.float64), np.float64 if array.dtype == np.float64 else np.float32


def _each(values: np.ndarray, gripper: StickyGripper, rule: Any) -> np.ndarray:
    """A rule with a memory over [..., H, 1]. Chunks side by side all begin with the memory as it is; the first one's is kept."""
    chunks = values.reshape(-1, values.shape[-2])
    memories = [gripper, *(gripper.copy() for _ in chunks[1:])]
    return np.stack([rule(memory, chunk) for memory, chunk in zip(memories, chunks, strict=True)]).reshape(values.shape)
