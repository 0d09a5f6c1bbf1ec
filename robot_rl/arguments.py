"""How tyro reads single values here, and what is said of a command line that it cannot read: one line, not a box of ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args

from tyro import _errors
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from data.errors import InputError

_KINDS: dict[Any, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("STR", "text"),
    Path: ("PATH", "a path"),
}
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _single_value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A kind, or a kind that may be None: by leaving the option out, so that `None` is no value that could be typed."""
    optional = info.type_origin in (Union, UnionType)
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType] if optional else [info.type]
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        return None
    (kind,) = kinds
    metavar, words = _KINDS[kind]

    def read(values: list[str]) -> Any:
        try:
            return kind(values[0])
        except ValueError:
            raise ValueError(f"{values[0]!r} is not {words}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (int, float) if kind is float else kind) or (optional and value is None),
        str_from_instance=lambda value: [str(value)],
    )


def refuse(arguments: Sequence[str], event: _errors.ParseErrorEvent) -> NoReturn:
    """InputError that says in one line which of the arguments cannot be read. A hook of tyro's, whose version is pinned for it."""
    words = [word for word in arguments[: 2 if arguments[:1] in (["data"], ["train"], ["bench"]) else 1] if word[:1] != "-"]
    if isinstance(event, _errors.UnrecognizedArgs) and event.tokens[0] in words:
        words = words[: words.index(event.tokens[0])]
    command = " ".join(("robot-rl", *words))
    raise InputError(f"{_what(command, event)}; see `{command} --help`")


def _what(command: str, event: _errors.ParseErrorEvent) -> str:
    match event:
        case _errors.MissingArgs():
            unknown = "".join(f", and does not know {token!r}" for token in event.unrecognized_tokens[:1])
            return f"{command} needs {', '.join(_name(needed.arg) for needed in event.missing_arguments)}{unknown}"
        case _errors.MissingSubcommand():
            return f"{command} needs one of {', '.join(event.subcommand_spec.parser_from_name)}"
        case _errors.UnrecognizedArgs():
            return f"{command} does not know {event.tokens[0]!r}"
        case _errors.InvalidChoice():
            return f"{_name(event.argument)}: {event.value!r} is none of {', '.join(event.choices)}"
        case _errors.BadValue():
            return f"{_name(event.argument)} needs a value"
        case _errors.InstantiationFailure() if event.argument:
            return f"{_name(event.argument)}: {event.message}"
    return f"{command} cannot be read"


def _name(argument: Any) -> str:
    return str(argument.lowered.metavar if argument.is_positional() else argument.display_name())
