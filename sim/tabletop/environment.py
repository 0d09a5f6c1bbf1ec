"""The Gymnasium environment of the tabletop family.

Actions are Bridge's: (x, y, z) in metres, (roll, pitch, yaw) in radians, both as changes in the robot's base frame per 5 Hz step,
and the gripper's absolute opening (1 = open). They move a commanded pose, not the measured one: so a zero action holds still
instead of drifting with the controller's error. The commanded pose is kept on a short leash to the measured one, so that pushing
against something does not wind up. A step whose pose is out of reach tries the translation alone, then stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sim.actions import ACTION_METADATA, bounded
from sim.environment import ArmEnv
from sim.rotations import rotation_from_rpy, rpy_from_rotation
from sim.tabletop.client import PhysicsClient
from sim.tabletop.scene import BLOCKS, OBJECTS, SUBSTEPS, SYMMETRY, Scene
from sim.tabletop.tasks import TASK_TABLE, Layout, Task

CAMERAS = ("primary", "wrist")
SLOT = ("present", "from tool x", "from tool y", "from tool z", "x", "y", "z", "sin yaw", "cos yaw", "held")
SLOTS = ("target", "second", "third", "fourth")
STATE_NAMES = (
    *(f"{slot}: {value}" for slot in SLOTS for value in SLOT),
    *(f"second from target {axis}" for axis in "xyz"),
    "drawer opening",
)

WORKSPACE_LOW = np.array([0.15, -0.24, 0.012])
WORKSPACE_HIGH = np.array([0.44, 0.24, 0.30])
LEASH, LEASH_ANGLE = 0.02, 0.25  # how far the commanded pose may run ahead of the measured one: metres, radians


class TabletopEnv(ArmEnv):
    """One task on the table. `TABLETOP.tasks` lists the registered ids; time limits come from Gymnasium's registration.

    Observations: `image_primary`, `image_wrist` uint8 [H,W,3] for the chosen cameras; `proprio` float32 [7] = tool x, y, z, roll,
    pitch, yaw, gripper opening; `state` float32 [44] as `STATE_NAMES`; `instruction`. The state is the simulator's own knowledge:
    its slots are ordered by their part in the task (the object that is asked for, then the goal where there is one, then the rest),
    so that who learns from it needs the instruction for the task only; who learns from images needs it for the object too. Yaw in
    `state` is relative to the gripper's and multiplied by the object's symmetry, and is (0, 1) for the round bowl; "held" is the
    share of fingers touching; absent objects are zeros.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **ACTION_METADATA,
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "control_hz": 5.0,
        "state_names": STATE_NAMES,
    }
    task: Task

    def __init__(
        self,
        task: str,
        image_size: int | tuple[int, int] = 64,
        cameras: Sequence[str] = CAMERAS,
        render_mode: str | None = None,
    ) -> None:
        """image_size: side, or (height, width), in pixels. cameras: those to render; () makes stepping fast."""
        instructions = spaces.Text(64, charset="abcdefghijklmnopqrstuvwxyz ")
        super().__init__(instructions, CAMERAS, image_size, cameras, render_mode)
        self.task = TASK_TABLE[task]
        self._client: PhysicsClient | None = None
        self.scene: Scene
        self.layout: Layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a new layout and start the arm over the table. The world is built anew: nothing of earlier episodes remains."""
        super().reset(seed=seed)
        if self._client is None:
            self._client = PhysicsClient()
        rng = self.np_random
        self.layout = self.task.layout(self.task, rng)
        self.scene = Scene(self._client, self.layout.poses)
        self._position = np.array([rng.uniform(0.21, 0.31), rng.uniform(-0.09, 0.09), rng.uniform(0.16, 0.23)])
        self._rotation = rotation_from_rpy(0.0, 0.0, rng.uniform(-0.3, 0.3))
        self.scene.arm.place(self._position, self._rotation)
        self.scene.settle()
        self._held = 0
        return self._observation(), self._info(False, np.zeros(7, np.float32))

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action for 0.2 s. Reward 1 and termination on success. Raises ValueError on a malformed action."""
        action = bounded(action)
        if self._client is None:
            raise RuntimeError("step() before reset(), or after close()")
        self._drive(action.astype(np.float64))
        self._held = self._held + 1 if self.task.succeeded(self.scene, self.layout) else 0
        success = self._held >= self.task.hold_steps
        return self._observation(), float(success), success, False, self._info(success, action)

    def _drive(self, action: np.ndarray) -> None:
        """Move the commanded pose by the action, and the arm to it; then shorten the leash."""
        arm = self.scene.arm
        position = np.clip(self._position + action[:3], WORKSPACE_LOW, WORKSPACE_HIGH)
        turned = rotation_from_rpy(*action[3:6]) @ self._rotation
        for rotation in (turned, self._rotation):
            joints = arm.solve(position, rotation)
            if joints is not None:
                self._position, self._rotation = position, rotation
                break
        arm.move(joints, action[6], SUBSTEPS)
        measured, orientation = arm.tool_pose()
        ahead = self._position - measured
        self._position = measured + ahead * min(1.0, LEASH / max(float(np.linalg.norm(ahead)), 1e-9))
        cosine = (float(np.trace(orientation.T @ self._rotation)) - 1) / 2
        if cosine < math.cos(LEASH_ANGLE):
            self._rotation = orientation

    def _observation(self) -> dict[str, Any]:
        tool, rotation = self.scene.arm.tool_pose()
        roll, pitch, yaw = rpy_from_rotation(rotation)
        proprio = np.array([*tool, roll, pitch, yaw, self.scene.arm.opening()], np.float32)
        images = {f"image_{camera}": self.scene.image(camera, *self._image_size) for camera in self.cameras}
        return {**images, "proprio": proprio, "state": self._state(tool, yaw), "instruction": self.layout.instruction}

    def _state(self, tool: np.ndarray, tool_yaw: float) -> np.ndarray:
        state = np.zeros((len(SLOTS), len(SLOT)), np.float32)
        ordered = dict.fromkeys((self.layout.target, self.layout.goal, *OBJECTS))
        names = [name for name in ordered if name in self.scene.bodies]
        for slot, name in zip(state, names, strict=False):
            position = np.clip(self.scene.position(name), -1.0, 1.0)  # a block that fell off the table falls for long
            angle = SYMMETRY[name] * (self.scene.yaw(name) - tool_yaw)
            held = self.scene.fingers_on(name) / 2 if name in (*BLOCKS, "drawer") else 0.0
            slot[:] = (1.0, *(position - tool), *position, math.sin(angle), math.cos(angle), held)
        return np.concatenate([state.ravel(), state[1, 4:7] - state[0, 4:7], [self.scene.drawer_opening()]]).astype(np.float32)

    def render(self) -> np.ndarray | None:
        """The primary camera at 256 x 256, for people and videos; None once it is closed, as its world may be another's by then."""
        if self.render_mode != "rgb_array" or self._client is None:
            return None
        return self.scene.image("primary", 256, 256)

    def close(self) -> None:
        """Free the physics client; a later reset connects again."""
        if self._client is not None:
            self._client.close()
            self._client = None
