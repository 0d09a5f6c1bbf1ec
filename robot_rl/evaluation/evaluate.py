"""Evaluate several arms (base, steered, random) on the same episodes: one command, any number of workers, one answer.

The work is cut into blocks of one arm, one environment and up to 25 episodes; a block's random numbers depend on nothing but the
settings and its own name. So the result is the same whatever the number of workers, and after any number of kills and resumes.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import InputError
from policies.base import Policy
from robot_rl.evaluation.journal import Journal
from robot_rl.evaluation.pool import Died, InProcess, Pool, Processes
from robot_rl.evaluation.result import EvaluationResult, versions
from robot_rl.evaluation.rollout import EpisodeOutcome, rollout
from robot_rl.evaluation.statistics import PairedCounts, mcnemar_p
from robot_rl.steering.methods import BASE

BLOCK_EPISODES = 25
# What all looks between rounds, at all cells, may decide by chance together: so little that the tests of the end, and Holm's correction
# of them, keep their levels (Haybittle 1971, Peto 1976).
INTERIM_LEVEL = 0.001
PolicyFactory = Callable[[], Policy]


@dataclass(frozen=True)
class Block:
    """Episodes `first` to `first + count - 1` of one arm of a contest in one environment."""

    arm: str
    env_id: str
    first: int
    count: int
    contest: str = ""

    def __str__(self) -> str:
        whose = f"{self.contest}, {self.arm}" if self.contest else self.arm
        return f"{whose} in {self.env_id}, episodes {self.first} to {self.first + self.count - 1}"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, apart from the policies. Episode i of every arm has the environment seed `seed + i`."""

    env_ids: tuple[str, ...]
    episodes: int
    seed: int
    execute: int | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def blocks(self, arms: Iterable[str], contest: str = "") -> list[Block]:
        """All blocks; the arms alternate, so that they progress together."""
        return [
            Block(arm, env_id, first, min(BLOCK_EPISODES, self.episodes - first), contest)
            for env_id in self.env_ids
            for first in range(0, self.episodes, BLOCK_EPISODES)
            for arm in arms
        ]


@dataclass(frozen=True)
class Contest:
    """Arms that run on the same episodes. An arm is a name and a callable that builds its policy.

    It must be picklable where there are worker processes (a frozen dataclass with `__call__` is), and its repr, with its fields, is
    what identifies the arm in the journal and in the result. provenance: JSON that identifies what a repr cannot (a digest).
    """

    arms: Mapping[str, PolicyFactory]
    settings: EvaluationSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """What a journal must agree with, as JSON gives it back: lists for tuples."""
        description = {
            # An address in a repr would differ from run to run.
            "arms": {name: re.sub(r" at 0x[0-9a-f]+", "", repr(factory)) for name, factory in self.arms.items()},
            "settings": {**asdict(self.settings), "block_episodes": BLOCK_EPISODES},
            "versions": versions(),
            "provenance": dict(self.provenance),
        }
        return dict(json.loads(json.dumps(description)))


def run_block(policy: Policy, settings: EvaluationSettings, block: Block, record: Collection[int] = ()) -> list[EpisodeOutcome]:
    """Run one block. The seeds in `record` are rendered: the very episodes that were counted can be seen again."""
    name = f"{settings.seed}/{block.arm}/{block.env_id}/{block.first}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return rollout(
        policy,
        block.env_id,
        range(settings.seed + block.first, settings.seed + block.first + block.count),
        generator_seed=int.from_bytes(digest, "big") >> 1,  # torch takes 63 bits without complaint
        execute=settings.execute,
        env_kwargs=settings.env_kwargs,
        record=record,
    )


class Runner:
    """Runs blocks in whatever process it finds itself; keeps the policies of one contest's arms there, built when first needed."""

    def __init__(self, contests: Mapping[str, Contest]) -> None:
        self.contests = dict(contests)
        self.contest = ""
        self.policies: dict[str, Policy] = {}

    def __call__(self, block: Block) -> tuple[list[EpisodeOutcome], float]:
        contest = self.contests[block.contest]
        if block.contest != self.contest:  # two of these models may not fit into memory together
            self.contest, self.policies = block.contest, {}
        try:
            if block.arm not in self.policies:
                self.policies[block.arm] = contest.arms[block.arm]()
            started = time.perf_counter()
            outcomes = run_block(self.policies[block.arm], contest.settings, block)
        except InputError as error:
            raise InputError(f"{block}: {error}") from error
        return outcomes, time.perf_counter() - started


