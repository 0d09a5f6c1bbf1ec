"""Octo's checkpoints as its authors wrote them, 1.0 and 1.5, read without jax: flax's msgpack, names, shapes, statistics.

A folder holds config.json, dataset_statistics.json, example_batch.msgpack and STEP/default/checkpoint, a tree of named arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from data.errors import InputError
from data.normalizer import Normalizer
from policies.checkpoint import read_json
from policies.networks.octo_tokenizers import matching
from policies.networks.octo_transformer import Layout

_ARRAY, _SCALAR = 1, 3
_RESTORE = "restore it from where the checkpoint is from"


def recognizes(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "example_batch.msgpack").is_file()


@dataclass(frozen=True)
class OctoCheckpoint:
    """What config.json and the example batch say. text_encoder: the T5's name. bounds: actions were scaled to [p01,p99]."""

    layout: Layout
    text_encoder: str
    bounds: bool


def read_checkpoint(folder: Path) -> OctoCheckpoint:
    """InputError when a file is damaged, or the network is of a kind that is not known here."""
    path = folder / "config.json"
    config, batch = read_json(path, _RESTORE), read_msgpack(folder / "example_batch.msgpack")
    try:
        model = json.loads(json.dumps(config["model"]))
        head = model["heads"]["action"].setdefault("kwargs", {})
        # The names of December 2023.
        if "pred_horizon" in head:
            head["action_horizon"] = head.pop("pred_horizon")
        task = batch["task"] if "task" in batch else batch["tasks"]
        seen = batch["observation"]
        steps = seen["timestep_pad_mask"] if "timestep_pad_mask" in seen else seen["pad_mask"]
        text = config.get("text_processor") or {}
        if list(model["task_tokenizers"]) != ["language"]:
            raise InputError(f"{path}: has the task tokenizers {list(model['task_tokenizers'])}; only ['language'] can be read")
        encoder = model["task_tokenizers"]["language"].get("kwargs", {}).get("encoder")
        if not encoder or text.get("name") != "HFTokenizer" or text.get("kwargs", {}).get("encode_with_model"):
            raise InputError(
                f"{path}: its instructions are encoded by {text.get('name')}; only a T5 inside the checkpoint can be read"
            )
        images = {key: value.shape[2:4] for key, value in seen.items() if key.startswith("image_")}
        vectors = {
            key: value.shape[2]
            for key, value in seen.items()
            if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype.kind == "f"
        }
        language = task["language_instruction"]["input_ids"].shape[1]
        layout = Layout(
            model=model,
            images=_used(images, model, "obs_stack_keys"),
            goals=tuple(sorted({key for key in task if key.startswith("image_")} | set(images))),
            vectors=_used(vectors, model, "obs_keys"),
            language=(int(language), 0),
            window=int(steps.shape[1]),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise InputError(f"{path}: not the config of an Octo policy ({what}); restore it with the example batch") from error
    data = config.get("dataset_kwargs") or {}
    kinds = {**data, **(data.get("oxe_kwargs") or {})}
    kind = str(kinds.get("action_proprio_normalization_type", "normal")).lower()
    return OctoCheckpoint(layout, str(encoder), kind.endswith("bounds"))


def read_parameters(folder: Path, step: int | None) -> tuple[dict[str, np.ndarray], Path]:
    """Arrays by their path, `octo_transformer/...`, of one step or the newest, and the file that they are from."""
    steps = {
        int(path.name): path for path in folder.iterdir() if path.name.isdigit() and (path / "default" / "checkpoint").is_file()
    }
    if not steps:
        raise InputError(f"{folder}: has no STEP/default/checkpoint; download the checkpoint's folder of that name too")
    if step is not None and step not in steps:
        raise InputError(f"{folder}: has no step {step}; there are {', '.join(map(str, sorted(steps)))}")
    path = steps[max(steps) if step is None else step] / "default" / "checkpoint"
    flat = dict(_flatten(read_msgpack(path), ""))
    for key, value in flat.items():
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{path}: {key!r} is kept in a file of its own, in a newer format; save it aggregated, as Octo does"
            )
    return flat, path


