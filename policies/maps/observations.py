"""The observation half of a map: which of their entries are which of ours, and how pictures and vectors are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import InputError
from policies.base import ObservationSpec
from policies.history import MASK
from policies.maps.fields import Fields
from policies.rotations import convert, representation_size

LAYOUTS = ("HWC", "CHW")
# (lowest, highest) of float pictures.
RANGES = {"uint8": None, "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
_SIZE = (224, 224)


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
        image = _array(value, key)
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
        # In float64, whatever came: half a step of 255 is then never reached by rounding errors.
        pixels = (image.astype(np.float64) - low) * (255 / (high - low))
        return np.rint(pixels).clip(0, 255).astype(np.uint8)

    def to_theirs(self, image: np.ndarray) -> np.ndarray:
        image = image[..., ::-1, ::-1, :] if self.rotate180 else image
        image = np.moveaxis(image, -1, -3) if self.layout == "CHW" else image
        bounds = RANGES[self.values]
        if bounds is not None:
            image = (image * ((bounds[1] - bounds[0]) / 255) + bounds[0]).astype(np.float32)
        return np.ascontiguousarray(image)


@dataclass(frozen=True)
class Piece:
    """Part of a vector: [start, stop) of their entry (all of it if None), then scale * x + offset, or another kind of rotation.

    scale, offset: of every number, or none for all. rotation: (theirs, ours).
    """

    keys: tuple[str, ...]
    slice: tuple[int, int] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    rotation: tuple[str, str] | None = None

    @classmethod
    def read(cls, fields: Fields) -> Piece:
        keys, interval = fields.texts("key"), fields.interval("slice", None)
        size = fields.count("size", None)
        if size is not None:
            if interval is not None:
                raise InputError(f"{fields.where}: has both 'slice' and 'size'")
            interval = (0, size)
        rotation = _rotation(fields)
        if rotation is not None:
            representation_size(rotation[1])
            needed = representation_size(rotation[0])
            interval = interval or (0, needed)
            if interval[1] - interval[0] != needed:
                raise fields.wrong("slice", list(interval), f"{needed} numbers, as {rotation[0]} has")
        length = 0 if interval is None else interval[1] - interval[0]
        affine = [None if (value := fields.take(name, None)) is None else value for name in ("scale", "offset")]
        given = Fields({"scale": affine[0] or 1, "offset": affine[1] or 0}, fields.where)
        if affine != [None, None] and (interval is None or rotation is not None):
            raise InputError(f"{fields.where}: 'scale' and 'offset' need a 'slice' or 'size' and no 'rotation'")
        scale = None if affine == [None, None] else given.numbers("scale", length)
        offset = None if affine == [None, None] else given.numbers("offset", length)
        if scale is not None and 0.0 in scale:
            raise fields.wrong("scale", affine[0], "not zero")
        fields.done()
        return cls(keys, interval, scale, offset, rotation)

    @property
    def size(self) -> int | None:
        """How many numbers of ours; None where their entry decides."""
        if self.rotation is not None:
            return representation_size(self.rotation[1])
        return None if self.slice is None else self.slice[1] - self.slice[0]

    def from_theirs(self, values: np.ndarray) -> np.ndarray:
        if self.scale is not None and self.offset is not None:
            values = values * np.array(self.scale) + np.array(self.offset)
        return convert(values, *self.rotation) if self.rotation else values

    def to_theirs(self, values: np.ndarray) -> np.ndarray:
        if self.rotation:
            return convert(values, self.rotation[1], self.rotation[0])
        if self.scale is not None and self.offset is not None:
            values = (values - np.array(self.offset)) / np.array(self.scale)
        return values


@dataclass(frozen=True)
class Vector:
    """`proprio` or `state`: their pieces, one after the other. Entries of theirs that no piece takes are written as 0."""

    pieces: tuple[Piece, ...]
    optional: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Vector:
        pieces = tuple(Piece.read(piece) for piece in fields.objects("parts"))
        if len(pieces) > 1 and any(piece.size is None for piece in pieces):
            raise InputError(f"{fields.where}.parts: with several parts each needs a 'slice' or a 'size'")
        return cls(pieces, fields.flag("optional"))

    @property
    def size(self) -> int | None:
        sizes = [piece.size for piece in self.pieces]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def from_theirs(self, theirs: Mapping[str, Any], axes: int) -> np.ndarray | None:
        """float32 [P]; None where it is optional and absent."""
        values = []
        for piece in self.pieces:
            key, value = _find(theirs, piece.keys)
            if key is None:
                if self.optional:
                    return None
                raise _missing(piece.keys, theirs)
            array = _array(value, key)
            array = array[..., None] if array.ndim == axes else array
            stop = array.shape[-1] if piece.slice is None else piece.slice[1]
            # Without a slice of its own an entry must be all used, else a longer one of another robot would pass.
            whole = piece.slice is None or sum(key in other.keys for other in self.pieces) > 1 or array.shape[-1] == stop
            if array.ndim != 1 + axes or array.shape[-1] < stop or not whole:
                raise InputError(f"{key!r} has shape {list(array.shape)}; the map takes {_range(piece)} of it")
            if not np.isfinite(array).all():
                raise InputError(f"{key!r} has numbers that are not finite")
            start = 0 if piece.slice is None else piece.slice[0]
            values.append(piece.from_theirs(array[..., start:stop].astype(np.float64)))
        return np.concatenate(values, axis=-1).astype(np.float32)

    def to_theirs(self, ours: np.ndarray, key: str, theirs: dict[str, Any]) -> None:
        if self.size is not None and ours.shape[-1:] != (self.size,):
            raise InputError(f"{key!r} has shape {list(ours.shape)}; the map says {self.size} numbers")
        start = 0
        for piece in self.pieces:
            stop = start + (piece.size or ours.shape[-1])
            written = piece.to_theirs(ours[..., start:stop].astype(np.float64)).astype(np.float32)
            name, place = piece.keys[0], piece.slice or (0, written.shape[-1])
            held = theirs.get(name)
            needed = max(place[1], 0 if held is None else held.shape[-1])
            grown = np.zeros((*written.shape[:-1], needed), np.float32)
            if held is not None:
                grown[..., : held.shape[-1]] = held
            grown[..., place[0] : place[1]] = written
            theirs[name] = grown
            start = stop


@dataclass(frozen=True)
class Text:
    """The instruction. default: where they send none."""

    keys: tuple[str, ...]
    default: str | None = None

    @classmethod
    def read(cls, fields: Fields) -> Text:
        return cls(fields.texts("key"), fields.text("default", None))

    def from_theirs(self, theirs: Mapping[str, Any]) -> str:
        key, value = _find(theirs, self.keys)
        if key is None:
            if self.default is None:
                raise _missing(self.keys, theirs)
            return self.default
        value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if not isinstance(value, str):
            raise InputError(f"{key!r} must be text, not {type(value).__name__}")
        return value


@dataclass(frozen=True)
class ObservationMap:
    """entries: our key -> where it comes from. nested: whether their `a/b` is written as {"a": {"b": ...}}; read are both."""

    entries: Mapping[str, Image | Vector | Text]
    nested: bool = False

    @classmethod
    def read(cls, fields: Fields) -> ObservationMap:
        nested, entries = fields.flag("nested"), {}
        for ours, values in fields.take("entries").items() if isinstance(fields.take_copy("entries"), Mapping) else ():
            entries[ours] = _read_entry(ours, Fields(values, f"{fields.where}.entries.{ours}"))
        fields.done()
        return cls(entries, nested)

    @property
    def spec(self) -> ObservationSpec:
        """What ours looks at, as far as the map knows: cameras at the size that most policies work at, vectors of known size."""
        images = {key: _SIZE for key, entry in self.entries.items() if isinstance(entry, Image) and not entry.optional}
        vectors = {key: entry.size for key, entry in self.entries.items() if isinstance(entry, Vector) and entry.size}
        return ObservationSpec(images, vectors)