Answer = tuple[list[EpisodeOutcome], float]
"""The outcomes of a block and the seconds that it took."""
OnBlock = Callable[[int, int, Block, list[EpisodeOutcome]], None]
MakePool = Callable[[Callable[[Any], Any]], Pool]
"""From a runner of jobs to the pool that runs them."""


def evaluate(
    arms: Mapping[str, PolicyFactory],
    env_ids: Sequence[str],
    episodes: int,
    seed: int,
    *,
    workers: int = 2,
    execute: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    journal: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_block: OnBlock | None = None,
) -> EvaluationResult:
    """Run `episodes` episodes of every arm in every environment, on the same environment seeds: one contest, see `run_contests`.

    provenance: see `Contest`; env_kwargs must be JSON too.
    """
    settings = EvaluationSettings(tuple(env_ids), episodes, seed, execute, dict(env_kwargs or {}))
    contest = Contest(arms, settings, dict(provenance or {}))
    return run_contests({"": contest}, local_pool(workers), journal=journal, on_block=on_block)[""]


def local_pool(workers: int, time_limit: float = float("inf")) -> MakePool:
    """That many processes, or this one alone for one worker without a limit.

    time_limit: seconds for a block; what takes longer dies.
    """
    if workers < 1:
        raise InputError(f"cannot evaluate with {workers} workers; it must be at least 1")
    alone = workers == 1 and time_limit == float("inf")
    return InProcess if alone else lambda runner: Processes(runner, workers, time_limit)


def ray_pool(workers: int, address: str, time_limit: float = float("inf")) -> MakePool:
    """That many Ray actors. address: `local` for a Ray of its own on this machine, `auto` or an address for a running cluster."""
    from robot_rl.evaluation.ray_actors import RayActors

    return lambda runner: RayActors(runner, workers, None if address == "local" else address, time_limit)


def run_contests(
    contests: Mapping[str, Contest],
    make_pool: MakePool,
    *,
    journal: Path | None = None,
    stop_early: bool = False,
    on_block: OnBlock | None = None,
) -> dict[str, EvaluationResult]:
    """Run every arm of every contest; the results by the contests' names.

    journal: blocks are kept there and not run again by the same command. on_block: called after each block with (blocks done, blocks in
    all, the block, its outcomes). stop_early: between rounds of 25 episodes, an environment whose first arm after the base is better or
    worse than it, by the exact McNemar test at 0.001 shared among all cells, is decided, and gets no more. What was decided early
    overstates the difference a little, of all arms: the rounds that decided it are those in which the base was unlucky.

    An episode whose environment or policy fails, or takes the whole process down, counts as failed and says why. InputError: nothing to
    run, a journal of other settings, an unknown environment, an unfit policy, a worker that was killed from outside.
    """
    for contest in contests.values():
        settings = contest.settings
        if not contest.arms or not settings.env_ids or len(set(settings.env_ids)) != len(settings.env_ids):
            raise InputError("nothing to evaluate: give at least one arm, and each environment once")
        if settings.episodes < 1:
            raise InputError(f"cannot evaluate {settings.episodes} episodes; it must be at least 1")
    started = time.perf_counter()
    headers = {name: contest.header() for name, contest in contests.items()}
    header = headers[""] if list(headers) == [""] else {"contests": headers}
    schedule = _Schedule(contests, stop_early)
    with closing(Journal(journal, header)) if journal else nullcontext() as book, closing(make_pool(Runner(contests))) as pool:
        for number, record in enumerate(book.records if book else (), 2):
            try:
                block, answer = _from_record(record)
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{journal}: line {number} is damaged, which holds a block; delete the line to run it again"
                ) from None
            schedule.done[block] = answer
        while missing := schedule.missing():
            with closing(_run_whole(pool, missing, contests)) as completed:
                for block, (outcomes, seconds) in completed:
                    if book:
                        kept = [_to_record(outcome) for outcome in outcomes]
                        book.append({"block": asdict(block), "seconds": seconds, "outcomes": kept})
                    schedule.done[block] = outcomes, seconds
                    if on_block is not None:
                        on_block(len(schedule.done), schedule.total(), block, outcomes)
    wall = time.perf_counter() - started
    return {
        name: EvaluationResult(
            outcomes=schedule.outcomes(name),
            seed=contest.settings.seed,
            header=headers[name],
            wall_seconds=wall,
            work_seconds=sum(seconds for block, (_, seconds) in schedule.done.items() if block.contest == name),
        )
        for name, contest in contests.items()
    }


