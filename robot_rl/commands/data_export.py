"""`robot-rl data export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class DataExport:
    """Write a dataset of any format, or a store, in another format, which that format's own tools open."""

    path: tyro.conf.Positional[Path]  # a dataset of any known format, or a store
    out: Path  # the folder (rlds, lerobot) or the .hdf5 file (robomimic) to write
    to: Literal["rlds", "lerobot", "robomimic"]
    images: str | None = None  # rlds: png (lossless) or jpeg; lerobot: h264, av1 or png; by default each one's first
    split: str = "train"
    description: Path | None = None  # a robot_rl.json that says what the data's features mean, where they have none
    skip_bad: bool = False  # leave out episodes that cannot be read, and say which
    overwrite: bool = False  # replace what an earlier export wrote

    def run(self) -> None:
        from data import InputError, LeRobotWriter, RldsWriter, RobomimicWriter, open_source, read_episodes
        from data.errors import without_skip_advice
        from robot_rl.console import check_writable, console, counting_progress, say_left_out

        check_writable(self.out, "--out", folder=self.to != "robomimic")
        kinds: dict[str, tuple[str, ...]] = {"rlds": ("png", "jpeg"), "lerobot": ("h264", "av1", "png"), "robomimic": ()}
        if self.images is not None and self.images not in kinds[self.to]:
            raise InputError(f"--images is {self.images!r}; for {self.to} it can be {', '.join(kinds[self.to]) or 'nothing'}")
        options = {"image_format": self.images} if self.images else {}
        writers = {"rlds": RldsWriter, "lerobot": LeRobotWriter, "robomimic": RobomimicWriter}
        source = open_source(self.path, self.split, self.description)
        skipped: list[str] = []
        on_bad = (lambda error: skipped.append(without_skip_advice(str(error)))) if self.skip_bad else None
        with (
            writers[self.to](self.out, source.action, overwrite=self.overwrite, **options) as writer,
            counting_progress("writing episodes") as progress,
        ):
            for done, episode in enumerate(read_episodes(source, on_bad), 1):
                writer.add(episode, self.split)
                progress(done, source.length)
        say_left_out(skipped)
        console.print(f"{self.out}: written as {self.to}", highlight=False, markup=False)
