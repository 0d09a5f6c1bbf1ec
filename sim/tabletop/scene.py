"""The tabletop: blocks, bowl, zone and drawer in one physics client, questions about them, and the two cameras.

Everything is rebuilt from an empty world on each reset. That costs a few milliseconds and buys exact reproducibility:
PyBullet's `restoreState` keeps contact and solver caches, so episodes would depend on what ran before them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.tabletop.arm import LEFT_FINGER, RIGHT_FINGER, Arm
from sim.tabletop.client import PhysicsClient, pybullet

BLOCKS = ("red block", "green block", "blue block")
OBJECTS = (*BLOCKS, "bowl", "zone", "drawer")
SYMMETRY = {**dict.fromkeys(BLOCKS, 4), "bowl": 0, "zone": 4, "drawer": 1}  # how often a full turn repeats the object

BLOCK_SIZE = 0.04
ZONE_SIZE = 0.11
BOWL_RADIUS, BOWL_HEIGHT, BOWL_FLOOR = 0.062, 0.036, 0.006
DRAWER_TRAVEL = 0.12
HANDLE_HEIGHT, HANDLE_REACH = 0.055, 0.034  # above the table; in front of the cabinet
SUBSTEPS = 16

_COLOURS = {
    "red block": (0.86, 0.16, 0.14, 1),
    "green block": (0.18, 0.66, 0.25, 1),
    "blue block": (0.14, 0.33, 0.85, 1),
    "bowl": (0.93, 0.92, 0.88, 1),
    "zone": (0.98, 0.82, 0.15, 1),
    "table": (0.72, 0.58, 0.44, 1),
    "floor": (0.50, 0.53, 0.56, 1),
    "cabinet": (0.36, 0.44, 0.50, 1),
    "front": (0.62, 0.42, 0.62, 1),
    "handle": (0.12, 0.12, 0.13, 1),
}


Vector = tuple[float, float, float]
Box = tuple[Vector, Vector, str]  # size, centre, colour's name


@dataclass(frozen=True)
class Pose:
    """Where an object rests: x, y in metres and yaw in radians, on the table in the robot's base frame."""

    x: float
    y: float
    yaw: float = 0.0


