"""`robot-rl bench data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import POSITIVE, check_settings


@dataclass(frozen=True)
class BenchData:
    """Random transitions a second from a training store, against tf.data, h5py and zarr over the same episodes, in one run."""

    store: Path | None = None  # measure this store instead: its rate, and that sampling it takes no memory
    episodes: int = 200  # of 100 steps that are made and written in every format
    batch_size: int = 256
    seconds: float = 5.0  # of each measurement
    json: Path | None = None  # where to write the numbers

    def __post_init__(self) -> None:
        check_settings(self, episodes=(10, 1e5), batch_size=POSITIVE, seconds=(0.1, 3600))

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from data.store.bench import bench_data, bench_store
        from robot_rl.console import check_writable, console, write_json

        check_writable(self.json)
        if self.store:
            values = bench_store(self.store, self.batch_size, self.seconds)
        else:
            values = bench_data(
                self.episodes, self.batch_size, self.seconds, lambda line: console.print(f"{line} ...", highlight=False)
            )
        title = f"batches of {self.batch_size} random transitions: two images, two proprioceptions, a chunk of 4 actions"
        table = Table("read from", "transitions/s", "the store is", title=title)
        for row in values["rows"]:
            table.add_row(row["what"], f"{row['transitions_per_second']:,.0f}", f"{row['ratio']:.1f}x")
        Console().print(table)
        size = f" of a store of {values['store_gb']:.1f} GB" if "store_gb" in values else ""
        Console().print(
            f"anonymous memory grew by {values['anonymous_growth_mb']:.0f} MB, to {values['anonymous_mb']:.0f} MB, over the "
            f"sampling{size}"
        )
        if self.json:
            write_json(self.json, values)
