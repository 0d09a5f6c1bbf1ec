"""Gymnasium-robotics' Fetch and Adroit tasks as two suites, and an example of how other people's environments become one.

Nothing else here knows of it: `--env sim.gymnasium_robotics:fetch` imports this module, which registers them. Observations get our
names, actions physical units, and success ends an episode. Nobody demonstrates these tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from data.errors import InputError
from sim.suite import Suite, register_suite

try:
    import gymnasium_robotics
except ImportError as error:
    raise InputError(f"these tasks need an extra ({error}): pip install 'robot-rl[gymnasium-robotics]'") from error

gymnasium.register_envs(gymnasium_robotics)

# Of each task: their id, time limit, instruction, and which numbers of their observation are the robot's own.
FETCH = {
    "reach": ("FetchReach-v4", 50, "move the gripper to the target", slice(0, 5)),
    "push": ("FetchPush-v4", 50, "push the block to the target", slice(0, 3)),
    "slide": ("FetchSlide-v4", 50, "slide the puck to the target", slice(0, 3)),
    "pick": ("FetchPickAndPlace-v4", 50, "lift the block to the target", slice(0, 3)),
}
ADROIT = {
    "door": ("AdroitHandDoor-v1", 200, "open the door", slice(0, 27)),
    "hammer": ("AdroitHandHammer-v1", 200, "hammer the nail into the board", slice(0, 26)),
    "pen": ("AdroitHandPen-v1", 200, "turn the pen as shown", slice(0, 24)),
    "relocate": ("AdroitHandRelocate-v1", 200, "move the ball to the target", slice(0, 30)),
}


class RoboticsEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One of their environments with `state` (all that they observe, the goal too), `proprio` (float32) and `instruction`."""

    def __init__(
        self, env_id: str, instruction: str, proprio: slice, cameras: Sequence[str] = (), render_mode: str | None = None
    ) -> None:
        """cameras: none, there are none. render_mode: as theirs."""
        if cameras:
            raise ValueError("Gymnasium-robotics tasks have no cameras for a policy; use one that looks at state and proprio")
        self._env = gymnasium.make(env_id, disable_env_checker=True, max_episode_steps=-1, render_mode=render_mode)
        self._instruction, self._proprio, self.render_mode = instruction, proprio, render_mode
        robot: Any = self._env.unwrapped
        names: tuple[str, ...]
        units: tuple[str, ...]
        if isinstance(self._env.observation_space, spaces.Dict):  # Fetch: the end effector's motion
            high = np.array([0.05, 0.05, 0.05, 1.0])
            middle, names, units, frame = (
                np.zeros(4),
                ("x", "y", "z", "gripper"),
                ("m", "m", "m", "m"),
                "end_effector_delta_base",
            )
        else:  # Adroit: the joints' positions, of which some of the arm's slide
            middle, high = robot.act_mean, robot.act_mean + robot.act_rng
            names = tuple(robot.model.actuator(i).name for i in range(robot.model.nu))
            units, frame = tuple("m" if "_ART" in name else "rad" for name in names), "joint_position"
        self._middle, self._range = middle, high - middle
        self.metadata = {
            **self._env.metadata,
            "control_hz": 1 / robot.dt,
            "action_names": names,
            "action_units": units,
            "action_frame": frame,
        }
        self.action_space = spaces.Box((middle - self._range).astype(np.float32), high.astype(np.float32), dtype=np.float32)
        state = np.concatenate([np.zeros(part.shape) for part in self._parts(self._env.observation_space)])
        unbounded = {"state": len(state), "proprio": len(state[proprio])}
        boxes = {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in unbounded.items()}
        self.observation_space = spaces.Dict({**boxes, "instruction": spaces.Text(64, charset="abcdefghijklmnopqrstuvwxyz ")})

    @staticmethod
    def _parts(observation: Any) -> list[Any]:
        """Their observation (or its space) without what is only a copy: the achieved goal."""
        goal_conditioned = isinstance(observation, dict | spaces.Dict)
        return [observation["observation"], observation["desired_goal"]] if goal_conditioned else [observation]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their reset."""
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed, options=options)
        return self._named(observation), {
            "success": False,
            "applied_action": np.zeros(self.action_space.shape or (), np.float32),
        }

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One action in physical units. Their reward; ends on success. Raises ValueError on a malformed action."""
        space = self.action_space
        assert isinstance(space, spaces.Box)
        action = np.asarray(action, np.float32)
        if action.shape != space.shape or not np.isfinite(action).all():
            raise ValueError(f"an action is {space.shape} finite numbers, got shape {action.shape}")
        applied = np.clip(action, space.low, space.high)
        observation, reward, _, _, info = self._env.step((applied - self._middle) / self._range)
        success = bool(info["is_success"] if "is_success" in info else info["success"])
        return self._named(observation), float(reward), success, False, {"success": success, "applied_action": applied}

    def _named(self, observation: Any) -> dict[str, Any]:
        state = np.concatenate(self._parts(observation)).astype(np.float32)
        return {"state": state, "proprio": state[self._proprio], "instruction": self._instruction}

    def render(self) -> Any:
        """As theirs."""
        return self._env.render()

    def close(self) -> None:
        """As theirs."""
        self._env.close()


for _suite, _tasks in (("fetch", FETCH), ("adroit", ADROIT)):
    _ids = {_task: f"{_theirs.split('-')[0]}-Robotics-v0" for _task, (_theirs, *_rest) in _tasks.items()}
    for _task, (_theirs, _limit, _instruction, _proprio) in _tasks.items():
        gymnasium.register(
            _ids[_task],
            entry_point=f"{__name__}:RoboticsEnv",
            kwargs={"env_id": _theirs, "instruction": _instruction, "proprio": _proprio},
            max_episode_steps=_limit,
        )
    register_suite(Suite(_suite, _ids))
