"""What evaluating many episodes at once gains over one after the other, in one run on this machine."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from robot_rl.evaluation.evaluate import BLOCK_EPISODES, Block, Contest, Runner, local_pool
from robot_rl.evaluation.rollout import rollout


def bench(contest: Contest, workers: int, alone: int = 4) -> list[dict[str, Any]]:
    """Episodes a second of each arm: one by one in this process, with torch's own threads, and batched in worker processes.

    alone: how many episodes are run one by one in each environment; batched are 25 for each worker in each environment. What a worker
    needs to start is not counted. The workers' first episode of each environment is not counted either, and neither is the loop's.
    """
    settings = replace(contest.settings, episodes=BLOCK_EPISODES * workers)
    contest, warm = replace(contest, settings=settings), -1
    rows = []
    with closing(local_pool(workers)(Runner({"": contest}))) as pool:
        for name, factory in contest.arms.items():
            # A block of one episode for each worker and environment; which of them takes it is not in our hands.
            list(pool.run([Block(name, env_id, warm, 1) for env_id in settings.env_ids for _ in range(2 * workers)]))
            blocks = settings.blocks([name])
            started = time.perf_counter()
            list(pool.run(blocks))
            batched = sum(block.count for block in blocks) / (time.perf_counter() - started)
            policy, spent, count = factory(), 0.0, 0
            for env_id in settings.env_ids:
                for seed in range(settings.seed + warm, settings.seed + alone):
                    started = time.perf_counter()
                    rollout(policy, env_id, [seed], seed, settings.execute, settings.env_kwargs)
                    if seed >= settings.seed:
                        spent, count = spent + time.perf_counter() - started, count + 1
            rows.append({"arm": name, "one_by_one": count / spent, "batched": batched, "ratio": batched * spent / count})
    return rows