def read_msgpack(path: Path) -> Any:
    """A tree of arrays as flax writes it: extension 1 is the packed (shape, dtype, bytes) of an array, 3 of a scalar."""

    def extension(code: int, data: bytes) -> Any:
        if code not in (_ARRAY, _SCALAR):
            raise ValueError(f"extension {code}")
        shape, dtype, values = msgpack.unpackb(data, raw=False)
        if dtype == "bfloat16":
            return (np.frombuffer(values, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return np.frombuffer(values, dtype).reshape(shape)

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=extension, raw=False, strict_map_key=False)
        if not isinstance(tree, dict):
            raise ValueError("it holds no tree of arrays")
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); download it again") from error
    return tree


def read_statistics(folder: Path, key: str | None) -> tuple[str, Mapping[str, Any]]:
    """The name and the statistics of one dataset; no name where the file is a fine-tuned checkpoint's, of a single dataset."""
    path = folder / "dataset_statistics.json"
    values = read_json(path, _RESTORE)
    if isinstance(values.get("action"), dict) and "mean" in values["action"]:
        if key is not None:
            raise InputError(f"{path}: is of a single dataset, without a name; leave unnorm_key={key} out")
        return "", values
    names = [name for name, value in values.items() if isinstance(value, dict) and "action" in value]
    if not names:
        raise InputError(f"{path}: has no statistics of actions; restore it")
    if key is None and len(names) > 1:
        raise InputError(f"{folder}: was trained on several datasets; choose one by ?unnorm_key=NAME of {', '.join(names)}")
    if key is not None and key not in names:
        raise InputError(f"{folder}: has no dataset {key!r} to un-normalise for; unnorm_key can be {', '.join(names)}")
    name = names[0] if key is None else key
    return name, values[name]


def first_dataset(folder: Path) -> str | None:
    """One of the datasets that a checkpoint has statistics of; None where it has those of one without a name."""
    values = read_json(folder / "dataset_statistics.json", _RESTORE)
    return None if "mean" in values.get("action", {}) else next(iter(values), None)


def normalizer(statistics: Mapping[str, Any], key: str, bounds: bool, where: Path) -> Normalizer:
    """Of `action` or a vector: (x - mean) / std, or [p01,p99] to [-1,1]; dimensions that the mask leaves out stay as they are."""
    try:
        values = {name: np.asarray(value, np.float64) for name, value in statistics[key].items() if name != "mask"}
        if bounds:
            scale = (values["p99"] - values["p01"]) / 2
            offset = values["p01"] + scale
        else:
            offset, scale = values["mean"], values["std"]
        mask = np.asarray(statistics[key].get("mask", np.ones(len(offset), bool)), bool)
        if key != "action":
            # The original adds it before it divides, so that what never moves divides by no zero.
            scale = scale + 1e-8
        offset, scale = np.where(mask, offset, 0.0), np.where(mask, scale, 1.0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where / 'dataset_statistics.json'}: has no usable statistics of {key!r} ({error})") from error
    if not (np.isfinite(offset).all() and np.isfinite(scale).all()):
        raise InputError(f"{where / 'dataset_statistics.json'}: the statistics of {key!r} are not finite")
    return Normalizer(offset.astype(np.float32), scale.astype(np.float32))


def _used(sizes: Mapping[str, Any], model: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The observations that some tokenizer asks for."""
    patterns: list[str] = []
    for spec in model["observation_tokenizers"].values():
        default = ("image_.*",) if spec["name"] == "ImageTokenizer" and option == "obs_stack_keys" else ()
        patterns += spec.get("kwargs", {}).get(option, default)
    return {key: sizes[key] for key in matching(patterns, list(sizes))}


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
