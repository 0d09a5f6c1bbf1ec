"""Checkpoints on disk: a run folder holds `step_00001000/{config.json, *.safetensors}`, each written beside its place and renamed.

A folder that exists is therefore complete, and the newest is what loads. Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from data.errors import InputError

_STEP = re.compile(r"step_(\d+)$")


def save_checkpoint(run: Path, step: int, config: Mapping[str, Any], groups: Mapping[str, Mapping[str, torch.Tensor]]) -> Path:
    """Write `run/step_N` with config.json and one safetensors file a group, then remove the older steps; returns the folder."""
    final = run / f"step_{step:08d}"
    temporary = run / f".{final.name}.partial"
    run.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, tensors in groups.items():
            path = temporary / f"{name}.safetensors"
            # Not save_file: it hides a full disk behind an error of its own.
            path.write_bytes(save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}))
            _sync(path)
        path = temporary / "config.json"
        path.write_text(json.dumps(dict(config), indent=1))
        _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(run)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for older in _steps(run)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete step folder of a run, or None."""
    steps = _steps(run)
    return steps[-1] if steps else None


def resolve_checkpoint(path: Path | str) -> Path:
    """A step folder for a run folder or a step folder; InputError when there is none."""
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    found = latest_checkpoint(path) if path.is_dir() else None
    if found is None:
        raise InputError(f"{path}: no checkpoint here; give the folder that `robot-rl train` wrote")
    return found


def read_config(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "config.json", "the checkpoint is damaged, train again or restore it")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The file's JSON object; InputError with the advice when it cannot be read or is none."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {advice}") from error
    return values


def read_tensors(checkpoint: Path, group: str) -> dict[str, torch.Tensor]:
    path = checkpoint / f"{group}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); the checkpoint is damaged, train again or restore it") from error


def _steps(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("step_*") if _STEP.search(path.name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
