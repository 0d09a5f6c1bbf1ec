"""`robot-rl data label`: who says which episodes succeeded, and what becomes of their rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from data.errors import InputError, check_settings
from robot_rl.success_classifier.config import ClassifierConfig

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from data import Store
    from robot_rl.success_classifier import SuccessClassifier
    from robot_rl.success_classifier.classifier import FeatureProgress


@dataclass(frozen=True)
class DataLabel:
    """Label the episodes of a store as successes or failures, and its rewards, masks and returns by that; frames stay.

    Labels that are there stay, unless --replace or a hand says otherwise; how far they agree is shown.
    """

    path: tyro.conf.Positional[Path]  # the store
    using: Literal["rule", "classifier", "hand", "journal", "data"]  # journal: an earlier --using hand; data: the labels it has
    rule: str | None = None  # of the last observation, such as 'all_last(state[6] > 0.1 and state[9] == 1, 2)'
    rules: Path | None = None  # a JSON file {"*bowl*": "rule"}, the first pattern that fits an instruction
    classifier: Path | None = None  # folder of a success classifier; where there is none, it is trained on this store's labels
    train: bool = False  # train the classifier again
    certainty: float | None = None  # such as 0.9: the classifier leaves unlabelled what it is less certain of
    browser: bool = False  # label by hand in a browser, not in the terminal
    port: int = 0  # of the browser's page, on this machine only; 0 is any
    journal: Path | None = None  # where labels by hand are kept; by default beside the store
    hindsight: Path | None = None  # a JSON file {"an instruction": "rule"}: what failures achieved instead
    replace: bool = False  # a rule or classifier overrules the labels that are there
    dry_run: bool = False  # show what it would say, and write nothing
    out: Path | None = None  # write a labelled copy, which shares the frames on the disk, and leave the store alone
    json: Path | None = None  # where to write what is shown
    html: Path | None = None  # where to write a page of how well the classifier did on episodes that it never saw
    training: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        check_settings(self, port=(0, 65535))
        if self.certainty is not None:
            check_settings(self, certainty=(0.5, 1.0))

    def _check_options(self) -> None:
        given: dict[str, object] = {
            "--rule": self.rule,
            "--rules": self.rules,
            "--classifier": self.classifier,
            "--train": self.train,
        }
        given |= {"--certainty": self.certainty, "--html": self.html, "--browser": self.browser, "--journal": self.journal}
        fits = {"rule": ("--rule", "--rules"), "classifier": ("--classifier", "--train", "--certainty", "--html")}
        fits |= {"hand": ("--browser", "--journal"), "journal": ("--journal",), "data": ()}
        wrong = [option for option, value in given.items() if value not in (None, False) and option not in fits[self.using]]
        if wrong:
            raise InputError(f"{wrong[0]} says nothing with --using {self.using}; leave one of them out")
        if self.using == "rule" and (self.rule is None) == (self.rules is None):
            raise InputError("--using rule needs either --rule 'state[6] > 0.1' or --rules FILE")
        if self.using == "classifier" and self.classifier is None:
            raise InputError("--using classifier needs --classifier FOLDER, of a trained one or for a new one")
        if self.using == "data" and self.hindsight is None:
            raise InputError("--using data keeps the labels as they are, so it needs --hindsight FILE")

    def run(self) -> None:
        from rich.console import Console

        from data import Store, relabel
        from data.labels.hindsight import achieved_instructions
        from data.labels.rules import read_rules
        from robot_rl.console import check_writable, write_json

        store = Store.open(self.path)
        self._check_options()
        check_writable(self.json)
        check_writable(self.html, "--html")
        check_writable(self.journal, "--journal")
        if self.classifier and (self.train or not self.classifier.is_dir()):
            check_writable(self.classifier, "--classifier", folder=True)
        if not self.dry_run:
            check_writable(self.out or self.path, "--out" if self.out else "the store", folder=True)
        console = Console()
        said, note = self._say(store)
        if self.using in ("hand", "journal", "data"):
            success = said
        else:
            success = said if self.replace else store.success.copy()
            free = success < 0
            success[free] = said[free]
        shown = _compare(store.success, said, success)
        achieved = None
        if self.hindsight:
            achieved = achieved_instructions(store, read_rules(self.hindsight), success)
            shown["achieved another instruction"] = int((achieved >= 0).sum())
            note += f"; {shown['achieved another instruction']} failures achieved another instruction"
        _show(console, shown, compared=self.using in ("rule", "classifier"))
        if self.json:
            write_json(self.json, shown)
        changed = bool((success != store.success).any()) or (achieved is not None and bool((achieved != store.achieved).any()))
        if self.dry_run or not (changed or self.out):
            console.print(f"{self.path}: not written, {'--dry-run' if self.dry_run else 'nothing changes'}", markup=False)
            return
        relabel(self.path, success, achieved=achieved, out=self.out, note=note)
        console.print(f"{self.out or self.path}: labelled", highlight=False, markup=False)

    def _say(self, store: Store) -> tuple[np.ndarray, str]:
        """What the labels should be, int8 [E], and a line for the store's list of changes."""
        if self.using == "rule":
            from data.labels.rules import Rules

            rules = Rules({"*": self.rule}) if self.rule is not None else Rules.load(self.rules or "")
            return rules.label(
                store
            ), f"success by the rule {self.rule!r}" if self.rule else f"success by rules of {self.rules}"
        if self.using == "classifier":
            from robot_rl.console import counting_progress

            with counting_progress("looking at frames") as progress:
                classifier = self._classifier(store, progress)
                probabilities = classifier.probabilities(store, progress)
            self._report(store, classifier)
            return classifier.label(probabilities, self.certainty), f"success by the classifier {self.classifier}"
        if self.using == "data":
            return store.success, "labels as they were"
        from data.labels.labeller import journal_path, read_journal

        journal = self.journal or journal_path(store)
        if self.using == "hand" and self.browser:
            from data.labels.labeller_page import serve_labeller

            serve_labeller(store, journal, self.port)
        elif self.using == "hand":
            from data.labels.labeller_terminal import label_in_terminal

            label_in_terminal(store, journal)
        return read_journal(journal, store), "success by hand"

    def _classifier(self, store: Store, progress: FeatureProgress) -> SuccessClassifier:
        from robot_rl.success_classifier import load_classifier, train_classifier

        assert self.classifier
        if self.classifier.exists() and any(self.classifier.iterdir()) and not self.train:
            return load_classifier(self.classifier)
        classifier = train_classifier(store, self.training, progress)
        classifier.save(self.classifier)
        return classifier

    def _report(self, store: Store, classifier: SuccessClassifier) -> None:
        from rich.console import Console

        from data.atomic import write_file
        from robot_rl.success_classifier import classifier_page, classifier_tables

        Console().print(classifier_tables(classifier.report))
        unseen = sorted(set(store.instructions) - set(classifier.instructions))
        if classifier.report["store"] == store.name:
            Console().print("labels of this store that it was trained on count in the agreement below; the tables are held-out")
        if unseen:
            Console().print(f"never seen in training: {', '.join(map(repr, unseen[:6]))}", markup=False)
        if self.html:
            write_file(self.html, classifier_page(classifier.report))


