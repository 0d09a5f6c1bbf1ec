"""The two cameras. A renderer and its graphics context serve every environment of a task in the process, one after the other."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import numpy as np

from sim.robosuite.engine import mujoco
from sim.robosuite.world import World, blueprint

CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
# A software renderer spends most of its time on these; 64 pixels hardly show them.
_OFF = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX)


@functools.cache
def _renderer(task: str, height: int, width: int) -> Any:
    renderer = mujoco.Renderer(blueprint(task).model, height, width)
    atexit.register(renderer.close)  # later, as the interpreter goes, it could no longer be freed in silence
    for flag in _OFF:
        renderer.scene.flags[flag] = 0
    return renderer


@functools.cache
def _visible() -> Any:
    """Everything but the collision shapes and sites, which robosuite keeps in a group of their own."""
    option = mujoco.MjvOption()
    option.geomgroup[0] = 0
    option.sitegroup[:] = 0
    return option


def image(world: World, camera: str, height: int, width: int) -> np.ndarray:
    """Render "primary" (across the table) or "wrist": uint8 [height,width,3], upright."""
    renderer = _renderer(world.task.name, height, width)
    renderer.update_scene(world.data, CAMERAS[camera], _visible())
    return renderer.render()
