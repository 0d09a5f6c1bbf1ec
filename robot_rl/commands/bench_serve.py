"""`robot-rl bench serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import POSITIVE, check_settings


@dataclass(frozen=True)
class BenchServe:
    """What the policy server adds to a request: a null policy behind it against a bare websocket, same bytes, same run, loopback."""

    requests: int = 2000  # timed, of each server
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, requests=POSITIVE)

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from robot_rl.console import check_writable, write_json
        from robot_rl.runtime.bench import bench

        check_writable(self.json)
        values = bench(self.requests)
        title = f"one client, loopback, {values['request_bytes'] / 1e3:.0f} kB observation, ms a request"
        table = Table("server", "p50", "p99", "added p50", "added p99", "x p50", "x p50 of same bytes", title=title)
        for row in values["rows"]:
            table.add_row(
                row["what"],
                f"{row['p50']:.3f}",
                f"{row['p99']:.3f}",
                f"{row['added_p50']:+.3f}",
                f"{row['added_p99']:+.3f}",
                f"{row['ratio_p50']:.2f}",
                f"{row['ratio_p50_to_same_bytes']:.2f}",
            )
        Console().print(table)
        if self.json:
            write_json(self.json, values)
