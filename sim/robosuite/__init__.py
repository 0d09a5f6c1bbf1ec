"""Six robosuite tasks with a Panda. robosuite itself is imported when the first environment is made."""

import gymnasium

from sim.robosuite.expert import Expert
from sim.robosuite.tasks import TASK_TABLE
from sim.suite import Suite

for _task in TASK_TABLE.values():
    gymnasium.register(
        _task.env_id,
        entry_point="sim.robosuite.environment:RobosuiteEnv",
        kwargs={"task": _task.name},
        max_episode_steps=_task.max_steps,
    )

ROBOSUITE = Suite("robosuite", {task.name: task.env_id for task in TASK_TABLE.values()}, Expert)

__all__ = ["ROBOSUITE"]
