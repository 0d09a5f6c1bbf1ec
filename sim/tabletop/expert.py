"""Scripted demonstrators with one knob, from a careful operator to one who mostly fails; they see the simulator's true state.

quality 1 is clean. Around 0.5 an operator hesitates, wanders and is slow. Towards 0 he makes mistakes: takes the wrong object, closes
beside it or too early, lets go early, pushes past the goal or stops short. A mood (good, dithering, or one mistake) lasts a few
steps and is then drawn again, so that from one state different demonstrations do different things.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from sim.rotations import rotation_from_rpy, rpy_from_rotation
from sim.tabletop.scene import BLOCKS
from sim.tabletop.skills import SKILLS, Intent, View, Waypoint, intended

MISTAKES = {  # what can go wrong in a task
    "reach": ("wrong", "miss", "early close"),
    "push": ("wrong", "miss", "past", "short", "aside"),
    "lift": ("wrong", "miss", "early close", "early release"),
    "bowl": ("wrong", "miss", "early close", "early release", "past", "aside"),
    "stack": ("wrong", "miss", "early close", "early release", "past", "aside"),
    "drawer": ("wrong", "miss", "early release"),
}


class Expert:
    """Acts in one tabletop environment. It notices a reset by itself and starts the new episode with new moods."""

    def __init__(self, env: gym.Env, quality: float = 1.0, seed: int | None = None) -> None:
        """env: a tabletop environment, wrapped or not. quality: 0 (mostly fails) to 1 (clean); raises ValueError outside."""
        if not 0.0 <= quality <= 1.0:
            raise ValueError(f"an expert's quality lies between 0 and 1, got {quality}")
        self._env: Any = env.unwrapped
        self._quality = quality
        # Gymnasium seeds a reset's layout with the bare number: the same stream here would tie moods to layouts.
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        self._scene: Any = None
        self._mood_left = 0

    def act(self, observation: Any = None) -> np.ndarray:
        """The next action, float32 [7] in physical units. The observation is not looked at: the simulator is."""
        if getattr(self._env, "scene", None) is None:
            raise RuntimeError("reset the environment before asking its expert")
        if self._env.scene is not self._scene:
            self._begin()
        if self._mood_left == 0:
            self._draw_mood()
        self._mood_left -= 1
        view = View(self._env.scene)
        waypoint = self._aim(view)
        self._opening = waypoint.opening
        return self._towards(view, waypoint)

    def _begin(self) -> None:
        self._scene = self._env.scene
        sloppy = 1.0 - self._quality
        # About 2.5 cm a step, as people move a WidowX; the bound is twice that.
        self._speed = self._rng.uniform(0.45, 0.6) - sloppy * self._rng.uniform(0.05, 0.2)
        self._opening = 1.0
        self._mood_left = 0

    def _draw_mood(self) -> None:
        """Decide what to do for the next few steps: the right thing, a mistake, a pause or a detour."""
        rng, sloppy, limit = self._rng, 1.0 - self._quality, self._env.task.max_steps
        self._intent = intended(self._env.layout)
        self._detour: np.ndarray | None = None
        self._mood_left = int(rng.uniform(0.15, 0.35) * limit)
        draw, mistake = rng.uniform(), 0.88 * sloppy**1.2
        if draw < mistake:
            self._intent = self._mistaken(self._intent)
            self._mood_left = int(rng.uniform(0.25, 0.6) * limit)
        elif draw < mistake + 0.9 * sloppy * (1 - mistake):
            spread = 0.0 if rng.uniform() < 0.4 else 0.06
            self._detour = spread * rng.standard_normal(3)
            self._mood_left = int(rng.integers(2, 7))

    def _mistaken(self, intent: Intent) -> Intent:
        """Draw one mistake of the task's."""
        rng, layout, scene = self._rng, self._env.layout, self._env.scene
        kind = rng.choice(MISTAKES[self._env.task.name])
        others = [name for name in BLOCKS if name in layout.poses and name != layout.target]
        if kind == "wrong" and others:
            taken = str(rng.choice(others))
            return replace(intent, target=taken, goal=layout.target if taken == layout.goal else layout.goal)
        if kind == "early close":
            return replace(intent, close_height=rng.uniform(0.03, 0.06))
        if kind == "early release":
            return replace(intent, release_distance=rng.uniform(0.08, 0.16))
        if kind in ("past", "short", "aside"):
            way = (scene.position(layout.goal) - scene.position(layout.target))[:2]
            along = way / max(math.hypot(*way), 1e-6)
            error = rng.uniform(0.06, 0.10)
            if kind == "aside":
                along = rng.choice([-1, 1]) * np.array([-along[1], along[0]])
            return replace(intent, goal_offset=tuple((-error if kind == "short" else error) * along))
        # An open gripper spans a block, so a small error ends in a near miss; closed fingers and a wide handle need a larger one.
        angle, size = rng.uniform(-math.pi, math.pi), rng.uniform(0.03, 0.05)
        size += {"reach": 0.008, "push": 0.018, "drawer": 0.035}.get(self._env.task.name, 0.0)
        return replace(intent, offset=(size * math.cos(angle), size * math.sin(angle)))

    def _aim(self, view: View) -> Waypoint:
        if self._detour is None:
            return SKILLS[self._env.task.name](view, self._intent)
        return Waypoint(view.tool + self._detour, view.yaw, self._opening)

    def _towards(self, view: View, waypoint: Waypoint) -> np.ndarray:
        """One bounded step to the waypoint, roll and pitch back to zero, with an unsteady hand in every dimension."""
        low, high = self._env.action_space.low, self._env.action_space.high
        shift = waypoint.position - view.tool
        turn = np.array(rpy_from_rotation(rotation_from_rpy(0.0, 0.0, waypoint.yaw) @ view.rotation.T))
        shift *= min(1.0, self._speed * high[0] / max(np.abs(shift).max(), 1e-9))
        turn *= min(1.0, self._speed * high[3] / max(np.abs(turn).max(), 1e-9))
        sloppy = 1.0 - self._quality
        noise = self._rng.standard_normal(7) * np.repeat([0.0015 + 0.006 * sloppy, 0.008 + 0.03 * sloppy, 0.02], [3, 3, 1])
        return np.clip(np.array([*shift, *turn, waypoint.opening]) + noise, low, high).astype(np.float32)
