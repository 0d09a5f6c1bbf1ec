"""The robosuite tasks' demonstrator: its skills and what can go wrong in them."""

from __future__ import annotations

from typing import ClassVar

from sim.expert import Intent, ScriptedExpert, View, Waypoint
from sim.robosuite.skills import SKILLS


class HandView(View):
    """A view of this hand, whose open fingers may both touch the top of a thing."""

    def holds(self, name: str) -> bool:
        return self.opening < 0.9 and super().holds(name)


class Expert(ScriptedExpert):
    """Demonstrates one of the robosuite tasks."""

    mistakes: ClassVar = {
        "lift": ("miss", "early close", "early release"),
        "stack": ("wrong", "miss", "early close", "early release", "past", "aside"),
        "can": ("miss", "early close", "early release", "past", "short", "aside"),
        "groceries": ("wrong", "miss", "early close", "early release"),
        "square": ("miss", "early close", "early release", "past", "short", "aside"),
        "door": ("miss", "early close", "early release"),
    }
    speed = (0.7, 0.85)
    wider_miss: ClassVar = {"door": 0.03}  # the open gripper spans the handle with room to spare

    def _present_episode(self) -> int | None:
        return self._env.episode or None

    def _look(self) -> View:
        world = self._env.world
        return HandView(world, world.tool_pose(), world.opening())

    def _intended(self) -> Intent:
        return Intent(self._env.target, self._env.goal)

    def _others(self) -> list[str]:
        return [
            name
            for name in (*self._env.task.targets, self._env.goal)
            if name not in ("", self._env.target) and "bin" not in name
        ]

    def _skill(self, view: View, intent: Intent) -> Waypoint:
        return SKILLS[self._env.task.name](view, intent)
