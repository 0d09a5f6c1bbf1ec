"""Six tasks on a PyBullet tabletop with a WidowX-class arm."""

from sim.suite import make_suite
from sim.tabletop.expert import Expert
from sim.tabletop.tasks import TASK_TABLE

TABLETOP = make_suite("tabletop", "sim.tabletop.environment:TabletopEnv", TASK_TABLE.values(), Expert)

__all__ = ["TABLETOP"]
