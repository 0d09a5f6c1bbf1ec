"""`robot-rl data inspect|check`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from data.errors import POSITIVE, InputError, check_settings

if TYPE_CHECKING:
    from data.formats.base import Dataset
    from data.source import EpisodeSource


@dataclass(frozen=True)
class _Look:
    """What is looked at."""

    path: tyro.conf.Positional[Path]  # a dataset of any known format, or a store
    split: str = "train"  # of a dataset
    description: Path | None = None  # a robot_rl.json that says what the features mean, instead of the dataset's own
    episodes: int | None = None  # look at the first so many only

    def __post_init__(self) -> None:
        if self.episodes is not None:
            check_settings(self, episodes=POSITIVE)

    def open(self) -> EpisodeSource:
        from data.source import open_source
        from data.store.store import Store
        from robot_rl.console import console

        source = open_source(self.path, self.split, self.description)
        if isinstance(source, Store) and not source.finished:
            running = ", the last of which has not ended" if source.running else ""
            console.print(
                f"{self.path}: not finished (it is being written to, or its writer was stopped), so there are no checksums to compare; "
                f"what follows is of the {source.length} episodes that it holds now{running}",
                highlight=False,
                markup=False,
            )
        return source


@dataclass(frozen=True)
class DataInspect(_Look):
    """Show what a dataset or a converted store holds, as the trainer will see it, and what is wrong with it."""

    json: Path | None = None  # where to write the numbers
    html: Path | None = None  # where to write a page with figures and frames
    draft: Path | None = None  # where to write a first robot_rl.json, guessed from the data
    skip_bad: bool = False  # leave out episodes that cannot be read, and say which

    def run(self) -> None:
        from rich.console import Console

        from data.quality.inspection import report
        from data.quality.survey import survey
        from data.quality.terminal import render
        from robot_rl.console import check_writable, counting_progress, write_json
        from robot_rl.data_page import write_data_page

        for option, path in (("--json", self.json), ("--html", self.html), ("--draft", self.draft)):
            check_writable(path, option)
        dataset = None if self.description else _undescribed(self.path)
        if dataset is not None:
            source: EpisodeSource = self._drafted(dataset)
        else:
            if self.draft:
                self._write_draft()
            source = self.open()
        with counting_progress("looking at episodes") as progress:
            found = survey(source, self.episodes, self.skip_bad, progress)
        values = report(found)
        Console().print(render(values))
        if self.json:
            write_json(self.json, values)
        if self.html:
            write_data_page(self.html, values, found.sample.sheets)

    def _write_draft(self) -> None:
        from data.formats import open_format
        from data.open_x.draft import draft
        from data.store.store import is_store
        from robot_rl.console import write_json

        if is_store(self.path):
            raise InputError(f"{self.path}: a store carries its description already; --draft is for the datasets it is made of")
        assert self.draft
        write_json(self.draft, draft(open_format(self.path)))

    def _drafted(self, dataset: Dataset) -> EpisodeSource:
        """A dataset that nothing describes, as a drafted description reads it; shows its features and the guesses."""
        from rich.console import Console

        from data.open_x.draft import draft, provisional
        from data.open_x.rule import make_rule
        from data.quality.terminal import render_features
        from data.source import DatasetSource
        from robot_rl.console import write_json

        console = Console()
        console.print(render_features(dataset))
        values = draft(dataset)
        if self.draft:
            write_json(self.draft, values)
        for note in values["notes"]:
            console.print(f"guessed: {note}", highlight=False, markup=False)
        hint = f"check {self.draft}" if self.draft else "write the guesses down with --draft robot_rl.json, check them"
        console.print(
            f"nothing describes this dataset; what follows rests on guesses: {hint} and put it beside the data", markup=False
        )
        if not dataset.splits.get(self.split):
            raise InputError(
                f"{dataset.path}: no episodes in split {self.split!r}; it has {', '.join(dataset.splits) or 'none'}"
            )
        return DatasetSource(dataset, self.split, make_rule(provisional(values), dataset.features, "the drafted description"))


@dataclass(frozen=True)
class DataCheck(_Look):
    """Say what in a dataset or store would poison training. Exit code: 0 nothing, 1 something would, 2 it cannot be read at all."""

    json: Path | None = None  # where to write the findings
    skip_bad: bool = False  # episodes that cannot be read are a warning only: `convert --skip-bad` leaves them out

    def run(self) -> int:
        from rich.console import Console

        from data.quality.check import check
        from data.quality.terminal import render_findings
        from data.store.store import Store
        from robot_rl.console import check_writable, counting_progress, write_json

        check_writable(self.json)
        source = self.open()
        if isinstance(source, Store) and source.finished:
            source.verify()
        with counting_progress("checking episodes") as progress:
            found = check(source, self.episodes, progress)
        if self.skip_bad:
            found = [replace(each, severity="warning") if each.fault == "unusable-episode" else each for each in found]
        ok = all(each.severity == "warning" for each in found)
        findings = [each.to_json() for each in found]
        Console().print(render_findings(findings))
        if self.json:
            write_json(self.json, {"path": source.location, "split": source.split, "ok": ok, "findings": findings})
        return 0 if ok else 1


def _undescribed(path: Path) -> Dataset | None:
    """The dataset at a path if neither it nor the registry says what its features mean."""
    from data.formats import open_format
    from data.open_x.registry import registry
    from data.store.store import is_store

    if is_store(path):
        return None
    dataset: Dataset = open_format(path)
    return dataset if dataset.description is None and dataset.name not in registry() else None
