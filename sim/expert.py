"""Scripted demonstrators with one knob, from a careful operator to one who mostly fails; they see the simulator's true state.

quality 1 is clean. Around 0.5 an operator hesitates, wanders and is slow. Towards 0 he makes mistakes: takes the wrong object, closes
beside it or too early, lets go early, pushes past the goal or stops short. A mood (good, dithering, or one mistake) lasts a few
steps and is then drawn again, so that from one state different demonstrations do different things.

What to do in a good mood is a suite's own business: its skills say what to aim at, computed afresh from the present physical state, so
that a demonstrator recovers from any disturbance. Nothing is remembered between steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from sim.rotations import rotation_from_rpy, rpy_from_rotation

HOVER = 0.07  # how far above an object the tool travels, metres
NEAR, NEAR_YAW = 0.011, 0.15  # metres and radians within which the tool counts as in place


class Scene(Protocol):
    """What a demonstrator asks of a simulator's present state, in the robot's base frame."""

    def position(self, name: str) -> np.ndarray: ...

    def yaw(self, name: str) -> float: ...

    def fingers_on(self, name: str) -> int: ...


@dataclass(frozen=True)
class Waypoint:
    """Tool position [3] in metres, yaw and roll in radians, gripper opening 0..1."""

    position: np.ndarray
    yaw: float
    opening: float
    roll: float = 0.0


@dataclass(frozen=True)
class Intent:
    """What the demonstrator means to do. The defaults are right; every other value is a mistake.

    target: the object acted on. offset: where he believes the object is, relative to the truth, metres [2]. close_height: closes the
    gripper this far above the object, and leaves it closed. goal_offset: where he believes the goal is, likewise [2].
    release_distance: lets go this far from the goal, metres.
    """

    target: str
    goal: str
    offset: tuple[float, float] = (0.0, 0.0)
    close_height: float = 0.0
    goal_offset: tuple[float, float] = (0.0, 0.0)
    release_distance: float = 0.0


class View:
    """The physical state that the skills look at, measured once a step."""

    def __init__(self, scene: Any, tool_pose: tuple[np.ndarray, np.ndarray], opening: float) -> None:
        """scene: a `Scene`, with whatever else the suite's skills ask."""
        self.scene, self.opening = scene, opening
        self.tool, self.rotation = tool_pose
        self.yaw = rpy_from_rotation(self.rotation)[2]

    def holds(self, name: str) -> bool:
        return self.scene.fingers_on(name) == 2

    def turned(self, yaw: float, symmetry: int) -> float:
        """The equivalent of `yaw` nearest to the gripper's, for something that repeats `symmetry` times in a turn (0: round)."""
        if symmetry == 0:
            return self.yaw
        period = 2 * math.pi / symmetry
        return self.yaw + (yaw - self.yaw + period / 2) % period - period / 2

    def above(self, position: np.ndarray, yaw: float, opening: float) -> Waypoint:
        """Come down on `position` [3] through a funnel: over it first, then down as the horizontal and yaw errors shrink."""
        error = math.hypot(*(position - self.tool)[:2])
        climb = min(HOVER, max(0.0, 4 * (error - 0.008)) + 0.15 * max(0.0, abs(yaw - self.yaw) - 0.1))
        x, y = position[:2]
        if self.tool[2] < position[2] + 0.6 * HOVER and error > 0.05:  # low and far: climb before travelling
            x, y = self.tool[:2] + 0.2 * (position - self.tool)[:2]
        return Waypoint(np.array([x, y, position[2] + climb]), yaw, opening)

    def arrived(self, waypoint: Waypoint, height: float) -> bool:
        """Whether the tool is in place horizontally and in yaw, and no more than `height` too high."""
        error = self.tool - waypoint.position
        return math.hypot(*error[:2]) < NEAR and abs(self.yaw - waypoint.yaw) < NEAR_YAW and error[2] < height

    def close_on(self, intent: Intent, position: np.ndarray, yaw: float) -> Waypoint:
        """Close the gripper at `position` [3]; reopen and climb after closing on nothing."""
        position = position + np.array([*intent.offset, 0.0])
        down = Waypoint(position, yaw, 0.0)
        if intent.close_height and (self.opening < 0.3 or self.arrived(down, intent.close_height)):
            return self.above(position + np.array([0.0, 0.0, 0.03]), yaw, 0.0)
        if self.opening < 0.3 and not self.holds(intent.target):
            return Waypoint(np.array([*self.tool[:2], position[2] + HOVER]), yaw, 1.0)
        if self.arrived(down, 0.012):
            return Waypoint(np.array([*position[:2], max(position[2], self.tool[2] - 0.01)]), yaw, 0.0)
        return self.above(position, yaw, 1.0)


