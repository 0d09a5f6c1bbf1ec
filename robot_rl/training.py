"""One training loop for critics and policies: deterministic, killed at any moment, resumed by the same command.

Every random draw of step k comes from a generator seeded by (seed, k), so a resumed run needs nothing but the tensors of its last
checkpoint to go on exactly as if it had never stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data.errors import InputError
from policies.checkpoint import latest_checkpoint, read_config, read_tensors, save_checkpoint
from policies.contract import DataContract
from policies.device import device_of
from robot_rl.config import TrainingConfig


class Learner(Protocol):
    """Whose `update` is one gradient step; `checkpoint_tensors` are what is loaded to be used, `state_dict` what goes on training."""

    optimizers: dict[str, torch.optim.Optimizer]

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]: ...

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]: ...

    def to_json(self) -> dict[str, Any]: ...

    def to(self, device: torch.device) -> Any: ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> Any: ...


Progress = Callable[[int, int, Mapping[str, float]], None]
PROGRESS_SECONDS = 1.0
"""Between two calls of a Progress, at most (or a step, where that takes longer); metrics are kept every `log_every` steps."""


def train(
    learner: Learner,
    draw: Callable[[np.random.Generator, int], Mapping[str, Any]],
    contract: DataContract,
    config: TrainingConfig,
    run: Path,
    progress: Progress | None = None,
    drawing: Mapping[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Run or resume training in the folder `run`; returns the logged metrics, one dict with `step` each.

    draw: (generator, batch size) -> batch. drawing: the settings behind it, which a resumed run must share. Raises InputError when the
    folder holds a run with other settings, or when the loss is no longer finite.
    """
    device = device_of(config.device)
    with _locked(run):
        identity = {
            **learner.to_json(),
            "training": {"steps": config.steps, "batch_size": config.batch_size, "seed": config.seed},
            "drawing": dict(drawing or {}),
        }
        torch.set_num_threads(config.threads)
        learner.to(device)
        first = _resume(learner, run, identity)
        metrics = _read_metrics(run, first)
        embeddings = torch.from_numpy(contract.embeddings())
        generator = torch.Generator(device)
        window: list[dict[str, torch.Tensor]] = []
        started, shown = time.monotonic(), -PROGRESS_SECONDS
        if progress and metrics:
            progress(first, config.steps, metrics[-1])
        for step in range(first + 1, config.steps + 1):
            generator.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0] >> 1))
            batch = draw(np.random.default_rng([config.seed, step]), config.batch_size)
            window.append({name: value.detach() for name, value in learner.update(batch, generator).items()})
            kept = step % config.log_every == 0 or step == config.steps
            if kept or (progress and time.monotonic() - shown >= PROGRESS_SECONDS):
                row = {name: float(torch.stack([entry[name] for entry in window]).mean()) for name in window[0]}
                if not all(np.isfinite(list(row.values()))):
                    raise InputError(
                        f"{run}: training diverged before step {step} ({row}); lower the learning rate or check the data"
                    )
                if kept:
                    metrics.append({"step": step, **row, "steps_per_second": (step - first) / (time.monotonic() - started)})
                    window.clear()
                    _write_metrics(run, metrics)
                if progress:
                    shown = time.monotonic()
                    progress(step, config.steps, row)
            if step % config.checkpoint_every == 0 or step == config.steps:
                model = learner.checkpoint_tensors()
                if not all(bool(value.isfinite().all()) for value in model.values()):
                    raise InputError(f"{run}: training diverged before step {step}; lower the learning rate or check the data")
                groups = {
                    "model": {**model, "language_table": embeddings},
                    "training": {**learner.state_dict(), **_optimizer_tensors(learner)},
                }
                save_checkpoint(run, step, {**identity, "step": step}, groups)
        return metrics


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the system lets go of the lock even when this one is killed."""
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; choose another --out")
    if run.is_dir() and any(
        not entry.name.startswith((".lock", ".step", ".metrics", "metrics", "step_")) for entry in run.iterdir()
    ):
        raise InputError(f"{run}: exists and is no training run; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{run}: another process is training here; wait for it, or choose another --out") from None
        yield


def _resume(learner: Learner, run: Path, identity: dict[str, Any]) -> int:
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return 0
    saved = read_config(checkpoint)
    step = int(saved.pop("step", 0))
    difference = _first_difference(saved, json.loads(json.dumps(identity)))
    if difference:
        raise InputError(f"{run}: holds a run with other settings ({difference}); choose another --out or remove the folder")
    state = read_tensors(checkpoint, "training")
    optimizer_state = {key: state.pop(key) for key in list(state) if key.startswith("optimizer/")}
    try:
        learner.load_state_dict(state)
        _load_optimizers(learner, optimizer_state)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{checkpoint}: does not fit these settings ({str(error).splitlines()[0]})") from error
    return step


def _optimizer_tensors(learner: Learner) -> dict[str, torch.Tensor]:
    return {
        f"optimizer/{name}/{index}/{key}": value
        for name, optimizer in learner.optimizers.items()
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def _load_optimizers(learner: Learner, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, optimizer in learner.optimizers.items():
        state = optimizer.state_dict()
        for key, value in tensors.items():
            _, owner, index, field = key.split("/")
            if owner == name:
                state["state"].setdefault(int(index), {})[field] = value
        optimizer.load_state_dict(state)


def _first_difference(saved: Any, given: Any, path: str = "") -> str | None:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted({*saved, *given}):
            difference = _first_difference(saved.get(key), given.get(key), f"{path}.{key}" if path else key)
            if difference:
                return difference
        return None
    return None if saved == given else f"{path} was {_short(saved)}, is {_short(given)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def _read_metrics(run: Path, upto: int) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a record of the past, not a part of the training: what is damaged of it is left out
        if isinstance(row, dict) and row.get("step", upto + 1) <= upto:
            rows.append(row)
    return rows


def _write_metrics(run: Path, metrics: list[dict[str, float]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    temporary = run / ".metrics.partial"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in metrics))
    os.replace(temporary, run / "metrics.jsonl")
