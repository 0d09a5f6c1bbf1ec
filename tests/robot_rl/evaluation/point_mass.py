"""A point on a line that must reach a goal, and policies for it: small enough for tests with real processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch

from policies.base import ActionSpec, Observations

HORIZON = 12


class PointMass(gymnasium.Env):
    """Success when |position - goal| < 0.1. Seeds ending in `crash_at_step`'s digit crash there; `delay` seconds a step."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}  # type: ignore[misc]

    def __init__(self, crash: str = "", delay: float = 0.0, seed_digit: int = 3, render_mode: str | None = None) -> None:
        self.observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-10, 10, (2,), np.float32)})
        self.action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,), np.float32)
        self.crash, self.delay, self.seed_digit, self.render_mode = crash, delay, seed_digit, render_mode
        self.applied: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeded, self.time = seed, 0
        self.position, self.goal = 0.0, float(self.np_random.uniform(-2, 2))
        self._crash("reset")
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        time.sleep(self.delay)
        self.time += 1
        self._crash("step")
        self.position += float(action[0])
        success = abs(self.position - self.goal) < 0.1
        return self._observe(), float(success), success, self.time >= HORIZON, {"success": success}

    def _crash(self, where: str) -> None:
        if self.crash == where and self.seeded is not None and self.seeded % 10 == self.seed_digit:
            raise RuntimeError("simulator\nexploded")
        if where == "step" and self.seeded is not None and self.seeded % 10 == self.seed_digit:
            self._take_the_process_down()

    def _take_the_process_down(self) -> None:
        if self.crash == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.crash == "exit":
            os._exit(5)
        if self.crash == "hang":
            time.sleep(60)

    def _observe(self) -> dict[str, Any]:
        return {
            "state": np.array([self.position, self.goal], np.float32),
            "instruction": f"go to {'left' if self.goal < 0 else 'right'}",
        }

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        image = np.zeros((16, 20, 3), np.uint8)
        image[:, int(np.clip((self.position + 2) * 5, 0, 19))] = 255
        return image if self.render_mode == "rgb_array" else None


class Endless(PointMass):
    """Breaks the contract: no success in info."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {}


class Faulty(PointMass):
    """Breaks it in one way: `fault` says which."""

    def __init__(self, fault: str, **kwargs: Any) -> None:
        if fault == "made":
            raise OSError("no\nUSB device")
        super().__init__(**kwargs)
        self.fault = fault

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.fault == "success":
            info["success"] = "no"
        if self.fault == "nan":
            observation["state"] = observation["state"] * np.float32(np.nan)
        if self.fault == "shape":
            observation["state"] = observation["state"][:1]
        if self.fault == "missing":
            del observation["state"]
        return observation, reward, terminated, truncated, info


class Filmed(PointMass):
    """Has something of its own that is called `cameras`."""

    @property
    def cameras(self) -> dict[str, str]:
        return {"front": "/dev/video0"}


gymnasium.register("test/Filmed-v0", entry_point=Filmed)
gymnasium.register("test/PointMass-v0", entry_point=PointMass)
gymnasium.register("test/Faulty-v0", entry_point=Faulty)
gymnasium.register("test/PointMassFar-v0", entry_point=PointMass)
gymnasium.register("test/NoSuccess-v0", entry_point=Endless)


class Homing:
    """Moves towards the goal with noise; a chunk is H equal steps. Keeps the batch sizes it was asked for."""

    def __init__(self, noise: float, chunk: int = 3, nan_above: float = np.inf, judged: bool = False) -> None:
        self.action_spec = ActionSpec(("x",), ("m",), (-0.5,), (0.5,), "world", 10.0, chunk)
        self.noise, self.nan_above, self.judged = noise, nan_above, judged
        self.batches: list[int] = []
        self.resets = 0
        self.last_decision: Any = None

    def reset(self) -> None:
        self.resets += 1

    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        state = torch.from_numpy(observations["state"])
        assert isinstance(observations["instruction"], list)
        self.batches.append(len(state))
        chunk = self.action_spec.chunk
        noise = self.noise * torch.randn((len(state), num_samples, chunk, 1), generator=generator)
        actions = ((state[:, 1] - state[:, 0]) / chunk)[:, None, None, None] + noise
        if self.judged:
            distance = (state[:, 1] - state[:, 0]).abs()
            self.last_decision = SimpleNamespace(values=-distance, disagreement=distance)
        return torch.where((state[:, 1] > self.nan_above)[:, None, None, None], torch.nan, actions)


@dataclass(frozen=True)
class Make:
    """Picklable factory of a `Homing`; `fault` makes the worker that builds it misbehave."""

    noise: float
    fault: str = ""

    def __call__(self) -> Homing:
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raise":
            raise ZeroDivisionError("a defect of ours")
        return Homing(self.noise)
