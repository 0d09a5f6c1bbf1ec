"""What a reader needs to run a benchmark again: the plan as a file, what its methods are in full, and what it ran with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from typing import Any
from urllib.parse import urlencode

from robot_rl.benchmark.tables import each_cell
from robot_rl.steering.methods import BASE, METHODS


def options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a method of `BenchmarkPlan.to_json` sets otherwise than by default."""
    if entry["method"] == BASE:
        return {}
    default = {"method": entry["method"], **asdict(METHODS[entry["method"]][1])}
    return {key: value for key, value in entry.items() if value != default[key]}


def plan_file(plan: Mapping[str, Any]) -> dict[str, Any]:
    """`BenchmarkPlan.to_json` as the file that `read_plan` reads."""
    specs = {
        name: "?".join(filter(None, (entry["method"], urlencode(options(entry)))))
        for name, entry in plan["methods"].items()
        if name != BASE
    }
    return {**plan, "methods": specs}


def settings_section(values: Mapping[str, Any]) -> str:
    """As a fragment of HTML."""
    plan = values["plan"]
    contests = [(s, p, contest) for s, policies in values["suites"].items() for p, contest in policies.items()]
    versions = dict.fromkeys(", ".join(map(" ".join, contest["versions"].items())) for _, _, contest in contests)
    command = "robot-rl benchmark plan.json --out results"
    early = any(arms[BASE]["episodes"] < plan["episodes"] for *_, arms in each_cell(values))
    if early:
        command += " --stop-early"
    entries = {
        "environment seeds": f"{plan['seed']} to {plan['seed'] + plan['episodes'] - 1}, the same for every policy and method"
        f"{', the first of them where a cell ended early' if early else ''}",
        **{f"method {name}": _settings(entry) for name, entry in plan["methods"].items() if name != BASE},
        **{f"suite {name}": f"{suite['env']}; critic {suite['critic']}" for name, suite in plan["suites"].items()},
        **{f"{p} in {s}": f"{plan['suites'][s]['policies'][p]}; {_provenance(contest)}" for s, p, contest in contests},
        "versions": "; elsewhere ".join(versions),
        "time": f"{values['work_seconds'] / 60:,.1f} minutes of work, were it done by one process",
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return (
        f"<h2>Settings</h2><dl>{items}</dl><h3>Reproduce</h3><p class=note>With this as plan.json:</p>"
        f"<pre class=plan>{escape(json.dumps(plan_file(plan), indent=1))}</pre><pre>{escape(command)}</pre>"
    )


def _settings(entry: Mapping[str, Any]) -> str:
    return ", ".join([entry["method"], *(f"{key} {value}" for key, value in entry.items() if key != "method")])


def _provenance(contest: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in contest["provenance"].items()
    )
