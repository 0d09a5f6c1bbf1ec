"""Simulated environments, registered with Gymnasium on import: `gymnasium.make("Tabletop-Lift-v0")`."""

from types import MappingProxyType

import gymnasium

from sim.experts import Expert
from sim.tasks import TASK_TABLE

TASKS = MappingProxyType({task.name: task.env_id for task in TASK_TABLE.values()})

for _task in TASK_TABLE.values():
    gymnasium.register(
        _task.env_id,
        entry_point="sim.tabletop:TabletopEnv",
        kwargs={"task": _task.name},
        max_episode_steps=_task.max_steps,
    )

__all__ = ["TASKS", "Expert"]
