"""One robosuite task's world: its model, compiled once a process, the physical state of one episode, and questions about it.

robosuite assembles the models and draws the placements; its environment classes are not stepped. An episode is one `MjData` that a
reset empties, so nothing of earlier episodes remains, and dozens of environments share a model of 60 MB.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.robosuite.controller import OperationalSpaceController
from sim.robosuite.engine import mujoco, robosuite
from sim.robosuite.tasks import ENTITIES, TASK_TABLE, Task
from sim.rotations import rotation_from_vector, vector_from_rotation

CONTROL_HZ = 5.0
HAND_SITE = "gripper0_right_grip_site"
FINGER_GEOMS = tuple(f"gripper0_right_finger{i}_{part}" for i in (1, 2) for part in ("collision", "pad_collision"))
FINGER_OPEN = 0.04  # a finger's distance from the middle, metres
# The hand's site at roll = pitch = yaw = 0: pointing straight down, its fingers closing along the base frame's y axis.
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
PHYSICS_SECONDS = 0.004  # a substep: half as many as robosuite's, in half the time; the experts do as well
HOLD = 2  # substeps for which the torques stay: 125 Hz, where the controller's stiffness makes the arm answer at 4; divides all moves
SETTLING_SECONDS = 0.2
POSTURE_NOISE = 0.02  # radians; robosuite's


@dataclass(frozen=True)
class Blueprint:
    """What all episodes of a task share."""

    model: Any
    placements: Any  # robosuite's sampler
    posture: np.ndarray
    base: np.ndarray


@functools.cache
def blueprint(name: str) -> Blueprint:
    """Let robosuite assemble a task's model, and leave out what the task does not need."""
    task = TASK_TABLE[name]
    made = robosuite.make(
        task.robosuite_name,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        hard_reset=False,
        seed=0,  # some objects' sizes are drawn
        **task.options,
    )
    spec = mujoco.MjSpec.from_string(made.model.get_xml())
    for left_out in task.left_out:
        spec.delete(spec.body(f"{left_out}_main"))
    for fixture in task.fixtures:
        spec.body(f"{fixture}_main").mocap = True  # its place is the episode's, in MjData, and not the shared model's
    for geom in FINGER_GEOMS:  # contacts are listed, and exert no force, from a millimetre on: a held object's come and go
        spec.geom(geom).margin = spec.geom(geom).gap = 0.001
    spec.visual.quality.offsamples = 0
    spec.option.timestep = PHYSICS_SECONDS
    model = spec.compile()
    posture = np.array(made.robots[0].init_qpos)
    base = model.body("robot0_base")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return Blueprint(model, made.placement_initializer, posture, data.xpos[base.id].copy())


