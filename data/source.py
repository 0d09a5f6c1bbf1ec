"""EpisodeSource: numbered Episodes with a name, and what their actions mean. What `convert` and `inspect` read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data.episode import Episode
from data.errors import InputError
from data.formats.base import HasAbsent, HasGaps

OnBad = Callable[[InputError], None]
"""Called with what is wrong with an episode that is then skipped; None in its place means raise."""


class EpisodeSource(Protocol):
    """name, location and split are provenance; action is the action description; length the number of episodes.

    changes: what standardisation does to the data, a line each, for people to read.
    """

    @property
    def name(self) -> str: ...

    @property
    def location(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def action(self) -> dict[str, Any]: ...

    @property
    def length(self) -> int: ...

    @property
    def changes(self) -> tuple[str, ...]: ...

    def read(self, indices: range, images: bool = True) -> Iterator[Episode | InputError]:
        """Episodes `indices` (a contiguous range), in order; a bad one is an InputError in its place. images=False: no cameras."""


@dataclass(frozen=True)
class EpisodeList:
    """Episodes in memory as a source."""

    name: str
    action: dict[str, Any]
    items: Sequence[Episode]
    location: str = "memory"
    split: str = "train"
    changes: tuple[str, ...] = field(default=())

    @property
    def length(self) -> int:
        return len(self.items)

    def read(self, indices: range, images: bool = True) -> Iterator[Episode | InputError]:
        for index in indices:
            try:
                episode = self.items[index].validate()
            except InputError as error:
                yield error
            else:
                yield episode if images else episode.without_images()


@dataclass(frozen=True)
class DatasetSource:
    """A split of a dataset of any format, standardised by a rule."""

    dataset: Any
    split: str
    rule: Any

    @property
    def name(self) -> str:
        return str(self.dataset.name)

    @property
    def location(self) -> str:
        return str(Path(self.dataset.path).resolve())

    @property
    def action(self) -> dict[str, Any]:
        return dict(self.rule.action)

    @property
    def length(self) -> int:
        return int(self.dataset.splits[self.split])

    @property
    def changes(self) -> tuple[str, ...]:
        return tuple(self.rule.changes)

    def gaps(self) -> dict[str, list[int]]:
        """Our key -> the episodes of which a part is not in the files, and is read as a fill value."""
        found = self.dataset.gaps(self.split) if isinstance(self.dataset, HasGaps) else {}
        keys = {ours: sorted({n for key in theirs for n in found.get(key, ())}) for ours, theirs in self.rule.reads.items()}
        return {ours: episodes for ours, episodes in keys.items() if episodes}

    def read(self, indices: range, images: bool = True) -> Iterator[Episode | InputError]:
        from data.open_x.standardize import standardize

        for raw in self.dataset.episodes(self.split, indices):
            if isinstance(raw, InputError):
                yield raw
                continue
            try:
                episode = standardize(raw, self.rule, images)
            except InputError as error:
                yield error
            else:
                # None: the rule leaves this episode out.
                if episode is not None:
                    yield episode


def open_dataset(path: str | Path, split: str = "train", description: str | Path | None = None) -> DatasetSource:
    """A split of a dataset of any known format, standardised.

    description: a robot_rl.json that says what its features mean; without one, the dataset's own, or that of the registry of Open-X
    datasets. InputError when the dataset is missing, empty or unknown.
    """
    from data.formats import open_format
    from data.open_x.rule import rule_for

    dataset = open_format(path)
    if isinstance(dataset, HasAbsent) and split in dataset.absent:
        raise InputError(f"{dataset.absent[split]} is missing, so there is no split {split!r}; copy it again")
    if split not in dataset.splits:
        raise InputError(f"{dataset.path}: no split {split!r}; it has {', '.join(map(repr, dataset.splits)) or 'none'}")
    if not dataset.splits[split]:
        raise InputError(f"{dataset.path}: split {split!r} has no episodes; it has splits {', '.join(dataset.splits)}")
    return DatasetSource(dataset, split, rule_for(dataset, description))


def read_episodes(source: EpisodeSource, on_bad: OnBad | None = None, images: bool = True) -> Iterator[Episode]:
    """All episodes of a source. A bad one raises its InputError, or goes to `on_bad` and is left out."""
    for item in source.read(range(source.length), images):
        if isinstance(item, Episode):
            yield item
        elif on_bad is None:
            raise item
        else:
            on_bad(item)


def open_source(path: str | Path, split: str = "train", description: str | Path | None = None) -> EpisodeSource:
    """A training store, or a split of a dataset of any known format. InputError as of `open_dataset`."""
    from data.store.store import Store, is_store

    return Store.open(path) if is_store(Path(path)) else open_dataset(path, split, description)
