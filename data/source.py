"""EpisodeSource: a stream of Episodes with a name, and what their actions mean. What `convert` and `inspect` read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.episode import Episode
from data.errors import InputError
from data.rlds import RldsDataset
from data.standardize import rule_for, standardize
from data.tfrecord import OnBad


@dataclass(frozen=True)
class EpisodeSource:
    """name, location and split are provenance; action is the action description; length is the number of episodes.

    read(on_bad, images) streams the episodes; `on_bad` is told of an episode that is then skipped, None raises; images=False leaves
    the cameras out.
    """

    name: str
    location: str
    split: str
    action: dict[str, Any]
    length: int
    read: Callable[[OnBad | None, bool], Iterator[Episode]]


def open_rlds(path: str | Path, split: str = "train") -> EpisodeSource:
    """A split of an RLDS dataset folder, standardised. InputError when it is missing, empty or unknown."""
    dataset = RldsDataset.open(path)
    rule, length = rule_for(dataset), dataset.num_episodes(split)
    if not length:
        raise InputError(f"{dataset.path}: split {split!r} has no episodes; it has splits {', '.join(dataset.shards)}")

    def read(on_bad: OnBad | None = None, images: bool = True) -> Iterator[Episode]:
        for raw in dataset.episodes(split, on_bad):
            try:
                episode = standardize(raw, rule, images)
            except InputError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield episode

    return EpisodeSource(dataset.name, str(dataset.path.resolve()), split, rule.action, length, read)
