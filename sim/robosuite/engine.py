"""The one place that imports MuJoCo and robosuite: quietly, without a display, and with one line when they are not installed."""

from __future__ import annotations

import logging
import os
import sys

from data.errors import InputError

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # mujoco looks at it once, on import
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
