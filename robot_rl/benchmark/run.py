"""Run a plan: every policy of every suite is a contest of all methods; one pool of workers runs them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError
from robot_rl.benchmark.plan import BenchmarkPlan
from robot_rl.benchmark.result import BenchmarkResult, Results
from robot_rl.evaluation.evaluate import Contest, MakePool, OnBlock, run_contests
from robot_rl.evaluation.steering import make_contest


def make_contests(plan: BenchmarkPlan, leave_out: Collection[tuple[str, str]] = ()) -> dict[str, Contest]:
    """By `suite/policy`. InputError, which names the two, where policy, critic and environments do not fit together."""
    contests = {}
    for suite, part in plan.suites.items():
        for policy, spec in part.policies.items():
            if (suite, policy) in leave_out:
                continue
            try:
                contests[f"{suite}/{policy}"] = make_contest(
                    spec, part.critic, part.env, plan.episodes, plan.seed, plan.methods
                )
            except InputError as error:
                raise InputError(f"{suite}, {policy}: {error}") from error
    return contests


def run_benchmark(
    plan: BenchmarkPlan,
    make_pool: MakePool,
    *,
    journal: Path | None = None,
    stop_early: bool = False,
    on_block: OnBlock | None = None,
    elsewhere: Results | None = None,
) -> BenchmarkResult:
    """Run (or resume) a benchmark; see `run_contests`. The result is the same whatever the pool, and after any number of kills.

    elsewhere: contests that ran elsewhere, which are not run here.
    """
    known = elsewhere or {}
    contests = make_contests(plan, known)
    provenance = {
        pair: known[pair].header["provenance"] if pair in known else contests["/".join(pair)].provenance
        for pair in _pairs(plan)
    }
    _check_same_models(plan, provenance)
    found = run_contests(contests, make_pool, journal=journal, stop_early=stop_early, on_block=on_block) if contests else {}
    return BenchmarkResult(plan, {pair: known[pair] if pair in known else found["/".join(pair)] for pair in _pairs(plan)})


def _pairs(plan: BenchmarkPlan) -> list[tuple[str, str]]:
    return [(suite, policy) for suite, part in plan.suites.items() for policy in part.policies]


def _check_same_models(plan: BenchmarkPlan, provenance: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """InputError where one critic or policy of the plan was not the same in two contests, one of which ran elsewhere."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for suite, policy in _pairs(plan):
        for what, spec in (("critic", plan.suites[suite].critic), ("policy", plan.suites[suite].policies[policy])):
            other = first.setdefault((what, spec), (suite, policy))
            if provenance[other][what] != provenance[suite, policy][what]:
                raise InputError(
                    f"the {what} {spec} was not the same in {'/'.join(other)} and {suite}/{policy}: it has changed between the two "
                    "runs; run the older one again"
                )
