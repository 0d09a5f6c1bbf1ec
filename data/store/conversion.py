"""convert: any EpisodeSource -> a training store, in parallel, with flat memory, resumed after a kill by the same call.

Workers read and prepare a few episodes at a time; this process appends them in the source's order and commits. What is being made
lies beside its place as `.<name>.partial`, and is renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import check_place, install
from data.episode import Episode
from data.errors import InputError, without_skip_advice
from data.labels.rewards import RewardConfig
from data.language import DATASET_MODEL, LanguageEncoder
from data.source import EpisodeSource
from data.store.array import MappedArray, replace_text
from data.store.commit import COMMIT, read_commit
from data.store.preparation import TASK_EPISODES, Preparation, Prepared, prepare_all
from data.store.store import Store, is_store
from data.store.writer import LEFT_OUT, VERSION, StoreWriter, lock

Progress = Callable[[int, int | None], None]
_KIND = "training store"
_STATE = ".conversion.json"
_SKIPPED = ".skipped.jsonl"


@dataclass(frozen=True)
class ConversionConfig:
    """What becomes of the episodes.

    preparation: which cameras, at which size, kept how. reward: the convention, or the data's own. episodes: at most so many.
    """

    preparation: Preparation = field(default_factory=Preparation)
    reward: RewardConfig = field(default_factory=RewardConfig)
    episodes: int | None = None


@dataclass(frozen=True)
class Conversion:
    """What `convert` made. skipped: a line for each bad episode. dropped_cameras: those that not every episode has.

    resumed: how many episodes of the source an earlier, killed run had done. discarded: how many it had done with other settings.
    """

    store: Store
    skipped: list[str]
    dropped_cameras: list[str]
    resumed: int
    discarded: int


def convert(
    source: EpisodeSource,
    out: str | Path,
    config: ConversionConfig | None = None,
    *,
    language: LanguageEncoder | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Write the store `out` from a source, and open it.

    language: embeds the instructions; `LanguageEncoder("dataset")` keeps the data's own embeddings. workers: processes that read and
    decode; 0 does it in this one. progress: called with (episodes done, episodes in all). Raises InputError for bad input (with
    `skip_bad` an episode that is bad is left out and reported), OSError when the disk fails; what was at `out` is untouched then, and
    what was converted so far is kept: the same call, or one with `skip_bad`, goes on from there.
    """
    config, language = config or ConversionConfig(), language or LanguageEncoder()
    out = check_place(Path(out), overwrite, is_store, _KIND)
    _check_cameras(source, config.preparation.cameras or ())
    if language.model != DATASET_MODEL:
        # A model that cannot be loaded is found out now, not after hours of conversion.
        _ = language.dim
    length = min(source.length, config.episodes or source.length)
    work: _Work | None = None
    try:
        work = _Work.begin(out, source, config, language)
        if isinstance(source, Store):
            for text in source.instructions:  # under the same numbers: an episode may have achieved one that comes later
                work.writer.instruction(text, source.language.table[text])
        resumed = work.writer.state.position
        # Closed here and now when something fails, not when the garbage is collected, in whatever thread.
        with closing(prepare_all(source, range(resumed, length), config.preparation, workers)) as tasks:
            for done, items in tasks:
                for item in items:
                    work.add(item, done, skip_bad)
                work.writer.commit(position=done)
                if progress is not None:
                    progress(done, length)
        work.finish(source, length)
    except OSError as error:
        error.filename = error.filename or str(out)  # a write that failed does not say where
        raise
    finally:
        if work is not None:
            work.writer.close()
    try:
        install(work.folder, out, overwrite, is_store, _KIND)
    except InputError:
        shutil.rmtree(work.folder)  # another process was first; what it made is there
        raise
    for name in (_STATE, _SKIPPED):
        (out / name).unlink(missing_ok=True)
    return Conversion(Store.open(out), work.skipped, sorted(work.dropped), resumed, work.discarded)


def partial_folder(out: Path) -> Path:
    """Where the store `out` lies while it is being made."""
    return out.parent / f".{out.name}.partial"


