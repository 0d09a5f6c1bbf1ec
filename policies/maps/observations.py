"""The observation half of a map: which of their entries are which of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import InputError
from policies.base import ObservationSpec
from policies.history import MASK
from policies.maps.entries import Image, Text, Vector, array_of, find, missing
from policies.maps.fields import Fields

# What openpi's clients send and most policies work at.
_SIZE = (224, 224)


@dataclass(frozen=True)
class ObservationMap:
    """entries: ours -> where it comes from. nested: whether their `a/b` is written as {"a": {"b": ...}}; read is either."""

    entries: Mapping[str, Image | Vector | Text]
    nested: bool = False

    @classmethod
    def read(cls, fields: Fields, nested: bool) -> ObservationMap:
        entries: dict[str, Image | Vector | Text] = {}
        for ours in fields.names():
            values = Fields(fields.take(ours), f"{fields.where}.{ours}")
            if ours == "instruction":
                entries[ours] = Text.read(values)
            elif ours.startswith(("image_", "goal_image_")):
                entries[ours] = Image.read(values)
            elif ours in ("proprio", "state"):
                entries[ours] = Vector.read(values)
            else:
                raise InputError(f"{values.where}: ours are named image_..., goal_image_..., proprio, state and instruction")
            values.done()
        return cls(entries, nested)

    @property
    def spec(self) -> ObservationSpec:
        """What the map asks for, as far as it knows: cameras that must be there, vectors of known size."""
        images = {key: _SIZE for key, entry in self.entries.items() if isinstance(entry, Image) and not entry.optional}
        sizes = {key: entry.size for key, entry in self.entries.items() if isinstance(entry, Vector) and not entry.optional}
        return ObservationSpec(images, {key: size for key, size in sizes.items() if size is not None})

    def from_theirs(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """One observation by our names. With our `timestep_pad_mask` [T] among theirs, all but goals have an axis T first."""
        axes = 1 if MASK in theirs else 0
        ours: dict[str, Any] = {MASK: np.asarray(theirs[MASK])} if axes else {}
        for name, entry in self.entries.items():
            if isinstance(entry, Text):
                ours[name] = entry.from_theirs(theirs)
            elif isinstance(entry, Vector):
                vector = entry.from_theirs(theirs, axes)
                if vector is not None:
                    ours[name] = vector
            else:
                key, value = find(theirs, entry.keys)
                if key is not None:
                    ours[name] = entry.from_theirs(value, key, 0 if name.startswith("goal_") else axes)
                elif not entry.optional:
                    raise missing(entry.keys, theirs)
        return ours

    def to_theirs(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        axes = 1 if MASK in ours else 0
        theirs: dict[str, Any] = {MASK: np.asarray(ours[MASK])} if axes else {}
        for name, entry in self.entries.items():
            if name not in ours:
                if isinstance(entry, Text) and entry.default is not None:
                    theirs[entry.keys[0]] = entry.default
                elif isinstance(entry, Text) or not entry.optional:
                    raise missing((name,), ours)
            elif isinstance(entry, Text):
                theirs[entry.keys[0]] = str(ours[name])
            elif isinstance(entry, Image):
                image, rank = array_of(ours[name], name), 3 + (0 if name.startswith("goal_") else axes)
                if image.ndim != rank or image.shape[-1] != 3 or image.dtype != np.uint8:
                    raise InputError(f"{name!r} must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}")
                theirs[entry.keys[0]] = entry.to_theirs(image)
            else:
                vector = array_of(ours[name], name)
                if vector.ndim != 1 + axes or (entry.size is not None and vector.shape[-1] != entry.size):
                    raise InputError(f"{name!r} has shape {list(vector.shape)}; the map says {entry.size or 'some'} numbers")
                theirs.update(entry.to_theirs(vector))
        return _nest(theirs) if self.nested else theirs


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split("/")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
