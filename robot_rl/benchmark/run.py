"""Run a plan: every policy of every suite is a contest of all methods; one pool of workers runs them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError
from robot_rl.benchmark.elsewhere import check_joinable, joined
from robot_rl.benchmark.plan import BenchmarkPlan
from robot_rl.benchmark.result import BenchmarkResult, Results
from robot_rl.evaluation.evaluate import Contest, MakePool, OnBlock, run_contests
from robot_rl.evaluation.result import EvaluationResult
from robot_rl.evaluation.steering import make_contest


def make_contests(
    plan: BenchmarkPlan, leave_out: Mapping[tuple[str, str], Collection[str]] | None = None
) -> dict[str, Contest]:
    """By `suite/policy`. InputError, which names the two, where policy, critic and environments do not fit together.

    leave_out: methods of a suite and policy that are not to run; where none is left there is no contest.
    """
    contests = {}
    for suite, part in plan.suites.items():
        for policy, spec in part.policies.items():
            left_out = (leave_out or {}).get((suite, policy), ())
            methods = {name: method for name, method in plan.methods.items() if name not in left_out}
            if not methods:
                continue
            try:
                contests[f"{suite}/{policy}"] = make_contest(spec, part.critic, part.env, plan.episodes, plan.seed, methods)
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

    elsewhere: what ran elsewhere, and does not run here. Methods that it lacks do, and are joined with it; such a contest does not end
    early.
    """
    known = elsewhere or {}
    contests = make_contests(plan, {pair: result.outcomes for pair, result in known.items()})
    for suite, policy in known:
        if contest := contests.get(f"{suite}/{policy}"):
            check_joinable(f"{policy} in {suite}", known[suite, policy], contest.header())
    provenance = {
        pair: known[pair].header["provenance"] if pair in known else contests["/".join(pair)].provenance
        for pair in _pairs(plan)
    }
    _check_same_models(plan, provenance)
    found = run_contests(contests, make_pool, journal=journal, stop_early=stop_early, on_block=on_block) if contests else {}
    ran = {(suite, policy): found.get(f"{suite}/{policy}") for suite, policy in _pairs(plan)}
    return BenchmarkResult(plan, {pair: _whole(known.get(pair), here, plan) for pair, here in ran.items()})


def _whole(elsewhere: EvaluationResult | None, here: EvaluationResult | None, plan: BenchmarkPlan) -> EvaluationResult:
    """At least one of the two is there."""
    if elsewhere and here:
        return joined(elsewhere, here, plan)
    found = elsewhere or here
    assert found is not None
    return found


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
