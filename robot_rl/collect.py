"""Demonstrations by scripted experts of mixed quality, in parallel, as a stream of Episodes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.processes import interrupts_held
from sim import make_expert, suite_of


@dataclass(frozen=True)
class Demonstration:
    """One episode to record: which task, at which quality of the expert (1 clean, 0.5 dithering, 0 failing), from which seed."""

    env_id: str
    quality: float
    seed: int
    cameras: tuple[str, ...] = ("primary",)


def plan(
    env_ids: Sequence[str], per_task: int, qualities: Sequence[float], seed: int, cameras: tuple[str, ...] = ("primary",)
) -> list[Demonstration]:
    """`per_task` demonstrations of each task, the qualities in equal parts, interleaved so that any prefix is a fair mixture."""
    seeds = np.random.SeedSequence(seed).generate_state(per_task * len(env_ids)).tolist()
    order = [(index, env_id) for index in range(per_task) for env_id in env_ids]
    return [
        # Seeds of 2^31 and above are never those of an evaluation, which counts up from a small number.
        Demonstration(env_id, qualities[index % len(qualities)], int(number) | 1 << 31, cameras)
        for (index, env_id), number in zip(order, seeds, strict=True)
    ]


def record(demonstration: Demonstration) -> Episode:
    """Let the expert act once; the actions are those that the environment applied."""
    env = gymnasium.make(demonstration.env_id, disable_env_checker=True, cameras=demonstration.cameras)
    try:
        observation, _ = env.reset(seed=demonstration.seed)
        expert = make_expert(demonstration.env_id, env, demonstration.quality, demonstration.seed)
        observations, actions, success, done = [observation], [], False, False
        while not done:
            observation, _, terminated, truncated, info = env.step(expert.act(observation))
            observations.append(observation)
            actions.append(info["applied_action"])
            success, done = bool(info["success"]), terminated or truncated
    finally:
        env.close()
    keys = [key for key in observations[0] if key != "instruction"]
    return Episode(
        observations={key: np.stack([step[key] for step in observations]) for key in keys},
        actions=np.stack(actions).astype(np.float32),
        instruction=observations[0]["instruction"],
        success=success,
        source=f"{demonstration.env_id} seed {demonstration.seed}",
        info={"task": demonstration.env_id, "quality": str(demonstration.quality)},
    )


@dataclass(frozen=True)
class DemonstrationSource:
    """Demonstrations that are recorded when they are read: a `data.EpisodeSource`, so that `convert` records in parallel and resumes.

    env_ids: environments of one suite; per_task, qualities, seed: see `plan`. cameras: those to render.
    """

    env_ids: tuple[str, ...]
    per_task: int
    qualities: tuple[float, ...]
    seed: int
    cameras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        suite = suite_of(self.env_ids[0])
        return suite.name if suite else "demonstrations"

    @property
    def location(self) -> str:
        qualities = ", ".join(f"{quality:g}" for quality in self.qualities)
        cameras = ", ".join(self.cameras) or "none"
        what = f"{self.per_task} demonstrations of each of {', '.join(self.env_ids)}"
        return f"{what}; qualities {qualities}; seed {self.seed}; cameras {cameras}"

    @property
    def split(self) -> str:
        return "train"

    @property
    def action(self) -> dict[str, Any]:
        return action_description(self.env_ids[0])

    @property
    def length(self) -> int:
        return self.per_task * len(self.env_ids)

    @property
    def changes(self) -> tuple[str, ...]:
        return ()

    def read(self, indices: range, images: bool = True) -> Iterator[Episode | InputError]:
        demonstrations = plan(self.env_ids, self.per_task, self.qualities, self.seed, self.cameras)
        for index in indices:
            episode = record(demonstrations[index])
            yield episode if images else episode.without_images()


def record_all(demonstrations: Sequence[Demonstration], workers: int = 2) -> Iterator[Episode]:
    """Episodes in the order of the plan, recorded by `workers` processes."""
    with interrupts_held():
        pool = multiprocessing.get_context("spawn").Pool(workers)
    with pool:
        yield from pool.imap(record, demonstrations, chunksize=4)


@cache
def action_description(env_id: str) -> dict[str, Any]:
    """What the environment's metadata says of its actions: names, units, bounds, frame, control rate."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    space, metadata = env.action_space, env.unwrapped.metadata
    env.close()
    assert isinstance(space, gymnasium.spaces.Box)
    return {
        "names": list(metadata["action_names"]),
        "units": list(metadata["action_units"]),
        "low": space.low.tolist(),
        "high": space.high.tolist(),
        "frame": metadata["action_frame"],
        "control_hz": metadata["control_hz"],
    }
