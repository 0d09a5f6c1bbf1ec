"""Episodes that were counted, seen again: their blocks are run once more, to the same bits, with a camera on the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from robot_rl.evaluation.evaluate import Block, Contest, local_pool, run_block
from robot_rl.evaluation.pool import Died
from robot_rl.evaluation.rollout import EpisodeOutcome

OnProgress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""


class Wanted(NamedTuple):
    """Which episode of an evaluation is to be seen."""

    contest: str
    arm: str
    env_id: str
    seed: int


@dataclass(frozen=True)
class _Recorder:
    contests: Mapping[str, Contest]

    def __call__(self, job: tuple[Block, int]) -> EpisodeOutcome:
        block, seed = job
        contest = self.contests[block.contest]
        outcomes = run_block(contest.arms[block.arm](), contest.settings, block, record=[seed])
        return next(outcome for outcome in outcomes if outcome.seed == seed)


def record_episodes(
    contests: Mapping[str, Contest],
    wanted: Sequence[Wanted],
    workers: int = 2,
    on_progress: OnProgress | None = None,
    time_limit: float = 3600,
) -> dict[Wanted, EpisodeOutcome]:
    """The outcomes of these episodes, with `frames`. Where a block takes its process down, or more than `time_limit` seconds, its
    episodes are left out.
    """
    jobs = {}
    for episode in wanted:
        settings = contests[episode.contest].settings
        index = episode.seed - settings.seed
        block = next(
            block
            for block in settings.blocks([episode.arm], episode.contest)
            if block.env_id == episode.env_id and block.first <= index < block.first + block.count
        )
        jobs[block, episode.seed] = episode
    make_pool = local_pool(workers, time_limit)
    with closing(make_pool(_Recorder(contests))) as pool:
        recorded = {}
        for done, (job, outcome) in enumerate(pool.run(list(jobs)), start=1):
            if not isinstance(outcome, Died):
                recorded[jobs[job]] = outcome
            if on_progress is not None:
                on_progress(done, len(jobs))
        return recorded
