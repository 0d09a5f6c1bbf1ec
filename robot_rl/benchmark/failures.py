"""Where the first method fails although it had a critic to ask: the episodes on which the critic's members disagreed most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from robot_rl.benchmark.result import BenchmarkResult, Results
from robot_rl.benchmark.run import make_contests
from robot_rl.evaluation.clips import VIDEO_BYTES, outcome_word, side_by_side
from robot_rl.evaluation.recording import OnProgress, Wanted, record_episodes
from robot_rl.evaluation.rollout import EpisodeOutcome
from robot_rl.steering.methods import BASE

PER_CELL = 2


@dataclass(frozen=True)
class Failure:
    """An episode that a method failed, and the base's of the same seed; both recorded. control_hz: hence the videos' speed."""

    suite: str
    policy: str
    method: str
    failed: EpisodeOutcome
    base: EpisodeOutcome
    control_hz: float


def record_failures(
    result: BenchmarkResult,
    count: int,
    workers: int,
    on_progress: OnProgress | None = None,
    elsewhere: Results | None = None,
    time_limit: float = 3600,
) -> list[Failure]:
    """Run up to `count` failures of the first method again with a camera, and the base's episodes beside them.

    elsewhere: what ran elsewhere, and may not run here. time_limit: as for `record_episodes`.
    """
    method = _first(result)
    foreign = {pair for pair, contest in (elsewhere or {}).items() if method in contest.outcomes}
    chosen = choose_failures(result, count, foreign)
    if not chosen:
        return []
    contests = make_contests(result.plan, dict.fromkeys(foreign, result.plan.methods))
    wanted = [Wanted(f"{s}/{p}", arm, o.env_id, o.seed) for s, p, o in chosen for arm in (method, BASE)]
    recorded = record_episodes(contests, wanted, workers, on_progress, time_limit)
    rates = {name: contests[name].arms[BASE]().action_spec.control_hz for name in {episode.contest for episode in wanted}}
    failures = []
    for suite, policy, outcome in chosen:
        contest = f"{suite}/{policy}"
        failed, base = (recorded.get(Wanted(contest, arm, outcome.env_id, outcome.seed)) for arm in (method, BASE))
        if failed and base and failed.frames is not None and base.frames is not None:  # a crashing reset leaves none
            failures.append(Failure(suite, policy, method, failed, base, rates[contest]))
    return failures


def choose_failures(
    result: BenchmarkResult, count: int, leave_out: Collection[tuple[str, str]] = ()
) -> list[tuple[str, str, EpisodeOutcome]]:
    """(suite, policy, outcome), largest disagreement first, at most two of a cell. What ended with an error is not among them.

    leave_out: suites and policies that are none of it.
    """
    method = _first(result)
    failed = [
        (suite, policy, outcome)
        for (suite, policy), contest in result.results.items()
        if (suite, policy) not in leave_out
        for outcomes in contest.outcomes[method].values()
        for outcome in outcomes
        if not outcome.success and not outcome.error
    ]
    cells: Counter[tuple[str, str, str]] = Counter()
    chosen = []
    for suite, policy, outcome in sorted(failed, key=lambda f: -_disagreement(f[2])):
        cell = suite, policy, outcome.env_id
        cells[cell] += 1
        if cells[cell] <= PER_CELL:
            chosen.append((suite, policy, outcome))
    return chosen[:count]


def failures_section(failures: Sequence[Failure]) -> str:
    """The videos, as a fragment of HTML; nothing without failures."""
    if not failures:
        return ""
    max_bytes = VIDEO_BYTES // (2 * len(failures))
    pairs = []
    for failure in failures:
        episode = failure.failed
        note = f"{failure.policy} in {failure.suite}, {episode.env_id}, seed {episode.seed}"
        if episode.disagreement:
            note += f"; disagreement {_disagreement(episode):.3g}"
        if episode.success:
            note += "; it failed when it was counted: policy or simulator do not repeat themselves"
        shown = {BASE: failure.base, failure.method: episode}
        pairs.append(side_by_side(episode.instruction or episode.env_id, note, shown, failure.control_hz, max_bytes))
    rescued = sum(outcome_word(failure.base) == "success" for failure in failures)
    return (
        f"<h2>Failures</h2><p class=note>Failed episodes of {escape(failures[0].method)}, those first on which the members of the "
        f"critic disagreed most (standard deviation over members of the chosen chunk's value, mean over decisions), at most "
        f"{PER_CELL} of a cell. The policy alone succeeded from the same state in {rescued} of these {len(failures)}. "
        f"Real speed; the border tells the outcome.</p><div class=pairs>{''.join(pairs)}</div>"
    )


def _first(result: BenchmarkResult) -> str:
    return next(name for name in result.plan.methods if name != BASE)


def _disagreement(outcome: EpisodeOutcome) -> float:
    """Mean over decisions; below all others where there is no critic."""
    return sum(outcome.disagreement) / len(outcome.disagreement) if outcome.disagreement else -1.0
