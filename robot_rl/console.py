"""What the terminal shows while something long runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.errors import InputError

console = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar a task; it stays in sight when the work is done, and makes way for the error line when it fails."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        try:
            yield bar
        except BaseException:
            bar.live.transient = True
            raise


@contextmanager
def training_progress(what: str) -> Iterator[Any]:
    """A progress callback for robot_rl.training.train."""
    with progress_bar() as bar:
        task = bar.add_task(f"training the {what}", total=None, note="")

        def show(step: int, steps: int, row: Mapping[str, float]) -> None:
            loss = "loss" if "loss" in row else "q_loss"
            bar.update(task, completed=step, total=steps, note=f"{loss} {row[loss]:.4f}")

        yield show


def check_writable(path: Path | None) -> None:
    """Complain before the work, not after it, when the result could not be written. InputError for a folder."""
    if path is not None and path.is_dir():
        raise InputError(f"--json {path}: is a folder; give a file in it, such as {path / 'results.json'}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def counting_progress(what: str) -> Iterator[Any]:
    """A (done, total or None) callback."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=None, note="")

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show


@contextmanager
def evaluation_progress() -> Iterator[Any]:
    """A callback for robot_rl.evaluation.evaluate, which shows each arm's successes so far."""
    with progress_bar() as bar:
        task = bar.add_task("evaluating (blocks)", total=None, note="")
        counts: dict[str, list[int]] = {}

        def show(done: int, total: int, block: Any, outcomes: Any) -> None:
            count = counts.setdefault(block.arm, [0, 0])
            count[0] += sum(outcome.success for outcome in outcomes)
            count[1] += len(outcomes)
            note = "  ".join(f"{arm} {successes}/{episodes}" for arm, (successes, episodes) in sorted(counts.items()))
            bar.update(task, completed=done, total=total, note=note)

        yield show