class Scene:
    """One physics client with an arm and the objects of the current episode."""

    def __init__(self, client: PhysicsClient, poses: Mapping[str, Pose]) -> None:
        """Empty the client's world and build it again with the named objects at `poses`."""
        self._client = client
        client.resetSimulation()
        client.setGravity(0, 0, -9.81)
        client.setPhysicsEngineParameter(fixedTimeStep=0.2 / SUBSTEPS, numSolverIterations=24, deterministicOverlappingPairs=1)
        self._table = self._body(0, [((1.0, 1.3, 0.04), (0.42, 0, -0.02), "table")])
        self._body(0, [((30, 30, 0.02), (0, 0, -0.6), "floor")], collides=False)
        self.arm = Arm(client)
        self.bodies = {name: self._build(name, pose) for name, pose in poses.items()}

    def _build(self, name: str, pose: Pose) -> int:
        if name in BLOCKS:
            half = BLOCK_SIZE / 2
            body = self._body(0.05, [((BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE), (0, 0, 0), name)], (pose.x, pose.y, half), pose.yaw)
            self._client.changeDynamics(body, -1, lateralFriction=0.9)
            return body
        if name == "bowl":
            return self._bowl(pose)
        if name == "zone":
            boxes: list[Box] = [((ZONE_SIZE, ZONE_SIZE, 0.002), (0, 0, 0.001), "zone")]
            return self._body(0, boxes, (pose.x, pose.y, 0), pose.yaw, collides=False)
        return self._cabinet(pose)

    def _body(
        self, mass: float, boxes: list[Box], position: Vector = (0, 0, 0), yaw: float = 0.0, collides: bool = True
    ) -> int:
        """A rigid body of boxes (size, centre, colour)."""
        visual, collision = self._shapes(boxes, collides)
        orientation = self._client.getQuaternionFromEuler([0, 0, yaw])
        return self._client.createMultiBody(mass, collision, visual, position, orientation)

    def _shapes(self, boxes: list[Box], collides: bool = True, yaws: list[float] | None = None) -> tuple[int, int]:
        """A compound's visual and collision shape (-1 without); `yaws` turn the boxes about their own centres."""
        turns = [self._client.getQuaternionFromEuler([0, 0, yaw]) for yaw in yaws or [0.0] * len(boxes)]
        shape = {
            "shapeTypes": [pybullet.GEOM_BOX] * len(boxes),
            "halfExtents": [[side / 2 for side in size] for size, _, _ in boxes],
        }
        visual = self._client.createVisualShapeArray(
            **shape,
            rgbaColors=[_COLOURS[colour] for _, _, colour in boxes],
            visualFramePositions=[centre for _, centre, _ in boxes],
            visualFrameOrientations=turns,
        )
        if not collides:
            return visual, -1
        collision = self._client.createCollisionShapeArray(
            **shape, collisionFramePositions=[centre for _, centre, _ in boxes], collisionFrameOrientations=turns
        )
        return visual, collision

    def _bowl(self, pose: Pose) -> int:
        """Eight walls and a floor, concave yet made of boxes; too heavy to move, because its contacts with the table cost most."""
        radius, width = BOWL_RADIUS, 2 * BOWL_RADIUS * math.tan(math.pi / 8) + 0.006
        yaws = [i * math.pi / 4 for i in range(8)]
        walls: list[Box] = [
            ((0.006, width, BOWL_HEIGHT), (radius * math.cos(yaw), radius * math.sin(yaw), BOWL_HEIGHT / 2), "bowl")
            for yaw in yaws
        ]
        floor: list[Box] = [((2 * radius, width, BOWL_FLOOR), (0, 0, BOWL_FLOOR / 2), "bowl")]
        visual, _ = self._shapes(walls + floor * 4, collides=False, yaws=yaws + yaws[:4])
        plate: list[Box] = [((1.4 * radius, 1.4 * radius, BOWL_FLOOR), (0, 0, BOWL_FLOOR / 2), "bowl")]
        collision = self._shapes(walls + plate, yaws=[*yaws, 0.0])[1]
        turn = self._client.getQuaternionFromEuler([0, 0, pose.yaw])
        return self._client.createMultiBody(0, collision, visual, [pose.x, pose.y, 0], turn)

    def _cabinet(self, pose: Pose) -> int:
        """A fixed cabinet whose drawer slides out towards the robot; the pose is the middle of the front's foot."""
        shell = self._shapes([((0.16, 0.20, 0.10), (0.08, 0, 0.05), "cabinet")])
        knob = HANDLE_REACH - 0.012
        tray: list[Box] = [((0.13, 0.004, 0.05), (knob + 0.08, side * 0.075, -0.005), "front") for side in (1, -1)]
        solid: list[Box] = [
            ((0.012, 0.17, 0.075), (HANDLE_REACH - 0.006, 0, -0.005), "front"),
            ((0.044, 0.012, 0.026), (0, 0, 0), "handle"),
            ((0.008, 0.034, 0.034), (-0.022, 0, 0), "handle"),
            ((0.13, 0.15, 0.004), (knob + 0.08, 0, -0.03), "front"),
            *tray,
        ]
        drawer = self._shapes(solid)
        body = self._client.createMultiBody(
            0,
            shell[1],
            shell[0],
            [pose.x, pose.y, 0],
            self._client.getQuaternionFromEuler([0, 0, pose.yaw]),
            linkMasses=[0.3],
            linkCollisionShapeIndices=[drawer[1]],
            linkVisualShapeIndices=[drawer[0]],
            linkPositions=[[-HANDLE_REACH, 0, HANDLE_HEIGHT]],
            linkOrientations=[[0, 0, 0, 1]],
            linkInertialFramePositions=[[0, 0, 0]],
            linkInertialFrameOrientations=[[0, 0, 0, 1]],
            linkParentIndices=[0],
            linkJointTypes=[pybullet.JOINT_PRISMATIC],
            linkJointAxis=[[-1, 0, 0]],
        )
        self._client.changeDynamics(body, 0, jointLowerLimit=0.0, jointUpperLimit=DRAWER_TRAVEL, lateralFriction=0.8)
        # A velocity motor with a small force is dry friction: the drawer stays where it is left.
        self._client.setJointMotorControl2(body, 0, pybullet.VELOCITY_CONTROL, targetVelocity=0, force=1.0)
        return body

    def settle(self) -> None:
        """Let everything come to rest, then put the blocks to sleep: until touched they cost no contact solving."""
        self.arm.move(None, 1.0, SUBSTEPS)
        sleep = pybullet.ACTIVATION_STATE_ENABLE_SLEEPING | pybullet.ACTIVATION_STATE_SLEEP
        for name, body in self.bodies.items():
            if name in BLOCKS:
                self._client.changeDynamics(body, -1, activationState=sleep)

    # ---- questions about the physical state

    def position(self, name: str) -> np.ndarray:
        """World position [3]: a block's or bowl's centre, the zone's middle, the drawer's handle. Metres."""
        if name == "drawer":
            return np.array(self._client.getLinkState(self.bodies[name], 0, computeForwardKinematics=True)[4])
        return np.array(self._client.getBasePositionAndOrientation(self.bodies[name])[0])

    def rotation(self, name: str) -> np.ndarray:
        """World orientation [3,3]."""
        quaternion = self._client.getBasePositionAndOrientation(self.bodies[name])[1]
        return np.array(self._client.getMatrixFromQuaternion(quaternion)).reshape(3, 3)

    def yaw(self, name: str) -> float:
        """Heading about the vertical, radians; for a tipped block, of whichever side lies most nearly level."""
        rotation = self.rotation(name)
        side = int(np.argmin(np.abs(rotation[2]))) if name in BLOCKS else 0
        return math.atan2(rotation[1, side], rotation[0, side])

    def speed(self, name: str) -> float:
        """Linear speed in m/s; of the sliding joint for the drawer."""
        if name == "drawer":
            return abs(self._client.getJointState(self.bodies[name], 0)[1])
        return math.hypot(*self._client.getBaseVelocity(self.bodies[name])[0])

    def drawer_opening(self) -> float:
        """How far the drawer is out, metres; 0 without a drawer."""
        return self._client.getJointState(self.bodies["drawer"], 0)[0] if "drawer" in self.bodies else 0.0

    def fingers_on(self, name: str) -> int:
        """How many fingers (0-2) press on an object."""
        contacts = self._client.getContactPoints(self.arm.body, self.bodies[name])
        return len({contact[3] for contact in contacts if contact[3] in (LEFT_FINGER, RIGHT_FINGER) and contact[8] < 0.001})

    def touching(self, name: str, other: str) -> bool:
        """Whether two objects ("table" is one too) are in contact."""
        second = self._table if other == "table" else self.bodies[other]
        return any(contact[8] < 0.001 for contact in self._client.getContactPoints(self.bodies[name], second))

    # ---- cameras

    def image(self, camera: str, height: int, width: int) -> np.ndarray:
        """Render "primary" (fixed, over the robot's shoulder) or "wrist": uint8 [height,width,3]."""
        if camera == "primary":
            view, fov = pybullet.computeViewMatrix((0.03, -0.48, 0.45), (0.275, -0.01, 0.085), (0, 0, 1)), 52
        else:
            tool, rotation = self.arm.tool_pose()
            forward, down = rotation[:, 0], -rotation[:, 2]
            eye, target = tool - 0.075 * down - 0.085 * forward, tool + 0.02 * down + 0.01 * forward
            view, fov = pybullet.computeViewMatrix(eye.tolist(), target.tolist(), forward.tolist()), 70
        projection = pybullet.computeProjectionMatrixFOV(fov, width / height, 0.02, 20.0)
        image = self._client.getCameraImage(
            width,
            height,
            view,
            projection,
            lightDirection=[-0.4, -0.7, 1.6],
            lightColor=[1, 1, 1],
            lightAmbientCoeff=0.62,
            lightDiffuseCoeff=0.5,
            lightSpecularCoeff=0.04,
            shadow=0,
            flags=pybullet.ER_NO_SEGMENTATION_MASK,
            renderer=pybullet.ER_TINY_RENDERER,
        )[2]
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).reshape(height, width, 4)[:, :, :3])
