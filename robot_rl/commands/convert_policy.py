"""`robot-rl convert-policy`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from data.errors import InputError


@dataclass(frozen=True)
class ConvertPolicy:
    """Convert a .ckpt of Stanford's diffusion_policy, a pickle, into a folder of weights and settings that is none."""

    checkpoint: tyro.conf.Positional[Path]  # e.g. data/outputs/.../checkpoints/latest.ckpt
    out: Path  # the folder to write
    yes: bool = False  # do not ask
    overwrite: bool = False  # replace an existing folder

    def run(self) -> None:
        from robot_rl.console import console

        if not self.checkpoint.is_file():
            raise InputError(f"{self.checkpoint}: there is no such file; give the .ckpt that the training wrote")
        console.print(
            f"{self.checkpoint} is a pickle: opening one can run any code that its author, or whoever had it since, put into it.\n"
            "Here it is opened by a reader that makes tensors, numbers and settings and calls nothing else in it; torch, numpy and "
            "this program still have to withstand it. Convert only files from somebody you trust.",
            highlight=False,
            soft_wrap=True,
        )
        if not self.yes and not self._confirmed():
            raise InputError(f"{self.checkpoint}: not opened, nothing written")
        from policies.formats.stanford_checkpoint import convert_checkpoint

        made = convert_checkpoint(self.checkpoint, self.out, self.overwrite)
        for name in made.replaced:
            console.print(f"left out, not run: {name}", highlight=False)
        done = f"{self.out}: {made.parameters:,} numbers of its {made.source}; load it as diffusion_policy:{self.out}"
        console.print(done, highlight=False, soft_wrap=True)

    def _confirmed(self) -> bool:
        if not sys.stdin.isatty():
            raise InputError(f"{self.checkpoint}: there is no terminal to ask whether to open this pickle; add --yes to say so")
        return input("Open it? [y/N] ").strip().lower() in ("y", "yes")
