"""`robot-rl data inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


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
