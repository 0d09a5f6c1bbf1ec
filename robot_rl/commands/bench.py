"""`robot-rl bench ...`: how fast things run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchSim:
    """Control steps, camera frames and resets a second of the tabletop simulator, on one core."""

    seconds: float = 3.0  # of each measurement
    json: Path | None = None  # where to write the numbers

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from sim.bench import bench

        from robot_rl.console import write_json

        values = bench(self.seconds)
        table = Table("measurement", "per second", title="tabletop simulator, one core")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), f"{value:.0f}")
        Console().print(table)
        if self.json:
            write_json(self.json, values)
