"""Six robosuite tasks with a Panda. robosuite itself is imported when the first environment is made."""

from sim.robosuite.expert import Expert
from sim.robosuite.tasks import TASK_TABLE
from sim.suite import make_suite

ROBOSUITE = make_suite("robosuite", "sim.robosuite.environment:RobosuiteEnv", TASK_TABLE.values(), Expert)

__all__ = ["ROBOSUITE"]
