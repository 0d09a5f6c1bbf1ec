"""The one place that imports MuJoCo and robosuite: quietly, and with one line when they are not installed."""

from __future__ import annotations

import logging

from data.errors import InputError

# robosuite warns on import about macros and robots that nobody here uses.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
try:
    import mujoco
    import numba
    import robosuite
except ImportError as error:
    raise InputError(
        f"the robosuite tasks need an extra ({error}): "
        "pip install 'robot-rl[robosuite]' && pip install --no-deps robosuite==1.5.2"
    ) from error

__all__ = ["mujoco", "numba", "robosuite"]
