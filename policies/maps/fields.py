"""Fields: a JSON object of a map file being read. Every entry is asked for once and checked; what nobody asked for is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import InputError
from data.rotations import representation_size

_REQUIRED: Any = object()


class Fields:
    """where: the file and the path to this object, for the error's one line."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: must be an object {{...}}, not {_short(values)}")
        self._values, self.where = dict(values), where

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        if name not in self._values and default is _REQUIRED:
            raise InputError(f"{self.where}: has no {name!r}")
        return self._values.pop(name, default)

    def has(self, name: str) -> bool:
        return name in self._values

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def text(self, name: str, default: Any = _REQUIRED, choices: Sequence[str] = ()) -> Any:
        value = self.take(name, default)
        if value is default:
            return value
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.wrong(name, value, f"one of {', '.join(choices)}" if choices else "text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """One text, or a list of them."""
        value = self.take(name)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(item, str) and item for item in values):
            raise self.wrong(name, value, "text or a list of texts")
        return tuple(values)

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self.take(name, default)
        if value is not default and not _is_number(value):
            raise self.wrong(name, value, "a number")
        return value

    def count(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self.take(name, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.wrong(name, value, "a whole number from 1")
        return value

    def numbers(self, name: str, length: int, default: Any = _REQUIRED) -> tuple[float, ...]:
        """`length` numbers; a single one stands for all of them."""
        value = self.take(name, default)
        values = [value] * length if _is_number(value) else value
        if not isinstance(values, list) or len(values) != length or not all(map(_is_number, values)):
            raise self.wrong(name, value, f"a number or a list of {length}")
        return tuple(map(float, values))

    def scale(self, name: str, length: int) -> tuple[float, ...]:
        """Factors, 1 where not given; none is 0, for what is multiplied by it does not come back."""
        factors = self.numbers(name, length, 1)
        if 0.0 in factors:
            raise self.wrong(name, list(factors), "other than 0")
        return factors

    def rotation(self, name: str, default: Any = _REQUIRED) -> Any:
        """(theirs, ours): {"theirs": ..., "ours": ...}, or theirs alone, where ours are roll, pitch, yaw."""
        value = self.take(name, default)
        if value is default:
            return value
        pair = Fields({"theirs": value} if isinstance(value, str) else value, f"{self.where}.{name}")
        names = pair.text("theirs"), pair.text("ours", "euler_xyz")
        pair.done()
        for item in names:
            try:
                representation_size(item)
            except InputError as error:
                raise InputError(f"{pair.where}: {error}") from None
        return names

    def interval(self, name: str, default: Any = _REQUIRED) -> Any:
        """[start, stop], the stop exclusive."""
        value = self.take(name, default)
        if value is default:
            return value
        whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
        if not whole or not 0 <= value[0] < value[1]:
            raise self.wrong(name, value, "[start, stop] with 0 <= start < stop")
        return (value[0], value[1])

    def objects(self, name: str) -> list[Fields]:
        value = self.take(name)
        if not isinstance(value, list) or not value:
            raise self.wrong(name, value, "a list of objects")
        return [Fields(item, f"{self.where}.{name}[{index}]") for index, item in enumerate(value)]

    def wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.where}.{name} is {_short(value)}; it must be {wanted}")

    def done(self) -> None:
        if self._values:
            raise InputError(f"{self.where}: has an unknown entry {next(iter(self._values))!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else f"{text[:57]}..."