@dataclass
class _Work:
    folder: Path
    writer: StoreWriter
    config: ConversionConfig
    skipped: list[str]
    dropped: set[str]
    identity: dict[str, Any]
    discarded: int = 0

    @classmethod
    def begin(cls, out: Path, source: EpisodeSource, config: ConversionConfig, language: LanguageEncoder) -> _Work:
        """Start in the folder beside `out`, or go on in it if it holds the same conversion."""
        folder = partial_folder(out)
        action, reward = source.action, config.reward.to_json()
        provenance = {"name": source.name, "path": source.location, "split": source.split}
        meaning = {
            "source": provenance,
            "action": action,
            "rule": repr(getattr(source, "rule", None)),
            # A store may grow or be labelled between a kill and the next run; what was made of the old one does not go on then.
            "store": repr((source.identity, source.committed)) if isinstance(source, Store) else None,
            "language": language.model,
        }
        identity = json.loads(json.dumps({"version": VERSION, **asdict(config), **meaning}))
        state = _read_state(folder)
        if state is None or state["identity"] != identity:
            discarded = 0
            if folder.is_dir():
                os.close(lock(folder))  # InputError when somebody is at work there
                with suppress(InputError):
                    discarded = read_commit(folder / "meta" / COMMIT).position
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            attributes = {
                "robot_rl_store": VERSION,
                "source": provenance,
                "action": action,
                "reward": reward,
                "language_model": language.model,
                "changes": [],
            }
            writer = StoreWriter(folder, attributes, language, config.preparation.storage == "jpeg")
            work = cls(folder, writer, config, [], set(), identity, discarded)
            work.save()
            return work
        for camera in state["dropped"]:
            for kind in ("data", "jpeg"):
                shutil.rmtree(folder / kind / camera, ignore_errors=True)
        writer = StoreWriter(folder, None, language, config.preparation.storage == "jpeg")
        return cls(folder, writer, config, _read_skipped(folder, writer.state.position), set(state["dropped"]), identity)

    def save(self) -> None:
        replace_text(self.folder / _STATE, json.dumps({"identity": self.identity, "dropped": sorted(self.dropped)}))

    def skip(self, error: InputError, position: int) -> None:
        self.skipped.append(without_skip_advice(str(error)))
        with (self.folder / _SKIPPED).open("a") as file:
            file.write(json.dumps([position, self.skipped[-1]]) + "\n")

    def add(self, item: Prepared | InputError, position: int, skip_bad: bool) -> None:
        """Append an episode, or, of a bad one, nothing: InputError, or a line among the skipped."""
        try:
            if isinstance(item, InputError):
                raise item
            if self.writer.language.model == DATASET_MODEL and item.instruction_embedding is None:
                raise InputError(f"{item.source}: carries no language_embedding; choose a sentence-transformers language model")
            number = self.writer.instruction(item.instruction, item.instruction_embedding)
            rows = self._rows(item)
        except InputError as error:
            if not skip_bad:
                raise
            self.skip(error, position)
            return
        rows["instruction_index"] = np.full(item.length + 1, number, np.int32)
        self.writer.append(rows)
        self.writer.end_episode(item.success, self.writer.instructions.get(item.achieved or "", -1))

    def _rows(self, item: Prepared) -> dict[str, Any]:
        labels = self.config.reward.label(item.length, item.success, item.rewards, item.terminated, item.source)
        rows: dict[str, Any] = {**item.rows}
        for key, value in zip(("reward", "mask", "mc_return"), labels, strict=True):
            rows[key] = np.append(value, np.float32(0))
        for camera in self.dropped:
            rows.pop(camera, None)
        if self.writer.rows:
            self._match(item, rows)
        return rows

    def _match(self, item: Prepared, rows: dict[str, Any]) -> None:
        """Hold an episode to the keys and shapes of the first one; cameras that come or go are dropped unless they were asked for."""
        arrays = self.writer.arrays
        gone = {key for key in arrays if key not in rows and key != "instruction_index"}
        new = {key for key in rows if key not in arrays}
        if any(not key.startswith("image_") for key in gone | new):
            raise InputError(f"{item.source}: has {', '.join(rows)}; the episodes before it have {', '.join(arrays)}")
        for key in set(rows) - new:
            shape = item.image_shapes.get(key) or rows[key].shape[1:]
            if shape != arrays[key].row_shape:
                raise InputError(
                    f"{item.source}: {key} is {shape} a step, {arrays[key].row_shape} in the episodes before it; "
                    "leave it out with --skip-bad"
                    + (", or give all one size with --image-size" if key in item.image_shapes else "")
                )
        if gone | new:
            # Noted before it is done: a killed run does not find half a camera.
            self.dropped |= gone | new
            self.save()
            for key in gone:
                self.writer.drop(key)
            for key in new:
                del rows[key]

    def finish(self, source: EpisodeSource, length: int) -> None:
        if not self.writer.episodes:
            first = "".join(f"; {line}" for line in self.skipped[:1])
            raise InputError(f"{source.location}: no usable episode in split {source.split!r}{first}")
        changes = [*source.changes, *self.config.preparation.changes()]
        if self.dropped:
            changes.append(f"cameras that not every episode has are left out: {', '.join(sorted(self.dropped))}")
        if self.skipped:
            changes.append(f"{len(self.skipped)} bad episodes are left out")
        success = MappedArray(self.folder / "meta" / "success", self.writer.episodes).view
        lengths = np.diff(MappedArray(self.folder / "meta" / "episode_ends", self.writer.episodes).view, prepend=0) - 1
        changes += self.config.reward.assumptions(success, lengths)
        if length < source.length:
            changes.append(f"only the first {length} of {source.length} episodes are kept")
        left_out = [*(source.left_out if isinstance(source, Store) else ()), *self.skipped]
        if left_out:
            replace_text(self.folder / LEFT_OUT, json.dumps(left_out, indent=1))
        self.writer.finish(changes)


def _check_cameras(source: EpisodeSource, wanted: Sequence[str]) -> None:
    """InputError when none of the first episodes has a camera: a mistyped name is told before hours of conversion."""
    if not wanted:
        return
    episodes = [item for item in source.read(range(min(source.length, TASK_EPISODES))) if isinstance(item, Episode)]
    known = sorted({key for episode in episodes for key in episode.observations if key.startswith("image_")})
    unknown = [camera for camera in wanted if camera not in known]
    if episodes and unknown:
        raise InputError(f"{source.location}: has no camera {', '.join(unknown)}; it has {', '.join(known) or 'none'}")


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / _STATE).read_text())
        return state if isinstance(state, dict) and {"identity", "dropped"} <= set(state) else None
    except (OSError, ValueError):
        return None


def _read_skipped(folder: Path, position: int) -> list[str]:
    """What was skipped up to the last commit; a line that a kill cut off is of an episode that is read again."""
    path, kept = folder / _SKIPPED, []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            at, message = json.loads(line)
        except ValueError:
            break
        if at <= position:
            kept.append((at, message))
    replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return [message for _, message in kept]