class World:
    """The physical state of the current episode. All positions are in the robot's base frame, metres."""

    def __init__(self, task: Task) -> None:
        shared = blueprint(task.name)
        self.task, self.model, self.base = task, shared.model, shared.base
        self.data = mujoco.MjData(self.model)
        self._shared = shared
        self._site = self.model.site(HAND_SITE).id
        geoms = [self.model.geom(name).id for name in FINGER_GEOMS]
        self._fingers = geoms[:2], geoms[2:]
        self._finger_joints = [int(self.model.joint(f"gripper0_right_finger_joint{i}").qposadr[0]) for i in (1, 2)]
        self._controller = OperationalSpaceController(self.model, self.data, self._site, shared.posture)
        self._substeps = round(1 / CONTROL_HZ / PHYSICS_SECONDS)

    def reset(self, rng: np.random.Generator) -> None:
        """Empty the state, place the arm and the objects, and let them come to rest."""
        data, joints = self.data, len(self._shared.posture)
        mujoco.mj_resetData(self.model, data)
        data.qpos[:joints] = self._shared.posture + POSTURE_NOISE * rng.standard_normal(joints)
        data.qpos[self._finger_joints] = FINGER_OPEN, -FINGER_OPEN
        for name, position, quaternion in self._draw(rng):
            body = self.model.body(f"{name}_main")
            if body.mocapid[0] >= 0:
                data.mocap_pos[body.mocapid[0]], data.mocap_quat[body.mocapid[0]] = position, quaternion
            else:
                at = self.model.joint(body.jntadr[0]).qposadr[0]
                data.qpos[at : at + 7] = [*position, *quaternion]
        mujoco.mj_forward(self.model, data)
        self._velocity = np.zeros(6)
        pose = self.tool_pose()
        self._move(pose, pose, 1.0, round(SETTLING_SECONDS / PHYSICS_SECONDS))

    def _draw(self, rng: np.random.Generator) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Name, world position and quaternion (wxyz) of what is placed anew."""
        sampler = self._shared.placements
        for one in (sampler, *getattr(sampler, "samplers", {}).values()):
            one.rng = rng
        while True:
            placed = {name: (np.array(position), np.array(turn)) for name, (position, turn, _) in sampler.sample().items()}
            spots = [placed[name][0][:2] for name in self.task.objects]
            if all(math.dist(a, b) > self.task.spacing for a, b in itertools.combinations(spots, 2)):
                return [(name, *placed[name]) for name in (*self.task.objects, *self.task.fixtures)]

    def drive(self, start: tuple[np.ndarray, np.ndarray], goal: tuple[np.ndarray, np.ndarray], opening: float) -> None:
        """One control step: the commanded pose runs from `start` to `goal`, each (position [3], rotation [3,3])."""
        self._move(start, goal, opening, self._substeps)

    def _move(self, start, goal, opening: float, substeps: int) -> None:
        """The commanded pose has the last step's mean velocity at first and this one's in the end, a cubic in between: jumps in
        velocity would ask for more torque than the motors have.
        """
        duration = substeps * PHYSICS_SECONDS
        way = np.concatenate([goal[0] - start[0], vector_from_rotation(goal[1] @ start[1].T)])
        before, self._velocity = duration * self._velocity, way / duration
        origin, orientation = self.base + start[0], start[1] @ POINTING_DOWN
        self.data.ctrl[-2:] = opening * FINGER_OPEN, -opening * FINGER_OPEN
        s = np.arange(HOLD, substeps + HOLD, HOLD)[:, None] / substeps
        moved = s * (1 - s) ** 2 * before + s * s * (2 - s) * way
        velocities = ((1 - s) * (1 - 3 * s) * before + s * (4 - 3 * s) * way) / duration
        positions, rotations = origin + moved[:, :3], rotation_from_vector(moved[:, 3:]) @ orientation
        for position, rotation, velocity in zip(positions, rotations, velocities, strict=True):
            mujoco.mj_step1(self.model, self.data)
            self.data.ctrl[:-2] = self._controller.torques(position, rotation, velocity)
            mujoco.mj_step2(self.model, self.data)
            mujoco.mj_step(self.model, self.data, HOLD - 1)
        mujoco.mj_forward(self.model, self.data)

    # ---- questions about the physical state

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured tool position [3] and orientation [3,3] (identity points down) in the base frame."""
        rotation = self.data.site_xmat[self._site].reshape(3, 3)
        return self.data.site_xpos[self._site] - self.base, rotation @ POINTING_DOWN.T

    def opening(self) -> float:
        """Measured gripper opening, 0 closed to 1 open."""
        left, right = self.data.qpos[self._finger_joints]
        return float(min(1.0, max(0.0, (left - right) / 2 / FINGER_OPEN)))

    def position(self, name: str) -> np.ndarray:
        """Where an entity is [3]."""
        entity = ENTITIES[name]
        return (self.data.site(entity.site) if entity.site else self.data.body(entity.body)).xpos - self.base

    def rotation(self, name: str) -> np.ndarray:
        """Its orientation [3,3]."""
        return self.data.body(ENTITIES[name].body).xmat.reshape(3, 3)

    def yaw(self, name: str) -> float:
        """Its heading about the vertical, radians; where it has fallen over, of whichever side lies most nearly level."""
        rotation = self.rotation(name)
        side = 0 if abs(rotation[2, 0]) < 0.8 else 1
        return math.atan2(rotation[1, side], rotation[0, side])

    def speed(self, name: str) -> float:
        """Its linear speed in m/s."""
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_BODY, self._body(name), velocity, 0)
        return float(np.linalg.norm(velocity[3:]))

    def site(self, name: str) -> np.ndarray:
        """Where one of MuJoCo's sites is [3]."""
        return self.data.site(name).xpos - self.base

    def joint(self, name: str) -> float:
        """A hinge's angle, radians."""
        return float(self.data.joint(name).qpos[0])

    def fingers_on(self, name: str) -> int:
        """How many fingers (0-2) touch an object, to a millimetre."""
        pairs = self.data.contact.geom
        on_object = self.model.geom_bodyid[pairs] == self._body(name)
        other = pairs[:, ::-1][on_object]  # of each contact, the geom on the other side
        return sum(bool((other[..., None] == finger).any()) for finger in self._fingers)

    def touching(self, name: str, other: str) -> bool:
        """Whether two objects are in contact."""
        bodies = self.model.geom_bodyid[self.data.contact.geom]
        return bool((np.sort(bodies, axis=1) == sorted((self._body(name), self._body(other)))).all(axis=1).any())

    def _body(self, name: str) -> int:
        return self.model.body(ENTITIES[name].body).id
