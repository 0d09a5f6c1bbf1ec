"""inspect: what a dataset holds, as the trainer will see it. Works on RLDS folders and on training stores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import InputError
from data.source import open_rlds
from data.statistics import STATISTICS, compute_statistics
from data.store.store import Store, is_store

if TYPE_CHECKING:
    from rich.console import Group

_DEAD = 1e-6


def inspect(path: str | Path, split: str = "train", skip_bad: bool = False) -> dict[str, Any]:
    """Describe a dataset, JSON-ready. A store has one split and no bad episodes: `split` and `skip_bad` are for RLDS.

    Raises InputError for a bad dataset; with `skip_bad`, bad episodes are left out and `skipped` has a line for each.

    format, name, path, split; episodes; steps (observations, as RLDS counts them: T+1 an episode); transitions; instructions
    {text: episodes}; episode_length {min, median, max} in transitions; cameras {name: [H,W]}; vectors {name: size};
    action (its description); statistics (of the standardised action: mean, std, min, max, q01, q99, lists of A);
    dead_dimensions (names of action dimensions that never move); success {true, false, unlabelled} in episodes.
    """
    return _inspect_store(Store.open(path)) if is_store(Path(path)) else _inspect_rlds(path, split, skip_bad)


def _inspect_rlds(path: str | Path, split: str, skip_bad: bool) -> dict[str, Any]:
    source = open_rlds(path, split)
    skipped: list[str] = []
    on_bad = (lambda error: skipped.append(str(error))) if skip_bad else None
    actions, instructions, success = [], Counter[str](), Counter[bool | None]()
    # Without decoding the images: statistics of a whole Open-X dataset should not take hours.
    for episode in source.read(on_bad, False):
        actions.append(episode.actions)
        instructions[episode.instruction] += 1
        success[episode.success] += 1
    if not actions:
        raise InputError(f"{source.location}: no usable episode in split {split!r}; {skipped[0]}")
    first = next(source.read((lambda _: None) if skip_bad else None, True), None)
    shapes = {key: value.shape[1:] for key, value in first.observations.items()} if first else {}
    provenance = {"format": "rlds", "name": source.name, "path": source.location, "split": split}
    statistics = compute_statistics(np.concatenate(actions))
    report = _report(provenance, [len(a) for a in actions], dict(instructions), shapes, source.action, statistics, success)
    return {**report, "skipped": skipped}


def _inspect_store(store: Store) -> dict[str, Any]:
    lengths = np.diff(store.episode_ends, prepend=0) - 1
    index = store.gather("instruction_index", store.episode_ends - 1)
    instructions = {text: int((index == i).sum()) for i, text in enumerate(store.instructions)}
    success = Counter({1: True, 0: False, -1: None}[int(value)] for value in store.success)
    provenance = {"format": "store", "name": store.name, "path": str(store.path), "split": store.attributes["source"]["split"]}
    shapes = {key: store.shape(key) for key in store.observation_keys}
    return _report(provenance, lengths.tolist(), instructions, shapes, store.action, store.statistics["action"], success) | {
        "skipped": []
    }


def _report(
    provenance: dict[str, Any],
    lengths: list[int],
    instructions: dict[str, int],
    shapes: dict[str, tuple[int, ...]],
    action: dict[str, Any],
    statistics: dict[str, list[float]],
    success: Counter[bool | None],
) -> dict[str, Any]:
    return {
        **provenance,
        "episodes": len(lengths),
        "steps": sum(lengths) + len(lengths),
        "transitions": sum(lengths),
        "instructions": dict(sorted(instructions.items(), key=lambda item: (-item[1], item[0]))),
        "episode_length": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
        "cameras": {key: list(shape[:2]) for key, shape in shapes.items() if key.startswith("image_")},
        "vectors": {key: shape[0] for key, shape in shapes.items() if not key.startswith("image_")},
        "action": action,
        "statistics": statistics,
        "dead_dimensions": [name for name, std in zip(action["names"], statistics["std"], strict=True) if std < _DEAD],
        "success": {"true": success[True], "false": success[False], "unlabelled": success[None]},
    }


def render(report: dict[str, Any]) -> Group:
    """The report of `inspect` as rich tables, for `rich.print`."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    facts = Table(show_header=False, box=None)
    length, success = report["episode_length"], report["success"]
    cameras = ", ".join(f"{key} {height}x{width}" for key, (height, width) in report["cameras"].items())
    for key, value in {
        "dataset": f"{report['name']} ({report['format']}, split {report['split']})",
        "path": report["path"],
        "episodes": f"{report['episodes']} ({success['true']} succeed, {success['false']} fail, {success['unlabelled']} unlabelled)",
        "steps": f"{report['steps']} ({report['transitions']} transitions)",
        "episode length": f"{length['min']} to {length['max']} transitions, median {length['median']:g}",
        "cameras": cameras or "none",
        "vectors": ", ".join(f"{key} ({size})" for key, size in report["vectors"].items()) or "none",
        "control": f"{report['action']['control_hz']:g} Hz, {report['action']['frame']}",
        "dead dimensions": ", ".join(report["dead_dimensions"]) or "none",
        "bad episodes": f"{len(report['skipped'])} left out" if report["skipped"] else "none",
    }.items():
        facts.add_row(f"[bold]{key}[/bold]", escape(value))
    actions = Table("action", "unit", *STATISTICS, title="standardised action")
    for index, name in enumerate(report["action"]["names"]):
        numbers = (f"{report['statistics'][key][index]:.3g}" for key in STATISTICS)
        actions.add_row(escape(name), escape(report["action"]["units"][index]), *numbers)
    shown = list(report["instructions"].items())[:20]
    instructions = Table("instruction", "episodes", title=f"{len(report['instructions'])} instructions")
    for text, count in shown:
        instructions.add_row(escape(text), str(count))
    return Group(facts, actions, instructions)
