"""Simulated environments in suites, registered with Gymnasium on import: `gymnasium.make("Tabletop-Lift-v0")`.

`SUITES` has the tasks of each; `make_expert` somebody who demonstrates them.
"""

from sim.robosuite import ROBOSUITE
from sim.suite import SUITES, Demonstrator, Suite, environment_ids, make_expert, register_suite, suite_of
from sim.tabletop import TABLETOP

register_suite(TABLETOP)
register_suite(ROBOSUITE)

__all__ = ["SUITES", "Demonstrator", "Suite", "environment_ids", "make_expert", "register_suite", "suite_of"]
