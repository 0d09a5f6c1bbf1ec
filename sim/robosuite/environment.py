"""The Gymnasium environment of the robosuite family: a Panda, and robosuite's models, cameras and placements.

Actions mean what they mean on the tabletop, at 5 Hz: (x, y, z) in metres and (roll, pitch, yaw) in radians move a commanded pose in
the base frame, and the gripper's opening is absolute. The operational space controller follows it; the commanded pose is kept on a
short leash to the measured one, so that pushing against something does not wind up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sim.actions import ACTION_METADATA, bounded
from sim.environment import ArmEnv
from sim.robosuite.camera import CAMERAS, image
from sim.robosuite.tasks import ENTITIES, TABLE, TASK_TABLE, Task
from sim.robosuite.world import CONTROL_HZ, World
from sim.rotations import rotation_from_rpy, rpy_from_rotation, vector_from_rotation

SLOT = ("present", "from tool x", "from tool y", "from tool z", "x", "y", "z", "sin yaw", "cos yaw", "upright", "held")
SLOTS = ("target", "goal", "third", "fourth")
STATE_NAMES = (
    *(f"{slot}: {value}" for slot in SLOTS for value in SLOT),
    *(f"goal from target {axis}" for axis in "xyz"),
    "door hinge",
)
LOW, HIGH = TABLE + 0.005, 0.45  # heights that the tool is commanded to
# A Panda's wrist, 0.207 above and 0.088 inwards of a tool that points down, is at most 0.72 from the shoulder.
SHOULDER, WRIST_ABOVE, WRIST_INWARDS, REACH = 0.333, 0.207, 0.088, 0.705
LEASH, LEASH_ANGLE = 0.03, 0.25  # how far the commanded pose may run ahead of the measured one: metres, radians


def within_reach(position: np.ndarray) -> np.ndarray:
    """The nearest tool position [3] straight above or inwards of which the arm need not stretch: there it could not be controlled."""
    x, y, z = position[0], position[1], min(HIGH, max(LOW, position[2]))
    height = z + WRIST_ABOVE - SHOULDER
    scale = min(1.0, (WRIST_INWARDS + math.sqrt(REACH**2 - height**2)) / max(math.hypot(x, y), 1e-9))
    return np.array([max(0.2, scale * x), scale * y, z])


class RobosuiteEnv(ArmEnv):
    """One robosuite task. `ROBOSUITE.tasks` lists the registered ids; time limits come from Gymnasium's registration.

    Observations: `image_primary`, `image_wrist` uint8 [H,W,3] for the chosen cameras; `proprio` float32 [7] = tool x, y, z, roll,
    pitch, yaw, gripper opening; `state` float32 [48] as `STATE_NAMES`, the simulator's own knowledge; `instruction`. Slots are ordered
    by their part in the task: what is asked for, where it belongs, the rest; those that are not used are zeros. Yaw in `state` is
    relative to the gripper's and multiplied by the object's symmetry, and is (0, 1) for round things; "upright" is the height of
    the object's own vertical axis; "held" the share of fingers touching.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **ACTION_METADATA,
        "render_modes": ["rgb_array"],
        "render_fps": int(CONTROL_HZ),
        "control_hz": CONTROL_HZ,
        "state_names": STATE_NAMES,
    }
    task: Task

    def __init__(
        self,
        task: str,
        image_size: int | tuple[int, int] = 64,
        cameras: Sequence[str] = tuple(CAMERAS),
        render_mode: str | None = None,
    ) -> None:
        """image_size: side, or (height, width), in pixels. cameras: those to render; () makes stepping fast."""
        instructions = spaces.Text(80, charset="abcdefghijklmnopqrstuvwxyz' ")
        super().__init__(instructions, CAMERAS, image_size, cameras, render_mode)
        self.task = TASK_TABLE[task]
        self.world: World | None = None
        self.episode = 0  # counts resets, so that who watches notices one
        self.target, self.goal, self.instruction = "", "", ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a new placement. Nothing of earlier episodes remains."""
        super().reset(seed=seed)
        if self.world is None:
            self.world = World(self.task)
        rng, task = self.np_random, self.task
        self.target = task.targets[rng.integers(len(task.targets))]
        self.goal = task.goal.format(target=self.target)
        self.instruction = task.instructions[rng.integers(len(task.instructions))].format(target=self.target)
        self.world.reset(rng)
        self._position, self._rotation = self.world.tool_pose()
        self._held, self.episode = 0, self.episode + 1
        return self._observation(self.world), self._info(False, np.zeros(7, np.float32))

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action for 0.2 s. Reward 1 and termination on success. Raises ValueError on a malformed action."""
        action = bounded(action)
        if self.world is None:
            raise RuntimeError("step() before reset(), or after close()")
        self._drive(self.world, action.astype(np.float64))
        self._held = self._held + 1 if self.task.succeeded(self.world, self.target, self.goal) else 0
        success = self._held >= self.task.hold_steps
        return self._observation(self.world), float(success), success, False, self._info(success, action)

    def _drive(self, world: World, action: np.ndarray) -> None:
        """Move the commanded pose by the action, and the arm to it; then shorten the leash."""
        position = within_reach(self._position + action[:3])
        rotation = rotation_from_rpy(*action[3:6]) @ self._rotation
        world.drive((self._position, self._rotation), (position, rotation), action[6])
        measured, orientation = world.tool_pose()
        ahead = position - measured
        self._position = measured + ahead * min(1.0, LEASH / max(float(np.linalg.norm(ahead)), 1e-9))
        turned = float(np.linalg.norm(vector_from_rotation(rotation @ orientation.T)))
        self._rotation = orientation if turned > LEASH_ANGLE else rotation

    def _observation(self, world: World) -> dict[str, Any]:
        tool, rotation = world.tool_pose()
        roll, pitch, yaw = rpy_from_rotation(rotation)
        proprio = np.array([*tool, roll, pitch, yaw, world.opening()], np.float32)
        images = {f"image_{camera}": image(world, camera, *self._image_size) for camera in self.cameras}
        return {**images, "proprio": proprio, "state": self._state(world, tool, yaw), "instruction": self.instruction}

    def _state(self, world: World, tool: np.ndarray, tool_yaw: float) -> np.ndarray:
        state = np.zeros((len(SLOTS), len(SLOT)))
        others = (name for name in self.task.targets if name != self.target)
        for slot, name in zip(state, (self.target, self.goal, *others), strict=False):
            if name:
                position = np.clip(world.position(name), -1.5, 1.5)  # what fell off the table falls for long
                angle = ENTITIES[name].symmetry * (world.yaw(name) - tool_yaw)
                upright, held = world.rotation(name)[2, 2], world.fingers_on(name) / 2
                slot[:] = (1.0, *(position - tool), *position, math.sin(angle), math.cos(angle), upright, held)
        towards = (state[1, 4:7] - state[0, 4:7]) * state[1, 0]
        hinge = world.joint("Door_hinge") if self.task.name == "door" else 0.0
        return np.concatenate([state.ravel(), towards, [hinge]]).astype(np.float32)

    def render(self) -> np.ndarray | None:
        """The primary camera at 256 x 256, for people and videos."""
        return image(self.world, "primary", 256, 256) if self.world and self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Let the state go; a later reset makes another."""
        self.world = None
