"""Evaluate several arms (base, steered, random) on the same episodes: one command, any number of workers, one answer.

The work is cut into blocks of one arm, one environment and up to 25 episodes; a block's random numbers depend on nothing but the
settings and its own name. So the result is the same whatever the number of workers, and after any number of kills and resumes.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.errors import InputError
from policies.base import Policy
from robot_rl.evaluation.journal import Journal
from robot_rl.evaluation.pool import run_jobs
from robot_rl.evaluation.result import EvaluationResult, versions
from robot_rl.evaluation.rollout import EpisodeOutcome, rollout

BLOCK_EPISODES = 25
PolicyFactory = Callable[[], Policy]


@dataclass(frozen=True)
class Block:
    """Episodes `first` to `first + count - 1` of one arm in one environment."""

    arm: str
    env_id: str
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.arm} in {self.env_id}, episodes {self.first} to {self.first + self.count - 1}"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, apart from the policies. Episode i of every arm has the environment seed `seed + i`."""

    env_ids: tuple[str, ...]
    episodes: int
    seed: int
    execute: int | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def blocks(self, arms: Sequence[str]) -> list[Block]:
        """All blocks; the arms alternate, so that they progress together."""
        return [
            Block(arm, env_id, first, min(BLOCK_EPISODES, self.episodes - first))
            for env_id in self.env_ids
            for first in range(0, self.episodes, BLOCK_EPISODES)
            for arm in arms
        ]


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


class _Runner:
    """Runs blocks in whatever process it finds itself; builds each arm's policy there once, when first needed."""

    def __init__(self, arms: Mapping[str, PolicyFactory], settings: EvaluationSettings) -> None:
        self.arms, self.settings = dict(arms), settings
        self.policies: dict[str, Policy] = {}

    def __call__(self, block: Block) -> tuple[list[EpisodeOutcome], float]:
        if block.arm not in self.policies:
            self.policies[block.arm] = self.arms[block.arm]()
        started = time.perf_counter()
        outcomes = run_block(self.policies[block.arm], self.settings, block)
        return outcomes, time.perf_counter() - started


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
    on_block: Callable[[int, int, Block, list[EpisodeOutcome]], None] | None = None,
) -> EvaluationResult:
    """Run `episodes` episodes of every arm in every environment, on the same environment seeds.

    arms: name -> a callable that builds the policy. It must be picklable when workers > 1 (a frozen dataclass with `__call__` is),
    and its repr, with its fields, is what identifies the arm in the journal and in the result. provenance: JSON that identifies
    what a repr cannot (digests of checkpoints); env_kwargs must be JSON too. journal: blocks are kept there and not run again by
    the same command. on_block: called after each block with (blocks done, blocks in all, the block, its outcomes).

    InputError: nothing to run, a journal of other settings, an unknown environment, an unfit policy, a worker that was killed.
    """
    settings = EvaluationSettings(tuple(env_ids), episodes, seed, execute, dict(env_kwargs or {}))
    if not arms or not settings.env_ids or len(set(settings.env_ids)) != len(settings.env_ids):
        raise InputError("nothing to evaluate: give at least one arm, and each environment once")
    if episodes < 1 or workers < 1:
        raise InputError(f"cannot evaluate {episodes} episodes with {workers} workers; both must be at least 1")

    started = time.perf_counter()
    description = {
        # An address in a repr would differ from run to run.
        "arms": {name: re.sub(r" at 0x[0-9a-f]+", "", repr(factory)) for name, factory in arms.items()},
        "settings": {**asdict(settings), "block_episodes": BLOCK_EPISODES},
        "versions": versions(),
        "provenance": dict(provenance or {}),
    }
    header = json.loads(json.dumps(description))  # what a journal gives back: lists for tuples
    blocks = settings.blocks(list(arms))
    done: dict[Block, tuple[list[EpisodeOutcome], float]] = {}
    with closing(Journal(journal, header)) if journal else nullcontext() as book:
        for record in book.records if book else ():
            outcomes = [EpisodeOutcome(**outcome) for outcome in record["outcomes"]]
            done[Block(**record["block"])] = outcomes, record["seconds"]
        missing = [block for block in blocks if block not in done]
        with closing(run_jobs(_Runner(arms, settings), missing, workers)) as completed:
            for block, (outcomes, seconds) in completed:
                if book:
                    record = {"block": asdict(block), "seconds": seconds, "outcomes": [_to_record(o) for o in outcomes]}
                    book.append(record)
                done[block] = outcomes, seconds
                if on_block is not None:
                    on_block(len(done), len(blocks), block, outcomes)

    outcomes_of: dict[str, dict[str, list[EpisodeOutcome]]] = {arm: {env_id: [] for env_id in env_ids} for arm in arms}
    for block in blocks:
        outcomes_of[block.arm][block.env_id] += done[block][0]
    return EvaluationResult(
        outcomes=outcomes_of,
        seed=seed,
        header=header,
        wall_seconds=time.perf_counter() - started,
        work_seconds=sum(seconds for _, seconds in done.values()),
    )


def _to_record(outcome: EpisodeOutcome) -> dict[str, Any]:
    record = dict(vars(outcome))
    del record["frames"]  # never recorded in an evaluation
    return record
