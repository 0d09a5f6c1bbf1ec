"""Suites of a plan that ran elsewhere: simulators that do not install together, or a second machine without Ray between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import InputError, reason
from robot_rl.benchmark.plan import BenchmarkPlan
from robot_rl.benchmark.result import FORMAT, Results
from robot_rl.evaluation.result import EvaluationResult


def read_elsewhere(folders: Sequence[Path], plan: BenchmarkPlan) -> Results:
    """What other runs (folders with a results.json) found of this plan, by suite and policy.

    InputError: one is no run of this plan's episodes, seed and methods, has nothing of it, or what another one has too.
    """
    found: Results = {}
    for folder in folders:
        path = folder / "results.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            part = _part(values, path, plan)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: not the results of a benchmark ({reason(error)}); give the folder of its --out"
            ) from None
        if twice := [f"{policy} in {suite}" for suite, policy in part if (suite, policy) in found]:
            raise InputError(f"{path}: has {twice[0]}, as another of the runs does; give each once")
        found |= part
    return found


def _part(values: dict[str, Any], path: Path, plan: BenchmarkPlan) -> Results:
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: not the results of a benchmark of this version")
    ours, theirs = json.loads(json.dumps(plan.to_json())), values["plan"]
    for what in ("episodes", "seed"):
        if ours[what] != theirs[what]:
            raise InputError(
                f"{path}: ran with {what} {theirs[what]}, the plan says {ours[what]}; run it again, or change the plan"
            )
    for name, settings in ours["methods"].items():
        if theirs["methods"].get(name) != settings:
            raise InputError(
                f"{path}: method {name!r} is missing there or had other settings; run it again, or change --methods"
            )
    for name in set(plan.suites) & set(values["suites"]):
        if (env := theirs["suites"][name]["env"]) != plan.suites[name].env:
            raise InputError(f"{path}: suite {name!r} ran in {env}, the plan says {plan.suites[name].env}; run it again")
    part = {
        (suite, policy): EvaluationResult.from_json(contest, list(ours["methods"]))
        for suite, policies in values["suites"].items()
        for policy, contest in policies.items()
        if suite in plan.suites and policy in plan.suites[suite].policies
    }
    if not part:
        wanted, had = (
            ", ".join(f"{suite}/{policy}" for suite, policies in suites.items() for policy in policies)
            for suites in ({name: suite.policies for name, suite in plan.suites.items()}, values["suites"])
        )
        raise InputError(f"{path}: has {had}, and none of {wanted}; see --suites and --policies too, or leave it out")
    return part
