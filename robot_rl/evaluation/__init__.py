"""Does it work better? Paired rollouts of several arms, their statistics, and the report that a reader opens.

`evaluate` runs the arms on the same episodes, `EvaluationResult.to_json` holds every number, `results_table` prints them,
`report.write_report` makes the page (imported from its module, because only it needs a video encoder).
"""

from robot_rl.evaluation.evaluate import (
    Block,
    Contest,
    EvaluationSettings,
    evaluate,
    local_pool,
    ray_pool,
    run_block,
    run_contests,
)
from robot_rl.evaluation.result import EvaluationResult, errors_remark, results_table
from robot_rl.evaluation.rollout import EpisodeOutcome, Step, rollout, stack_observations
from robot_rl.evaluation.statistics import (
    Gains,
    PairedCounts,
    mcnemar_p,
    mean_gains,
    paired_difference_interval,
    wilson_interval,
)

__all__ = [
    "Block",
    "Contest",
    "EpisodeOutcome",
    "EvaluationResult",
    "EvaluationSettings",
    "Gains",
    "PairedCounts",
    "Step",
    "errors_remark",
    "evaluate",
    "local_pool",
    "mcnemar_p",
    "mean_gains",
    "paired_difference_interval",
    "ray_pool",
    "results_table",
    "rollout",
    "run_block",
    "run_contests",
    "stack_observations",
    "wilson_interval",
]
