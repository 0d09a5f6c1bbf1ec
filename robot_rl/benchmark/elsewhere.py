"""What of a plan ran elsewhere: where another simulator is installed, on a second machine without Ray between, or the day before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import InputError, reason
from robot_rl.benchmark.plan import BenchmarkPlan
from robot_rl.benchmark.result import FORMAT, Results
from robot_rl.evaluation.result import EvaluationResult
from robot_rl.steering.methods import BASE

_MUST_AGREE = {"provenance": "another policy or critic", "settings": "other settings", "versions": "other versions"}


def read_elsewhere(folders: Sequence[Path], plan: BenchmarkPlan) -> Results:
    """What other runs (folders with a results.json) found of this plan, by suite and policy; of its methods those that they have.

    InputError: one is no run of this plan's episodes and seed, has nothing of it, or what another one has too.
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
        for (suite, policy), result in part.items():
            if (before := found.get((suite, policy))) is None:
                found[suite, policy] = result
                continue
            where = f"{policy} in {suite}"
            if twice := [name for name in result.outcomes if name in before.outcomes and name != BASE]:
                raise InputError(f"{path}: has {twice[0]} of {where}, as another of the runs does; give each once")
            check_joinable(where, before, result.header)
            check_joinable(where, result, before.header)
            if _course(before) != _course(result):
                raise InputError(f"{path}: {where} acted otherwise alone than in another of the runs; run one of the two again")
            found[suite, policy] = joined(before, result, plan)
    return found


def check_joinable(where: str, before: EvaluationResult, header: Mapping[str, Any]) -> None:
    """InputError where methods that ran, or will run, as this header says cannot stand beside those of `before`."""
    for key, what in _MUST_AGREE.items():
        if before.header[key] != header[key]:
            raise InputError(f"{where} ran elsewhere with {what}; its methods cannot be joined, run all of them again")
    early = [name for name, outcomes in before.outcomes[BASE].items() if len(outcomes) < header["settings"]["episodes"]]
    if early:
        raise InputError(
            f"{where} ended early in {early[0]} elsewhere; methods cannot be added to that, run all of them together"
        )


def _course(result: EvaluationResult) -> list[tuple[str, int, bool, int]]:
    """How every episode of the policy alone went."""
    return [(o.env_id, o.seed, o.success, o.steps) for outcomes in result.outcomes[BASE].values() for o in outcomes]


def joined(first: EvaluationResult, second: EvaluationResult, plan: BenchmarkPlan) -> EvaluationResult:
    """The methods of both, in the plan's order."""
    names = [name for name in plan.methods if name in first.outcomes or name in second.outcomes]
    by = {name: first if name in first.outcomes else second for name in names}
    return replace(
        second,
        outcomes={name: result.outcomes[name] for name, result in by.items()},
        header={**second.header, "arms": {name: result.header["arms"][name] for name, result in by.items()}},
        work_seconds=first.work_seconds + second.work_seconds,
    )


def _part(values: dict[str, Any], path: Path, plan: BenchmarkPlan) -> Results:
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: not the results of a benchmark of this version")
    ours, theirs = json.loads(json.dumps(plan.to_json())), values["plan"]
    for what in ("episodes", "seed"):
        if ours[what] != theirs[what]:
            raise InputError(
                f"{path}: ran with {what} {theirs[what]}, the plan says {ours[what]}; run it again, or change the plan"
            )
    shared = [name for name in ours["methods"] if name in theirs["methods"]]
    for name in shared:
        if theirs["methods"][name] != ours["methods"][name]:
            raise InputError(
                f"{path}: method {name!r} had other settings; give it another name in the plan, or leave the run out"
            )
    for name in set(plan.suites) & set(values["suites"]):
        if (env := theirs["suites"][name]["env"]) != plan.suites[name].env:
            raise InputError(f"{path}: suite {name!r} ran in {env}, the plan says {plan.suites[name].env}; run it again")
    part = {
        (suite, policy): EvaluationResult.from_json(contest, shared)
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
