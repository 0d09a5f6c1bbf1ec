"""The tabletop's demonstrator: its skills and what can go wrong in them."""

from __future__ import annotations

from typing import ClassVar

from sim.expert import Intent, ScriptedExpert, View, Waypoint
from sim.tabletop.scene import BLOCKS, Scene
from sim.tabletop.skills import SKILLS


class Expert(ScriptedExpert):
    """Demonstrates one of the tabletop tasks."""

    mistakes: ClassVar = {
        "reach": ("wrong", "miss", "early close"),
        "push": ("wrong", "miss", "past", "short", "aside"),
        "lift": ("wrong", "miss", "early close", "early release"),
        "bowl": ("wrong", "miss", "early close", "early release", "past", "aside"),
        "stack": ("wrong", "miss", "early close", "early release", "past", "aside"),
        "drawer": ("wrong", "miss", "early release"),
    }
    speed = (0.45, 0.6)  # about 2.5 cm a step, as people move a WidowX
    # An open gripper spans a block, so a small error ends in a near miss; closed fingers and a wide handle need a larger one.
    wider_miss: ClassVar = {"reach": 0.008, "push": 0.018, "drawer": 0.035}

    def _present_episode(self) -> Scene | None:
        return getattr(self._env, "scene", None)

    def _look(self) -> View:
        scene = self._env.scene
        return View(scene, scene.arm.tool_pose(), scene.arm.opening())

    def _intended(self) -> Intent:
        return Intent(self._env.layout.target, self._env.layout.goal)

    def _others(self) -> list[str]:
        return [name for name in BLOCKS if name in self._env.layout.poses and name != self._env.layout.target]

    def _skill(self, view: View, intent: Intent) -> Waypoint:
        return SKILLS[self._env.task.name](view, intent)
