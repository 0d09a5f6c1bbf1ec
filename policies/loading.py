"""`load_policy`: opens any policy there is, by one string that says where it is and, where that is not plain, what it is.

A spec is `[family:]location[?option=value&...]`: a folder that `robot-rl train policy` wrote, a checkpoint in its authors' own
format, or the address of a policy server: `runs/demo/policy`, `openvla:openvla-7b?unnorm_key=bridge_orig`, `ws://robot:8000`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import types
import typing
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from data.errors import InputError
from policies.base import Policy
from policies.checkpoint import latest_checkpoint, read_config

# A family is a class with `load(location, device, *, options...)`, and `recognizes(path)` where its checkpoints are not of our own
# making. Adding one is its file and a line here.
FAMILIES = {
    "gaussian": "policies.gaussian:GaussianPolicy",
    "diffusion": "policies.diffusion:DiffusionPolicy",
    "flow": "policies.flow:FlowPolicy",
    "autoregressive": "policies.autoregressive:AutoregressivePolicy",
}
_WHOLE, _ENDS = 64 << 20, 1 << 20
_REMOTE = ("ws://", "wss://", "http://", "https://")


def load_policy(spec: Path | str, device: str = "cpu") -> Policy:
    """Load a policy; InputError when there is none, it is of another family, or an option is unknown."""
    family, location, options = parse_spec(str(spec))
    if family is None:
        family = "remote" if location.startswith(_REMOTE) else _recognize(Path(location))
    policy_class = family_class(family)
    place: Path | str = location
    if not location.startswith(_REMOTE):
        place = Path(location)
        if not place.exists():
            raise InputError(f"{place}: there is no such checkpoint; give a folder, a file, or a server as ws://host:port")
        place = latest_checkpoint(place) or place if place.is_dir() else place
    return policy_class.load(place, device, **_typed(family, policy_class, options))


def policy_digest(spec: Path | str) -> str:
    """What identifies a policy: the first 16 hex digits of a SHA-256 of its files and options, or of a server's address.

    Of a file over 64 MB its size and both ends count: hashing the whole of a large model takes longer than loading it.
    """
    _, location, _ = parse_spec(str(spec))
    digest = hashlib.sha256(str(spec).partition("?")[2].encode())
    if location.startswith(_REMOTE):
        digest.update(location.encode())
        return digest.hexdigest()[:16]
    path = Path(location)
    checkpoint = latest_checkpoint(path) or path if path.is_dir() else path
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file()) if checkpoint.is_dir() else [checkpoint]
    for file in files:
        # What only training needs changes nothing that the policy does.
        if file.name == "training.safetensors":
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_WHOLE))
            if size > _WHOLE:
                stream.seek(-_ENDS, os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def parse_spec(spec: str) -> tuple[str | None, str, dict[str, str]]:
    """`[family:]location[?option=value&...]` -> family or None, location, options."""
    location, _, query = spec.partition("?")
    head, colon, rest = location.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return (head, rest, options) if colon and head in FAMILIES else (None, location, options)


def family_class(family: str) -> Any:
    if family not in FAMILIES:
        raise InputError(f"{family!r}: no such family of policies; there are {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    return getattr(import_module(module), name)


def family_options(policy_class: Any) -> Mapping[str, inspect.Parameter]:
    """The options that a spec of this family may carry: the keyword-only parameters of its `load`."""
    parameters = inspect.signature(policy_class.load, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def _recognize(path: Path) -> str:
    """The family of a checkpoint: what our own config.json says, else the first family that recognises it."""
    if not path.exists():
        raise InputError(f"{path}: there is no such checkpoint; give a folder, a file, or a server as ws://host:port")
    checkpoint = latest_checkpoint(path) or path if path.is_dir() else path
    if (checkpoint / "config.json").is_file() and (family := read_config(checkpoint).get("family")):
        if family not in FAMILIES:
            raise InputError(f"{path}: holds a {family!r}, not a policy; known families: {', '.join(FAMILIES)}")
        return family
    for family in FAMILIES:
        if getattr(family_class(family), "recognizes", lambda _: False)(checkpoint):
            return family
    raise InputError(
        f"{path}: no checkpoint here that any family knows; give the folder that `robot-rl train` wrote or a checkpoint of "
        f"{', '.join(FAMILIES)}"
    )


def _typed(family: str, policy_class: Any, options: Mapping[str, str]) -> dict[str, Any]:
    """Option values as the types that `load` declares."""
    known = family_options(policy_class)
    for name in options:
        if name not in known:
            raise InputError(f"{name!r}: {family} policies have no such option; they have {', '.join(known) or 'none'}")
    return {name: _convert(name, value, known[name].annotation) for name, value in options.items()}


def _convert(name: str, value: str, kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"{name}={value}: must be true or false")
        return value.lower() in ("true", "1")
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name}={value}: must be of type {kind.__name__}") from None
