"""What the terminal shows while something long runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.atomic import write_file
from data.errors import InputError

console = Console(stderr=True)


QUIET_SECONDS = 10.0
Update = Callable[[int, "int | None", str], None]


@contextmanager
def progress_bars(*names: str, at_once: bool = False) -> Iterator[dict[str, Update]]:
    """A bar a name, moved by calling its (done, total, note); in a log or a pipe, a line every ten seconds
    instead, the first of them at_once or after as long.

    The bars stay in sight when the work is done, and make way for the error line when it fails.
    """
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    moved = False
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def updater(name: str) -> Update:
            task, spoke = bar.add_task(name, total=None, note=""), time.monotonic() - QUIET_SECONDS * at_once

            def update(done: int, total: int | None, note: str) -> None:
                nonlocal moved, spoke
                moved = True
                bar.update(task, completed=done, total=total, note=note)
                if not console.is_terminal and (done == total or time.monotonic() - spoke > QUIET_SECONDS):
                    spoke = time.monotonic()
                    left = next(entry.time_remaining for entry in bar.tasks if entry.id == task)
                    when = f"  {timedelta(seconds=left)} left" if left else ""
                    console.print(f"{name}: {done}/{total} {note}".rstrip() + when, highlight=False, soft_wrap=True)

            return update

        try:
            yield {name: updater(name) for name in names}
        except BaseException:
            moved = False
            raise
        finally:
            bar.live.transient = not moved


@contextmanager
def training_progress(what: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A progress callback for robot_rl.training.train."""
    name = f"training the {what}"
    with progress_bars(name, at_once=True) as bars:
        yield lambda step, steps, row: bars[name](step, steps, loss_note(row))


def loss_note(row: Mapping[str, float]) -> str:
    return f"loss {row['loss'] if 'loss' in row else row['q_loss']:.4f}"


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A (done, total or None) callback."""
    with progress_bars(what) as bars:
        yield lambda done, total: bars[what](done, total, "")


@contextmanager
def evaluation_progress() -> Iterator[Any]:
    """A callback for robot_rl.evaluation.evaluate, which shows each arm's successes so far."""
    name = "evaluating (blocks)"
    with progress_bars(name) as bars:
        counts: dict[str, list[int]] = {}

        def show(done: int, total: int, block: Any, outcomes: Any) -> None:
            count = counts.setdefault(block.arm, [0, 0])
            count[0] += sum(outcome.success for outcome in outcomes)
            count[1] += len(outcomes)
            note = "  ".join(f"{arm} {successes}/{episodes}" for arm, (successes, episodes) in sorted(counts.items()))
            bars[name](done, total, note)

        yield show


def say_left_out(skipped: Sequence[str]) -> None:
    """Say what is wrong with the episodes that were skipped; what is said of several (of a cut file) once, with their number."""
    for line, count in Counter(skipped).items():
        console.print(f"left out{f' ({count} episodes)' if count > 1 else ''}: {line}", highlight=False, markup=False)


@contextmanager
def benchmark_progress() -> Iterator[Any]:
    """A callback for robot_rl.benchmark.run_benchmark, which shows what has just been finished, and the errors so far."""
    name = "benchmark (blocks)"
    with progress_bars(name) as bars:
        errors = 0

        def show(done: int, total: int, block: Any, outcomes: Any) -> None:
            nonlocal errors
            errors += sum(outcome.error is not None for outcome in outcomes)
            successes = sum(outcome.success for outcome in outcomes)
            failed = f"  {errors} errors so far" if errors else ""
            bars[name](done, total, f"{block}: {successes}/{len(outcomes)}{failed}")

        yield show


def check_writable(path: Path | None, option: str = "--json", folder: bool = False) -> None:
    """Complain before the work, not after it, when the result, a file or a folder, could not be written there (InputError)."""
    if path is None:
        return
    if path.is_dir() and not folder:
        raise InputError(f"{option} {path}: is a folder; give a file in it, such as {path / 'results.json'}")
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"{option} {path}: is a file, a folder is to be written; give another place")
    if not folder and path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: is a device or pipe, which writing would replace; give a file")
    places = path.absolute().parents if path.is_file() else (path.absolute(), *path.absolute().parents)
    existing = next(place for place in places if place.exists())
    try:
        with TemporaryFile(dir=existing):  # what permissions say is not all: read-only disks, quotas
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path}: {existing} is no folder that can be written to ({error.strerror}); give another place"
        ) from None


def check_replaceable(path: Path | None, option: str, format: str) -> None:
    """Complain before the work when another program's file, or another command's, would be replaced (InputError).

    format: what the JSON that may be replaced has as its "format".
    """
    if path is None or not path.exists():
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        ours = isinstance(values, dict) and values.get("format") == format
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise InputError(f"{option} {path}: is there, and no result of this command; it would be lost, give another place")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON beside its place and rename it."""
    write_file(path, json.dumps(values, indent=1) + "\n")
