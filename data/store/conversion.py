"""convert: any EpisodeSource -> a training store, in one pass with flat memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.atomic import replacing
from data.episode import Episode
from data.errors import InputError
from data.language import DATASET_MODEL, LanguageEncoder
from data.labels.rewards import label
from data.source import EpisodeSource, open_rlds
from data.statistics import compute_statistics
from data.store.store import VERSION, Store, is_store
from data.store.zarr_array import ArrayWriter, MappedArray, write_array, write_group

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Conversion:
    """What `convert` made. skipped: a line for each bad episode. dropped_cameras: those that not every episode has."""

    store: Store
    skipped: list[str]
    dropped_cameras: list[str]


def convert(
    source: EpisodeSource | str | Path,
    out: str | Path,
    *,
    split: str = "train",
    cameras: tuple[str, ...] | None = None,
    success_steps: int = 3,
    discount: float = 0.98,
    language: LanguageEncoder | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the store `out` from a source, or from a split of an RLDS folder, and open it.

    cameras: those to keep, which every episode must have; None keeps those that every episode has. success_steps and discount: the
    reward convention (`data.labels.rewards`). language: embeds the instructions; `LanguageEncoder("dataset")` keeps the data's own embeddings.
    progress: called with (episodes done, episodes in all). Raises InputError for bad input (with `skip_bad` an episode that is
    bad is left out and reported), OSError when the disk fails; either way what was at `out` is untouched.
    """
    if success_steps < 1 or not 0 < discount <= 1:
        raise InputError(f"success_steps is {success_steps} and discount {discount}; they must be >= 1 and in (0, 1]")
    if not isinstance(source, EpisodeSource):
        source = open_rlds(source, split)
    language = language or LanguageEncoder()
    skipped: list[str] = []
    with replacing(Path(out), overwrite, is_store, "training store") as folder:
        if language.model != DATASET_MODEL:
            # A model that cannot be loaded is found out now, not after hours of conversion.
            _ = language.dim
        writer = _StoreWriter(folder, source, cameras, success_steps, discount, language)
        for episode in source.read((lambda error: skipped.append(str(error))) if skip_bad else None, True):
            try:
                writer.add(episode)
            except InputError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
            if progress is not None:
                progress(len(writer.ends) + len(skipped), source.length)
        if not writer.ends:
            raise InputError(
                f"{source.location}: no usable episode in split {source.split!r}" + "".join(f"; {s}" for s in skipped[:1])
            )
        writer.finish(len(skipped))
    return Conversion(Store.open(out), skipped, sorted(writer.dropped))


@dataclass
class _StoreWriter:
    folder: Path
    source: EpisodeSource
    cameras: tuple[str, ...] | None
    success_steps: int
    discount: float
    language: LanguageEncoder
    arrays: dict[str, ArrayWriter] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    success: list[int] = field(default_factory=list)
    instructions: dict[str, int] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def add(self, episode: Episode) -> None:
        """Append an episode, or raise InputError before anything of it is written."""
        episode.validate()
        if self.language.model == DATASET_MODEL and episode.instruction not in self.language.table:
            if episode.instruction_embedding is None:
                raise InputError(
                    f"{episode.source}: carries no language_embedding; choose a sentence-transformers language model"
                )
            self.language.remember(episode.instruction, episode.instruction_embedding)
        rows = self._rows(episode)
        index = self.instructions.setdefault(episode.instruction, len(self.instructions))
        rows["instruction_index"] = np.full(len(episode) + 1, index, np.int32)
        for key, value in rows.items():
            if key not in self.arrays:
                self.arrays[key] = ArrayWriter(self.folder / "data" / key, value.dtype, value.shape[1:])
            self.arrays[key].append(value)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(episode) + 1)
        self.success.append(-1 if episode.success is None else int(episode.success))

    def _rows(self, episode: Episode) -> dict[str, np.ndarray]:
        reward, mask, mc_return = label(len(episode), episode.success, self.success_steps, self.discount)
        rows = {"action": np.concatenate([episode.actions, episode.actions[-1:]]).astype(np.float32)}
        for key, value in (("reward", reward), ("mask", mask), ("mc_return", mc_return)):
            rows[key] = np.append(value, np.float32(0))
        for key, value in episode.observations.items():
            if not key.startswith("image_"):
                rows[key] = value.astype(np.float32)
            elif key not in self.dropped and (self.cameras is None or key in self.cameras):
                rows[key] = value
        self._match(episode, rows)
        return rows

    def _match(self, episode: Episode, rows: dict[str, np.ndarray]) -> None:
        """Hold an episode to the keys and shapes of the first one; cameras that come or go are dropped unless they were asked for."""
        missing = [key for key in self.cameras or () if key not in rows]
        if missing:
            raise InputError(
                f"{episode.source}: has no {', '.join(missing)}; leave it out with --skip-bad, or choose other cameras"
            )
        if not self.ends:
            return
        gone = {key for key in self.arrays if key not in rows and key != "instruction_index"}
        new = {key for key in rows if key not in self.arrays}
        if any(not key.startswith("image_") for key in gone | new):
            raise InputError(f"{episode.source}: has {', '.join(rows)}; the episodes before it have {', '.join(self.arrays)}")
        for key in set(rows) - new:
            if rows[key].shape[1:] != self.arrays[key].row_shape:
                raise InputError(
                    f"{episode.source}: {key} is {rows[key].shape[1:]} a step, {self.arrays[key].row_shape} in the episodes before it"
                )
        for key in gone:
            self.arrays.pop(key).discard()
        for key in new:
            del rows[key]
        self.dropped |= gone | new

    def finish(self, skipped: int) -> None:
        for writer in self.arrays.values():
            writer.close()
        final = np.asarray(self.ends) - 1
        statistics = {}
        for key, writer in self.arrays.items():
            if key == "action" or (writer.dtype == np.float32 and len(writer.row_shape) == 1):
                statistics[key] = compute_statistics(np.delete(MappedArray(writer.folder).load(), final, axis=0))
        counts = {
            "episodes": len(self.ends),
            "steps": self.ends[-1],
            "transitions": self.ends[-1] - len(self.ends),
            "skipped": skipped,
        }
        write_array(self.folder / "meta" / "episode_ends", np.asarray(self.ends, np.int64))
        write_array(self.folder / "meta" / "success", np.asarray(self.success, np.int8))
        write_array(self.folder / "meta" / "instruction_embeddings", self.language.encode(list(self.instructions)))
        write_group(self.folder / "data")
        write_group(self.folder / "meta")
        (self.folder / "dataset_statistics.json").write_text(
            json.dumps(
                {**statistics, "num_trajectories": counts["episodes"], "num_transitions": counts["transitions"]}, indent=1
            )
        )
        attributes = {
            "robot_rl_store": VERSION,
            "source": {"name": self.source.name, "path": self.source.location, "split": self.source.split},
            "action": self.source.action,
            "statistics": statistics,
            "reward": {"step": -1.0, "success": 0.0, "success_steps": self.success_steps, "discount": self.discount},
            "language_model": self.language.model,
            "instructions": list(self.instructions),
            "counts": counts,
        }
        write_group(self.folder, attributes)
