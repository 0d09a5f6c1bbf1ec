"""The demo's report: which episodes of the evaluation it shows, and the recording of them, once more, with a camera."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from policies import ActionSpec
from robot_rl.evaluation import Contest, EpisodeOutcome, EvaluationResult
from robot_rl.evaluation.recording import Wanted, record_episodes
from robot_rl.evaluation.report import ReportData, write_report

EXPLANATION = (
    "Six tabletop tasks, told apart by their instructions. A diffusion policy was cloned from demonstrations of which only some are "
    "good, and a critic learned from the same data, without ever seeing the policy, what leads to success. Steered, the policy "
    "proposes {samples} action chunks at each decision and acts on the one about which most others lie that the critic values. The "
    "control, random, acts on any one of as many: what it gains, it does not owe to the choice. All arms start from the same states, "
    "which no training saw. The videos show, in up to four tasks, the first episode that steering rescued, and the first of another "
    "that it did not."
)


def write_demo_report(
    path: Path,
    contest: Contest,
    evaluation: EvaluationResult,
    spec: ActionSpec,
    curves: Mapping[str, Path],
    num_samples: int,
    workers: int,
) -> None:
    """Record the chosen episodes and write the page. contest: the evaluation's. curves: heading -> metrics.jsonl."""
    chosen = _choose_pairs(evaluation)
    wanted = [Wanted("", arm, env_id, seed) for env_id, seed in chosen for arm in ("base", "steered")]
    recorded = record_episodes({"": contest}, wanted, workers)
    data = ReportData(
        title="Steering a cloned policy with a critic",
        explanation=EXPLANATION.format(samples=num_samples),
        result=evaluation.to_json(),
        control_hz=spec.control_hz,
        decision_seconds=spec.chunk / spec.control_hz,
        curves={name: _curve(file) for name, file in curves.items()},
        value_traces=_choose_traces(evaluation),
        videos=[(recorded[Wanted("", "base", *pair)], recorded[Wanted("", "steered", *pair)]) for pair in chosen],
        commands=("make demo",),
    )
    write_report(path, data)


def _curve(metrics: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "steps_per_second"} for row in rows]


def _choose_traces(evaluation: EvaluationResult) -> list[EpisodeOutcome]:
    """A success and a failure of the steered policy, both of the task whose successes take the most decisions."""
    best: list[EpisodeOutcome] = []
    for outcomes in evaluation.outcomes["steered"].values():
        successes = sorted((o for o in outcomes if o.success and o.values), key=lambda o: len(o.values))
        failures = [o for o in outcomes if not o.success and o.values]
        found = [*successes[len(successes) // 2 :][:1], *failures[:1]]
        if (len(found), len(found[0].values) if found else 0) > (len(best), len(best[0].values) if best else 0):
            best = found
    return best


def _choose_pairs(evaluation: EvaluationResult) -> list[tuple[str, int]]:
    """(environment, seed): an episode that steering rescued in each of up to four tasks, and one that it did not."""
    base, steered = evaluation.outcomes["base"], evaluation.outcomes["steered"]
    rescued, lost = [], []
    for env_id in base:
        pairs = list(zip(base[env_id], steered[env_id], strict=True))
        rescued += [(env_id, b.seed) for b, s in pairs if s.success and not b.success][:1]
        lost += [(env_id, b.seed) for b, s in pairs if not s.success][:1]
    return [*rescued[:4], *lost[-1:]]
