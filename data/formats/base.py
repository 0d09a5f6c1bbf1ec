"""What a reader promises: `Dataset` opens a place on disk, `RawEpisode` is one episode in the dataset's own names.

A reader knows its format and nothing of what the features mean; a Rule (`data.open_x`), which is data, turns a RawEpisode into an
Episode. Datasets are small, hold no open file until they read, and can be pickled: conversion reads them in several processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from data.errors import InputError

DESCRIPTION_FILE = "robot_rl.json"
"""Beside or within a dataset: what no format has a place for (the action description, which feature is what); see data.open_x.rule."""


@dataclass(frozen=True)
class Feature:
    """One leaf. shape and dtype are those of one step (or of the episode); unsupported says why it cannot be read.

    encoding: how a tensor is kept on disk, where its format compresses tensors one by one.
    """

    name: str
    kind: Literal["image", "text", "tensor"]
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    unsupported: str = ""
    encoding: str = "none"


class RawEpisode(Protocol):
    """One episode of N steps in its dataset's own names; a feature is decoded when it is asked for."""

    @property
    def source(self) -> str:
        """Where it came from, for error messages: dataset, split, number, and the file."""

    @property
    def num_steps(self) -> int:
        """N, the number of observations."""

    def step(self, key: str, limit: int | None = None) -> Any:
        """A step feature over time: array [N, ...] of its own dtype (images uint8 [N,H,W,3] RGB), or a list of N strings.

        Where a format stores one observation more than actions, actions and rewards have N-1. `limit` decodes only the first steps
        of an image. InputError when there is no such feature, or it cannot be decoded.
        """

    def metadata(self, key: str, default: Any = None) -> Any:
        """A scalar of the episode (success, ...), or default when the dataset has none of that name."""

    def texts(self) -> dict[str, str]:
        """All texts of the episode (not of its steps), by name."""


class Dataset(Protocol):
    """An opened dataset. InputError from `open` and `episodes` says what is wrong, where, and what to do.

    format: its name in FORMATS. features: step features by the key that `RawEpisode.step` takes. splits: split -> number of episodes.
    description: its robot_rl.json, else what the format itself says of the same things, else None.
    """

    format: str
    path: Path
    name: str

    @property
    def features(self) -> Mapping[str, Feature]: ...

    @property
    def splits(self) -> Mapping[str, int]: ...

    @property
    def description(self) -> dict[str, Any] | None: ...

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the path looks like this format; cheap, and never raises."""

    @classmethod
    def open(cls, path: Path) -> Any: ...

    def episodes(self, split: str, indices: range) -> Iterator[RawEpisode | InputError]:
        """Episodes `indices` (a contiguous range) of a split, in order; an unreadable one is an InputError in its place.

        What is lost is counted: an error that speaks of several episodes (the rest of a damaged file) comes once for each of them.
        Reading a range costs no more than its own episodes: what comes before it is skipped over, not decoded.
        """


@runtime_checkable
class HasAbsent(Protocol):
    """A dataset that may have been copied without some of its splits. absent: such a split -> the first file of it that is missing."""

    absent: Mapping[str, Path]


@runtime_checkable
class HasGaps(Protocol):
    """A dataset whose format reads what is not there as a fill value, without an error."""

    def gaps(self, split: str) -> Mapping[str, list[int]]:
        """Step feature -> the episodes of a split of which a part is not in the files."""