class _Schedule:
    """Which blocks there are, which are done, and which environments are decided."""

    def __init__(self, contests: Mapping[str, Contest], stop_early: bool) -> None:
        self.done: dict[Block, Answer] = {}
        self._contests, self._stop_early = contests, stop_early
        self._blocks = [block for name, contest in contests.items() for block in contest.settings.blocks(contest.arms, name)]
        # Of a contest and environment that are decided: how many episodes it took.
        self._enough: dict[tuple[str, str], int] = {}
        self._looked: set[int] = set()

    def missing(self) -> list[Block]:
        """What to run next: all that is left; with early stopping what is left of the first round that is not complete.

        A decision takes whole rounds only, and so does not depend on which block was ready first.
        """
        if not self._stop_early:
            return [block for block in self._blocks if block not in self.done]
        for first in sorted({block.first for block in self._blocks}):
            if first and first not in self._looked:
                self._look(first)
                self._looked.add(first)
            if left := [block for block in self._wanted() if block.first == first and block not in self.done]:
                return left
        return []

    def total(self) -> int:
        return len(self._wanted())

    def outcomes(self, contest: str, before: float = float("inf")) -> dict[str, dict[str, list[EpisodeOutcome]]]:
        """By arm and environment, in the order of the seeds; of blocks that begin before that episode."""
        settings, arms = self._contests[contest].settings, self._contests[contest].arms
        found: dict[str, dict[str, list[EpisodeOutcome]]] = {arm: {name: [] for name in settings.env_ids} for arm in arms}
        for block in self._wanted():
            if block.contest == contest and block.first < before:
                found[block.arm][block.env_id] += self.done[block][0]
        return found

    def _wanted(self) -> list[Block]:
        return [b for b in self._blocks if b.first < self._enough.get((b.contest, b.env_id), b.first + 1)]

    def _look(self, episodes: int) -> None:
        """What do the first `episodes` of each environment say?"""
        cells = sum(len(contest.settings.env_ids) for contest in self._contests.values())
        for name, contest in self._contests.items():
            challenger = next((arm for arm in contest.arms if arm != BASE), None)
            if BASE not in contest.arms or challenger is None:
                continue
            outcomes = self.outcomes(name, episodes)
            for env_id in contest.settings.env_ids:
                if (name, env_id) in self._enough:
                    continue
                counts = PairedCounts.of(*([o.success for o in outcomes[arm][env_id]] for arm in (challenger, BASE)))
                if mcnemar_p(counts) < INTERIM_LEVEL / cells:
                    self._enough[name, env_id] = episodes


def _run_whole(
    pool: Pool, blocks: Sequence[Block], contests: Mapping[str, Contest]
) -> Generator[tuple[Block, Answer], None, None]:
    """Run blocks. One that takes its process down is run again episode by episode, to find those that do: they count as failed."""
    fallen: list[Block] = []
    for block, answer in pool.run(blocks):
        if isinstance(answer, Died):
            fallen.append(block)
        else:
            yield block, answer
    for block in fallen:
        singles = [replace(block, first=block.first + index, count=1) for index in range(block.count)]
        answers = dict(pool.run(singles))
        outcomes, seconds = [], 0.0
        for single in singles:
            answer = answers[single]
            if isinstance(answer, Died):
                seed = contests[block.contest].settings.seed + single.first
                answer = [EpisodeOutcome(block.env_id, seed, error=answer.how)], 0.0
            outcomes += answer[0]
            seconds += answer[1]
        yield block, (outcomes, seconds)


def _from_record(record: Mapping[str, Any]) -> tuple[Block, Answer]:
    """A block of the journal. KeyError, TypeError or ValueError: something in it is not what was written."""
    block = Block(**record["block"])
    outcomes = [EpisodeOutcome(**outcome) for outcome in record["outcomes"]]
    if len(outcomes) != block.count or not all(isinstance(o.success, bool) and isinstance(o.steps, int) for o in outcomes):
        raise ValueError
    return block, (outcomes, float(record["seconds"]))


def _to_record(outcome: EpisodeOutcome) -> dict[str, Any]:
    record = dict(vars(outcome))
    del record["frames"]  # never recorded in an evaluation
    return record
