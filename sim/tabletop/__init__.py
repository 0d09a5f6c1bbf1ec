"""Six tasks on a PyBullet tabletop with a WidowX-class arm."""

import gymnasium

from sim.suite import Suite
from sim.tabletop.expert import Expert
from sim.tabletop.tasks import TASK_TABLE

for _task in TASK_TABLE.values():
    gymnasium.register(
        _task.env_id,
        entry_point="sim.tabletop.environment:TabletopEnv",
        kwargs={"task": _task.name},
        max_episode_steps=_task.max_steps,
    )

TABLETOP = Suite("tabletop", {task.name: task.env_id for task in TASK_TABLE.values()}, Expert)

__all__ = ["TABLETOP"]
