"""Makes a folder that `diffusion_policy:FOLDER` reads of a Stanford `.ckpt`, which is a pickle (of dill's making).

Opening a pickle calls whatever it names. Here it may name what tensors and containers are made of, and nothing else: any other class or
function (OmegaConf's, hydra's, a stranger's) is replaced by an inert stand-in that only keeps what it is given.
"""

from __future__ import annotations

import json
import pickle
import re
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from data.atomic import replacing
from data.errors import InputError

_ALLOWED = {
    "collections": {"OrderedDict", "defaultdict"},
    "builtins": {
        "dict",
        "list",
        "tuple",
        "set",
        "frozenset",
        "int",
        "float",
        "bool",
        "str",
        "bytes",
        "bytearray",
        "complex",
        "slice",
    },
    "_codecs": {"encode"},
    "torch": {"Size", "device", "dtype", "float32", "float64", "float16", "bfloat16", "int64", "int32", "bool"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.serialization": {"_get_layout"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
}
_STORAGE = re.compile(r"^(Untyped|Typed|Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage$")
# Settings and their bookkeeping: their stand-ins lose nothing, so they are not worth a word.
_EXPECTED = ("omegaconf", "typing", "dill", "antlr4")
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


class StandIn:
    """In the place of a class or function that is not called: keeps a pickled state, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __call__(self, *_: Any, **__: Any) -> StandIn:
        return StandIn()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint. source: which of its models. replaced: names in the pickle that were not run."""

    source: str
    parameters: int
    replaced: tuple[str, ...]


def convert_checkpoint(checkpoint: Path, out: Path, overwrite: bool = False) -> Converted:
    """Write `out/{config.json,model.safetensors}`, with the averaged weights where training used such; InputError where it cannot."""
    payload, replaced = _read(checkpoint)
    try:
        config, states = plain(payload["cfg"]), payload["state_dicts"]
        policy = _resolve(config["policy"], config)
        source = "ema_model" if (config.get("training") or {}).get("use_ema") else "model"
        weights = {str(key): value for key, value in states[source].items() if isinstance(value, torch.Tensor)}
    except (KeyError, TypeError, AttributeError) as error:
        lacks = error if isinstance(error, KeyError) else "cfg and state_dicts"
        raise InputError(
            f"{checkpoint}: has no {lacks}; it is not a checkpoint that diffusion_policy's training wrote"
        ) from error
    with replacing(out, overwrite, lambda folder: (folder / "config.json").is_file(), "converted policy") as folder:
        # A copy each: safetensors refuses tensors that share memory, as robomimic's second names do.
        # Not save_file, which lets nobody else read the file.
        own = {key: value.detach().contiguous().clone() for key, value in weights.items()}
        (folder / "model.safetensors").write_bytes(save(own))
        (folder / "config.json").write_text(
            json.dumps({"family": "diffusion_policy", "policy": policy, "source": source}, indent=1)
        )
    return Converted(source, sum(value.numel() for value in weights.values()), replaced)


def _read(checkpoint: Path) -> tuple[Any, tuple[str, ...]]:
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: there is no such file; give the .ckpt that the training wrote")
    # A TorchScript archive, which torch.load would run, has constants beside its data.
    if not zipfile.is_zipfile(checkpoint) or any(
        name.endswith("constants.pkl") for name in zipfile.ZipFile(checkpoint).namelist()
    ):
        raise InputError(f"{checkpoint}: not a checkpoint that torch.save of PyTorch 1.6 or later wrote")
    replaced: set[str] = set()

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name in _ALLOWED.get(module, ()) or (module in ("torch", "torch.storage") and _STORAGE.match(name)):
                return super().find_class(module, name)
            if not module.startswith(_EXPECTED):
                replaced.add(f"{module}.{name}")
            return type(name, (StandIn,), {"__module__": module})

    reader = types.SimpleNamespace(Unpickler=Restricted, __name__="pickle")
    try:
        payload = torch.load(checkpoint, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{checkpoint}: cannot be read without running code from it, or damaged ({reason})") from error
    return payload, tuple(sorted(replaced))


def plain(value: Any) -> Any:
    """Settings as JSON has them, from OmegaConf's stand-ins or from dicts."""
    if isinstance(value, StandIn):
        held = vars(value)
        return plain(held["_content"]) if "_content" in held else plain(held.get("_val"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def _resolve(value: Any, root: Any) -> Any:
    """With `${a.b}` replaced by root["a"]["b"]. InputError for what has to be computed: trainings save it computed."""
    if isinstance(value, dict):
        return {key: _resolve(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    found = _INTERPOLATION.fullmatch(value)
    if not found:
        raise InputError(f"the checkpoint's setting {value!r} is not resolved; save it after OmegaConf.resolve(cfg)")
    target = root
    for part in found[1].split("."):
        target = target[part]
    return _resolve(target, root)