_NAMES = {1: "success", 0: "failure", -1: "unlabelled"}


def _compare(before: np.ndarray, said: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Counts before and after, and how what was said compares with labels that were there."""
    both = (before >= 0) & (said >= 0)
    return {
        "before": {name: int((before == code).sum()) for code, name in _NAMES.items()},
        "after": {name: int((after == code).sum()) for code, name in _NAMES.items()},
        "agreement": {
            "of": int(both.sum()),
            "agree": int((said == before)[both].sum()),
            "said success of a failure": int((said > before)[both].sum()),
            "said failure of a success": int((said < before)[both].sum()),
        },
    }


def _show(console: Console, shown: dict[str, Any], compared: bool) -> None:
    from rich.table import Table

    from robot_rl.evaluation.statistics import wilson_interval

    before, after, agreement = shown["before"], shown["after"], shown["agreement"]
    table = Table("episodes", "before", "after")
    for name in before:
        table.add_row(name, str(before[name]), str(after[name]))
    console.print(table)
    if compared and agreement["of"]:
        low, high = wilson_interval(agreement["agree"], agreement["of"])
        console.print(
            f"agrees with {agreement['agree']} of {agreement['of']} labels that were there ({low:.1%} to {high:.1%}); "
            f"said success of {agreement['said success of a failure']} failures, "
            f"failure of {agreement['said failure of a success']} successes",
            highlight=False,
        )
    if "achieved another instruction" in shown:
        console.print(f"failures that achieved another instruction: {shown['achieved another instruction']}", highlight=False)
