"""What a success classifier is worth, for people: tables in the terminal and one HTML page. Everything is of held-out episodes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from robot_rl.evaluation.figures import Series, interval_bar, line_chart
from robot_rl.evaluation.page import page

if TYPE_CHECKING:
    from rich.console import Group

_SHARES = ("accuracy", "majority", "precision", "recall")
_WORDS = {"majority": "always the commoner outcome"}


def classifier_tables(report: dict[str, Any]) -> Group:
    """`SuccessClassifier.report` as rich tables."""
    from rich.console import Group
    from rich.table import Table

    test = report["test"]
    title = f"held-out: {test['episodes']} episodes ({report['training']} trained on)"
    facts = Table("measure", "value", "95% interval", title=title)
    for name in _SHARES:
        facts.add_row(_WORDS.get(name, name), *_cells(test[name]))
    facts.add_row("AUROC", *_cells(test["auroc"]))
    facts.add_row("calibration error (ECE)", f"{test['ece']:.3f}", _error_note(test))
    facts.add_row("threshold", f"{report['threshold']:.2f}", "")
    bins = Table("probability said", "episodes", "succeeded", "95% interval", title="reliability")
    for row in test["bins"]:
        bins.add_row(f"{row['mean']:.2f}", str(row["count"]), *_cells({"value": row["rate"], "interval": row["interval"]}))
    sure = Table("--certainty", "labelled", "accuracy of these", "95% interval", title="leaving out what is uncertain")
    for row in test["abstaining"]:
        sure.add_row(f"{row['certainty']:.2f}", f"{row['labelled']:.0%}", *_cells(row["accuracy"]))
    return Group(facts, bins, sure)


def classifier_page(report: dict[str, Any]) -> str:
    """The same as a whole HTML document."""
    test = report["test"]
    shares = "".join(_row(_WORDS.get(name, name), test[name]) for name in _SHARES)
    diagonal = Series("calibrated", [0.0, 1.0], [0.0, 1.0], "var(--zero)", dashed=True)
    bins = test["bins"]
    measured = Series("held-out", [b["mean"] for b in bins], [b["rate"] for b in bins], "var(--steered)", marked=True)
    bounds = [
        Series(label, [b["mean"] for b in bins], [b["interval"][end] for b in bins], "var(--base)", dashed=True)
        for end, label in ((0, "95% interval"), (1, ""))
    ]
    sure = "".join(
        f"<tr><td>{row['certainty']:.2f}</td><td>{row['labelled']:.0%}</td>{_value(row['accuracy'])}</tr>"
        for row in test["abstaining"]
    )
    body = (
        f"<h1>Success classifier</h1><p class=lead>Trained on {report['training']} episodes of {escape(report['store'])}, "
        f"measured here on {test['episodes']} others that it never saw, "
        f"{test['successes']} of them successes.</p>"
        f"<table><thead><tr><th>measure</th><th>value</th><th></th></tr></thead>{shares}{_row('AUROC', test['auroc'])}</table>"
        f"<p class=note>From a probability of {report['threshold']:.2f} on an episode is called a success. Calibration error (ECE) "
        f"{test['ece']:.3f}; {_error_note(test)}.</p><h2>Reliability</h2>"
        f"{line_chart('Episodes that succeeded', [diagonal, *bounds, measured], 'probability said')}"
        "<h2>Leaving out what is uncertain</h2><table><thead><tr><th>--certainty</th><th>labelled</th>"
        f"<th>accuracy of these</th><th></th></tr></thead>{sure}</table>"
    )
    return page("Success classifier", body)


def _cells(share: dict[str, Any]) -> tuple[str, str]:
    if share["value"] is None:
        return "-", ""
    low, high = share["interval"]
    return f"{share['value']:.3f}", f"{low:.3f} to {high:.3f}"


def _error_note(test: dict[str, Any]) -> str:
    return f"{test['ece_chance']:.3f} expected of perfect ones, {test['ece_uncalibrated']:.3f} before calibration"


def _value(share: dict[str, Any]) -> str:
    if share["value"] is None:
        return "<td>-</td><td></td>"
    value, interval = _cells(share)
    bar = interval_bar(share["value"], tuple(share["interval"]), "var(--steered)")
    return f'<td>{value} <span class="interval">{interval}</span></td><td class="rate">{bar}</td>'


def _row(name: str, share: dict[str, Any]) -> str:
    return f"<tr><td>{escape(name)}</td>{_value(share)}</tr>"
