"""Simulated environments in suites, registered with Gymnasium on import: `gymnasium.make("Tabletop-Lift-v0")`.

`SUITES` has the tasks of each; `make_expert` somebody who demonstrates them.
"""

import os
import sys

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    # MuJoCo looks at it once, when whoever comes first imports it: without a display its default aborts the process.
    os.environ.setdefault("MUJOCO_GL", "egl")

from sim.robosuite import ROBOSUITE
from sim.suite import SUITES, Demonstrator, Suite, environment_ids, make_expert, register_suite, suite_of
from sim.tabletop import TABLETOP

register_suite(TABLETOP)
register_suite(ROBOSUITE)

__all__ = ["SUITES", "Demonstrator", "Suite", "environment_ids", "make_expert", "register_suite", "suite_of"]