class ScriptedExpert(ABC):
    """Acts in one environment. It notices a reset by itself and starts the new episode with new moods."""

    # What can go wrong in a task; how fast a hand moves, as a share of the actions' bounds; how much farther than 3 to 5 cm a near
    # miss is, in tasks that forgive as little.
    mistakes: ClassVar[Mapping[str, tuple[str, ...]]]
    speed: ClassVar[tuple[float, float]]
    wider_miss: ClassVar[Mapping[str, float]]

    def __init__(self, env: gym.Env, quality: float = 1.0, seed: int | None = None) -> None:
        """env: one of the suite's environments, wrapped or not. quality: 0 (mostly fails) to 1 (clean); ValueError outside."""
        if not 0.0 <= quality <= 1.0:
            raise ValueError(f"an expert's quality lies between 0 and 1, got {quality}")
        self._env: Any = env.unwrapped
        self._quality = quality
        # Gymnasium seeds a reset's layout with the bare number: the same stream here would tie moods to layouts.
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        self._episode: Any = None
        self._mood_left = 0

    @abstractmethod
    def _present_episode(self) -> Any:
        """Another object, by identity or value, after each reset; None before the first."""

    @abstractmethod
    def _look(self) -> View: ...

    @abstractmethod
    def _intended(self) -> Intent:
        """What does what was asked."""

    @abstractmethod
    def _others(self) -> list[str]:
        """What might be taken for the target."""

    @abstractmethod
    def _skill(self, view: View, intent: Intent) -> Waypoint: ...

    def act(self, observation: Any = None) -> np.ndarray:
        """The next action, float32 [7] in physical units. The observation is not looked at: the simulator is."""
        episode = self._present_episode()
        if episode is None:
            raise RuntimeError("reset the environment before asking its expert")
        if episode != self._episode:
            self._episode = episode
            self._begin()
        view = self._look()
        if self._mood_left == 0:
            self._draw_mood(view)
        self._mood_left -= 1
        waypoint = self._aim(view)
        self._opening = waypoint.opening
        return self._towards(view, waypoint)

    def _begin(self) -> None:
        sloppy = 1.0 - self._quality
        self._speed = self._rng.uniform(*self.speed) - sloppy * self._rng.uniform(0.05, 0.2)
        self._opening = 1.0
        self._mood_left = 0

    def _draw_mood(self, view: View) -> None:
        """Decide what to do for the next few steps: the right thing, a mistake, a pause or a detour."""
        rng, sloppy, limit = self._rng, 1.0 - self._quality, self._env.task.max_steps
        self._intent = self._intended()
        self._detour: np.ndarray | None = None
        self._mood_left = int(rng.uniform(0.15, 0.35) * limit)
        draw, mistake = rng.uniform(), 0.88 * sloppy**1.2
        if draw < mistake:
            self._intent = self._mistaken(view, self._intent)
            self._mood_left = int(rng.uniform(0.25, 0.6) * limit)
        elif draw < mistake + 0.9 * sloppy * (1 - mistake):
            spread = 0.0 if rng.uniform() < 0.4 else 0.06
            self._detour = spread * rng.standard_normal(3)
            self._mood_left = int(rng.integers(2, 7))

    def _mistaken(self, view: View, intent: Intent) -> Intent:
        """Draw one mistake of the task's."""
        rng, task = self._rng, self._env.task.name
        kind = rng.choice(self.mistakes[task])
        others = self._others()
        if kind == "wrong" and others:
            taken = str(rng.choice(others))
            return replace(intent, target=taken, goal=intent.target if taken == intent.goal else intent.goal)
        if kind == "early close":
            return replace(intent, close_height=rng.uniform(0.03, 0.06))
        if kind == "early release":
            return replace(intent, release_distance=rng.uniform(0.08, 0.16))
        if kind in ("past", "short", "aside"):
            way = (view.scene.position(intent.goal) - view.scene.position(intent.target))[:2]
            along = way / max(math.hypot(*way), 1e-6)
            error = rng.uniform(0.06, 0.10)
            if kind == "aside":
                along = rng.choice([-1, 1]) * np.array([-along[1], along[0]])
            return replace(intent, goal_offset=tuple((-error if kind == "short" else error) * along))
        angle, size = rng.uniform(-math.pi, math.pi), rng.uniform(0.03, 0.05) + self.wider_miss.get(task, 0.0)
        return replace(intent, offset=(size * math.cos(angle), size * math.sin(angle)))

    def _aim(self, view: View) -> Waypoint:
        if self._detour is None:
            return self._skill(view, self._intent)
        return Waypoint(view.tool + self._detour, view.yaw, self._opening)

    def _towards(self, view: View, waypoint: Waypoint) -> np.ndarray:
        """One bounded step to the waypoint, with an unsteady hand in every dimension."""
        low, high = self._env.action_space.low, self._env.action_space.high
        shift = waypoint.position - view.tool
        turn = np.array(rpy_from_rotation(rotation_from_rpy(waypoint.roll, 0.0, waypoint.yaw) @ view.rotation.T))
        shift *= min(1.0, self._speed * high[0] / max(np.abs(shift).max(), 1e-9))
        turn *= min(1.0, self._speed * high[3] / max(np.abs(turn).max(), 1e-9))
        sloppy = 1.0 - self._quality
        noise = self._rng.standard_normal(7) * np.repeat([0.0015 + 0.006 * sloppy, 0.008 + 0.03 * sloppy, 0.02], [3, 3, 1])
        return np.clip(np.array([*shift, *turn, waypoint.opening]) + noise, low, high).astype(np.float32)
