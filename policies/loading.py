"""`load_policy`: opens any policy there is, by one string that says where it is and, where that is not plain, what it is.

A spec is `[family:]location[?option=value&...]`: a folder that `robot-rl train policy` wrote, a checkpoint in its authors' own
format, or the address of a policy server: `runs/demo/policy`, `openvla:path/to/openvla-7b?unnorm_key=bridge_orig`, `ws://robot:8000`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from data.errors import InputError
from policies.base import Policy
from policies.checkpoint import latest_checkpoint, read_config
from policies.device import device_of

# A family is a class with `load(location, device, *, options...)`, and `recognizes(path)` where its checkpoints are not of our own
# making. Adding one is its file and a line here.
FAMILIES = {
    "gaussian": "policies.gaussian:GaussianPolicy",
    "diffusion": "policies.diffusion:DiffusionPolicy",
    "flow": "policies.flow:FlowPolicy",
    "autoregressive": "policies.autoregressive:AutoregressivePolicy",
    "octo": "policies.octo:OctoPolicy",
    "openvla": "policies.openvla:OpenVLAPolicy",
    "lerobot": "policies.lerobot:LeRobotPolicy",
    "diffusion_policy": "policies.diffusion_policy:StanfordPolicy",
    "remote": "policies.remote:RemotePolicy",
}
_WHOLE, _ENDS = 64 << 20, 1 << 20
_HUB = "hf://"
_REMOTE = ("ws://", "wss://", "http://", "https://")


def load_policy(spec: Path | str, device: str = "cpu") -> Policy:
    """Load a policy; InputError when there is none, it is of another family, or an option is unknown.

    The option `map`, a preset or a file, says what a foreign policy's actions mean; every family has it (policies/maps.py).
    """
    given, location, options = parse_spec(str(spec))
    device = str(device_of(device))
    place = _place(location)
    found = "remote" if isinstance(place, str) else _recognize(place)
    if given and found and given != found:
        raise InputError(f"{location}: holds a policy of the family {found}, not {given}; leave {given}: out")
    family = given or found
    if family is None:
        raise InputError(
            f"{location}: no checkpoint here that any family knows; give the folder that `robot-rl train` wrote or a checkpoint of "
            f"{', '.join(FAMILIES)}"
        )
    policy_class = family_class(family)
    if "map" not in options or "map" in family_options(policy_class):
        return policy_class.load(place, device, **_typed(family, policy_class, options))
    from policies.mapped import MappedPolicy
    from policies.maps import load_map

    policy_map = load_map(options.pop("map"))
    return MappedPolicy(policy_class.load(place, device, **_typed(family, policy_class, options)), policy_map)


def policy_digest(spec: Path | str) -> str:
    """What identifies a policy: the first 16 hex digits of a SHA-256 of its files and options, or of a server's address.

    Of a file over 64 MB its size and both ends count: hashing the whole of a large model takes longer than loading it.
    """
    place = _place(parse_spec(str(spec))[1])
    digest = hashlib.sha256(str(spec).partition("?")[2].encode())
    if isinstance(place, str):
        digest.update(place.encode())
        return digest.hexdigest()[:16]
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
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
    """`[family:]location[?option=value&...]` -> family or None, location, options. What exists by the whole name is that."""
    if spec and Path(spec).exists():
        return None, spec, {}
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


def _place(location: str) -> Path | str:
    """A server's address as it is; else an existing file or folder, of a run its newest step. `hf://owner/name` is downloaded."""
    if location.startswith(_REMOTE):
        return location
    path = _download(location.removeprefix(_HUB)) if location.startswith(_HUB) else Path(location)
    family, colon, _ = location.partition(":")
    if colon and family.isidentifier() and not path.exists():
        raise InputError(f"{family!r}: no such family of policies; there are {', '.join(FAMILIES)}")
    if not location or not path.exists():
        raise InputError(
            f"{location!r}: there is no such checkpoint; give a folder, a file, {_HUB}owner/name, or a server as ws://host:port"
        )
    return latest_checkpoint(path) or path if path.is_dir() else path


def _download(repository: str) -> Path:
    """The local copy of a repository of the Hugging Face hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{_HUB}{repository}: cannot be downloaded ({reason}); check its name, or give a local folder"
        ) from None


def _recognize(path: Path) -> str | None:
    """The family of a checkpoint: what our own config.json says, else the first family that recognises it."""
    if (path / "config.json").is_file() and (family := read_config(path).get("family")):
        if family not in FAMILIES:
            raise InputError(f"{path}: holds a {family!r}, not a policy; known families: {', '.join(FAMILIES)}")
        return family
    return next((name for name in FAMILIES if _recognizer(name)(path)), None)


def _recognizer(family: str) -> Callable[[Path], bool]:
    return getattr(family_class(family), "recognizes", lambda _: False)


def _typed(family: str, policy_class: Any, options: Mapping[str, str]) -> dict[str, Any]:
    """Option values as the types that `load` declares."""
    known = family_options(policy_class)
    for name in options:
        if name not in known:
            raise InputError(f"{name!r}: {family} policies have no such option; they have {', '.join(known) or 'none'}")
    return {name: convert(name, value, known[name].annotation) for name, value in options.items()}


def convert(name: str, value: str, kind: Any) -> Any:
    """The text of an option as the type that it is declared with. InputError when it is no such thing."""
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise InputError(f"{name}={value}: must be one of {', '.join(typing.get_args(kind))}")
        return value
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
