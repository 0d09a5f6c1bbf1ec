"""What an entry of our observations is made of in theirs: a picture, a vector from pieces, the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import InputError
from data.rotations import convert, representation_size
from policies.maps.fields import Fields

LAYOUTS = ("HWC", "CHW")
# (lowest, highest) of float pictures.
RANGES = {"uint8": None, "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}


@dataclass(frozen=True)
class Image:
    """A camera. keys: where theirs may stand; the first is where ours is written. rotate180: theirs is upside down."""

    keys: tuple[str, ...]
    layout: str = "HWC"
    values: str = "uint8"
    rotate180: bool = False
    optional: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Image:
        return cls(
            fields.texts("key"),
            fields.text("layout", "HWC", LAYOUTS),
            fields.text("values", "uint8", tuple(RANGES)),
            fields.flag("rotate180"),
            fields.flag("optional"),
        )

    def from_theirs(self, value: Any, key: str, axes: int) -> np.ndarray:
        """uint8 [H,W,3], after `axes` further ones."""
        image = array_of(value, key)
        wanted = {"HWC": "[height, width, 3]", "CHW": "[3, height, width]"}[self.layout]
        if image.ndim != 3 + axes or image.shape[-1 if self.layout == "HWC" else -3] != 3:
            raise InputError(f"{key!r} has shape {list(image.shape)}; the map says {self.layout}, {wanted}")
        image = np.moveaxis(image, -3, -1) if self.layout == "CHW" else image
        image = image[..., ::-1, ::-1, :] if self.rotate180 else image
        bounds = RANGES[self.values]
        if bounds is None:
            if image.dtype != np.uint8:
                raise InputError(f"{key!r} is {image.dtype}; the map says uint8")
            return np.ascontiguousarray(image)
        if image.dtype.kind != "f":
            raise InputError(f"{key!r} is {image.dtype}; the map says float with values in {self.values}")
        low, high = bounds
        # Not-a-number fails both comparisons.
        if image.size and not (image.min() >= low - 1e-3 and image.max() <= high + 1e-3):
            raise InputError(f"{key!r} has values in {image.min():g}..{image.max():g}; the map says {self.values}")
        # Rounded, where openpi cuts off: a grey that was divided by 255 then comes back whatever the rounding errors.
        pixels = (image.astype(np.float32) - low) * (255 / (high - low))
        return np.ascontiguousarray(np.rint(pixels).clip(0, 255).astype(np.uint8))

    def to_theirs(self, image: np.ndarray) -> np.ndarray:
        image = image[..., ::-1, ::-1, :] if self.rotate180 else image
        image = np.moveaxis(image, -1, -3) if self.layout == "CHW" else image
        bounds = RANGES[self.values]
        if bounds is not None:
            image = (image * ((bounds[1] - bounds[0]) / 255) + bounds[0]).astype(np.float32)
        return np.ascontiguousarray(image)


@dataclass(frozen=True)
class Piece:
    """Part of a vector: [start, stop) of their entry, all of it if None; of that scale * x + offset, or another kind of rotation.

    scale, offset: one of each a number, or both None. rotation: (theirs, ours).
    """

    keys: tuple[str, ...]
    slice: tuple[int, int] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    rotation: tuple[str, str] | None = None

    @classmethod
    def read(cls, fields: Fields) -> Piece:
        keys, interval, size = fields.texts("key"), fields.interval("slice", None), fields.count("size", None)
        rotation = fields.rotation("rotation", None)
        if interval is not None and size is not None:
            raise InputError(f"{fields.where}: has both 'slice' and 'size'; leave one out")
        needed = size if rotation is None else representation_size(rotation[0])
        if interval is None and needed is not None:
            interval = (0, needed)
        if rotation is not None and interval is not None and interval[1] - interval[0] != needed:
            raise fields.wrong("slice", list(interval), f"{needed} numbers, as {rotation[0]} has")
        if not (fields.has("scale") or fields.has("offset")):
            return cls(keys, interval, None, None, rotation)
        if interval is None or rotation is not None:
            raise InputError(f"{fields.where}: 'scale' and 'offset' need a 'slice' or 'size', and no 'rotation'")
        length = interval[1] - interval[0]
        return cls(keys, interval, fields.scale("scale", length), fields.numbers("offset", length, 0))

    @property
    def size(self) -> int | None:
        """How many numbers of ours; None where their entry decides."""
        if self.rotation is not None:
            return representation_size(self.rotation[1])
        return None if self.slice is None else self.slice[1] - self.slice[0]

    def from_theirs(self, values: np.ndarray) -> np.ndarray:
        if self.scale is not None:
            values = values * np.array(self.scale) + np.array(self.offset)
        return convert(values, *self.rotation) if self.rotation else values

    def to_theirs(self, values: np.ndarray) -> np.ndarray:
        if self.scale is not None:
            values = (values - np.array(self.offset)) / np.array(self.scale)
        return convert(values, self.rotation[1], self.rotation[0]) if self.rotation else values


@dataclass(frozen=True)
class Vector:
    """`proprio` or `state`: pieces, one after the other. What no piece takes of an entry of theirs is written as 0."""

    pieces: tuple[Piece, ...]
    optional: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Vector:
        optional = fields.flag("optional")
        if not fields.has("parts"):
            return cls((Piece.read(fields),), optional)
        parts = fields.objects("parts")
        pieces = tuple(Piece.read(part) for part in parts)
        for part in parts:
            part.done()
        if len(pieces) > 1 and any(piece.size is None for piece in pieces):
            raise InputError(f"{fields.where}.parts: of several parts each needs a 'slice' or a 'size'")
        return cls(pieces, optional)

    @property
    def size(self) -> int | None:
        sizes = [piece.size for piece in self.pieces]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def from_theirs(self, theirs: Mapping[str, Any], axes: int) -> np.ndarray | None:
        """float32 [P], after `axes` further ones; None where it is optional and absent."""
        values = []
        for piece in self.pieces:
            key, value = find(theirs, piece.keys)
            if key is None:
                if self.optional:
                    return None
                raise missing(piece.keys, theirs)
            array = array_of(value, key)
            # A lone number, such as DROID's gripper, stands for a vector of one.
            array = array[..., None] if array.ndim == axes else array
            length = array.shape[-1] if piece.slice is None else self._lengths()[piece.keys[0]]
            if array.ndim != 1 + axes or array.shape[-1] != length:
                raise InputError(f"{key!r} has shape {list(array.shape)}; the map says {length} numbers")
            if not np.isfinite(array).all():
                raise InputError(f"{key!r} has numbers that are not finite")
            taken = array if piece.slice is None else array[..., piece.slice[0] : piece.slice[1]]
            values.append(piece.from_theirs(taken.astype(np.float64)))
        return np.concatenate(values, axis=-1).astype(np.float32)

    def to_theirs(self, ours: np.ndarray) -> dict[str, np.ndarray]:
        """Their entries, float32."""
        theirs: dict[str, np.ndarray] = {}
        start = 0
        for piece in self.pieces:
            stop = start + (piece.size or ours.shape[-1])
            values = piece.to_theirs(ours[..., start:stop].astype(np.float64))
            key, place = piece.keys[0], piece.slice or (0, values.shape[-1])
            length = values.shape[-1] if piece.slice is None else self._lengths()[key]
            held = theirs.setdefault(key, np.zeros((*values.shape[:-1], length), np.float32))
            held[..., place[0] : place[1]] = values
            start = stop
        return theirs

    def _lengths(self) -> dict[str, int]:
        """How long each of their entries is: as far as any piece reaches."""
        lengths: dict[str, int] = {}
        for piece in self.pieces:
            if piece.slice is not None:
                lengths[piece.keys[0]] = max(piece.slice[1], lengths.get(piece.keys[0], 0))
        return lengths


@dataclass(frozen=True)
class Text:
    """The instruction. default: where they send none."""

    keys: tuple[str, ...]
    default: str | None = None

    @classmethod
    def read(cls, fields: Fields) -> Text:
        return cls(fields.texts("key"), fields.text("default", None))

    def from_theirs(self, theirs: Mapping[str, Any]) -> str:
        key, value = find(theirs, self.keys)
        if key is None:
            if self.default is None:
                raise missing(self.keys, theirs)
            return self.default
        value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if not isinstance(value, str):
            raise InputError(f"{key!r} must be text, not {type(value).__name__}")
        return value


def find(theirs: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str | None, Any]:
    """The first of `keys` that is there, and its value; `a/b` may be a key or lie in the mapping `a`. (None, None) if none is."""
    for key in keys:
        holder, rest = _holder(theirs, key)
        if holder is not None:
            return key, holder[rest]
    return None, None


def missing(keys: tuple[str, ...], theirs: Mapping[str, Any]) -> InputError:
    names = ", ".join(map(str, _names(theirs)[:12])) or "nothing"
    return InputError(f"the observation has no {' or '.join(map(repr, keys))}; it has {names}")


def array_of(value: Any, key: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{key!r} must be an array of numbers, not {type(value).__name__}")
    return array


def _holder(theirs: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any] | None, str]:
    if key in theirs:
        return theirs, key
    for at in (i for i, letter in enumerate(key) if letter == "/"):
        inner = theirs.get(key[:at])
        if isinstance(inner, Mapping):
            holder, rest = _holder(inner, key[at + 1 :])
            if holder is not None:
                return holder, rest
    return None, key


def _names(theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in theirs.items():
        names += _names(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return names
