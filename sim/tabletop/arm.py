"""The arm: closed-form kinematics of a WidowX-250-class robot, and position control of its joints and gripper.

The three wrist axes meet in one point, so inverse kinematics is exact algebra: no iterations, no hidden solver state, the same
answer in every process. The tool frame is Bridge's: roll = pitch = yaw = 0 is the gripper pointing straight down with its
fingers closing along the base frame's y axis.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sim.rotations import rotation_from_rpy
from sim.tabletop.client import PhysicsClient, pybullet

URDF = Path(__file__).parent / "assets" / "widowx.urdf"

SHOULDER_HEIGHT = 0.11065
UPPER_ARM = (0.04975, 0.25)  # the elbow seen from the shoulder (forward, up) when the upper arm is upright
FOREARM = 0.25
TOOL = 0.065 + 0.1364  # from the wrist's centre to the point between the fingertips
JOINT_LOW = np.array([-3.14159, -1.8849, -2.1467, -3.14159, -1.7453, -3.14159])
JOINT_HIGH = np.array([3.14159, 1.9896, 1.6057, 3.14159, 2.1468, 3.14159])
JOINT_FORCE = [20.0, 30.0, 25.0, 10.0, 10.0, 6.0]
JOINT_GAIN = [0.3] * 6
JOINT_STEP = 0.8  # radians a control step: 4 rad/s, a little over the real joints' 3.1

FINGER_CLOSED, FINGER_OPEN = 0.001, 0.037  # a finger's distance from the middle, metres
# Each finger is a spring towards its commanded place, not a velocity motor: two motors that saturate leave a held block free to
# wander sideways, and 5 mm deep in a finger, as the contact solver converges slowly against them.
GRIP_STIFFNESS, GRIP_DAMPING, GRIP_LIMIT = 400.0, 8.0, 10.0  # N/m (8 N on a 4 cm block), N s/m, N

POINTING_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
HAND_LINK, LEFT_FINGER, RIGHT_FINGER = 5, 6, 7
ARM_JOINTS, FINGERS = list(range(6)), [LEFT_FINGER, RIGHT_FINGER]


def inverse_kinematics(position: np.ndarray, rotation: np.ndarray, near: np.ndarray) -> np.ndarray | None:
    """The six joint angles, elbow up and wrist nearest to `near` [6], that put the tool there; None when out of reach.

    position: tool xyz [3] in the base frame, metres. rotation: Bridge's tool orientation [3,3] (identity points down).
    """
    tool = rotation @ POINTING_DOWN
    x, y, z = (float(v) for v in position - TOOL * tool[:, 0])
    reach, height = math.hypot(x, y), z - SHOULDER_HEIGHT
    upper, distance = math.hypot(*UPPER_ARM), math.hypot(reach, height)
    cosine = (upper**2 + distance**2 - FOREARM**2) / (2 * upper * max(distance, 1e-6))
    if abs(cosine) > 1.0 or reach < 1e-6:
        return None
    waist = math.atan2(y, x)
    upper_angle = math.atan2(height, reach) + math.acos(cosine)
    shoulder = math.atan2(UPPER_ARM[1], UPPER_ARM[0]) - upper_angle
    pitch = -math.atan2(height - upper * math.sin(upper_angle), reach - upper * math.cos(upper_angle))
    wrist = rotation_from_rpy(0.0, pitch, waist).T @ tool  # = Rx(forearm_roll) Ry(wrist_angle) Rx(wrist_rotate)
    bend = math.acos(min(1.0, max(-1.0, wrist[0, 0])))
    best: np.ndarray | None = None
    for sign in (1.0, -1.0):
        roll = math.atan2(sign * wrist[1, 0], -sign * wrist[2, 0])
        rotate = math.atan2(sign * wrist[0, 1], sign * wrist[0, 2])
        joints = np.array([waist, shoulder, pitch - shoulder, roll, sign * bend, rotate])
        if ((joints < JOINT_LOW) | (joints > JOINT_HIGH)).any():
            continue
        if best is None or np.abs(joints - near).max() < np.abs(best - near).max():
            best = joints
    return best


class Arm:
    """The robot in one physics client. Joint targets ramp over a control step, so that 5 Hz commands make smooth motion."""

    HOME = np.array([0.0, -0.5, 0.6, 0.0, 1.4, 0.0])

    def __init__(self, client: PhysicsClient) -> None:
        self._client = client
        self.body = client.loadURDF(str(URDF), useFixedBase=True, flags=pybullet.URDF_MAINTAIN_LINK_ORDER)
        client.setJointMotorControlArray(self.body, FINGERS, pybullet.VELOCITY_CONTROL, forces=[0.0, 0.0])
        for finger in FINGERS:
            client.changeDynamics(self.body, finger, lateralFriction=1.5, frictionAnchor=True)
        self._joints = self.HOME.copy()

    def place(self, position: np.ndarray, rotation: np.ndarray) -> None:
        """Teleport to a tool pose with an open gripper (before an episode). Raises ValueError when it is out of reach."""
        joints = inverse_kinematics(position, rotation, self.HOME)
        if joints is None:
            raise ValueError(f"the arm cannot start at {position}: out of reach")
        self._joints = joints
        for joint, angle in enumerate([*joints, FINGER_OPEN, FINGER_OPEN]):
            self._client.resetJointState(self.body, joint, angle)

    def solve(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray | None:
        """Joint angles [6] for a tool pose; None when it is out of reach, or a joint would have to turn too far in one step (near a
        wrist singularity, where neighbouring poses have distant joint angles).
        """
        joints = inverse_kinematics(position, rotation, self._joints)
        return None if joints is None or np.abs(joints - self._joints).max() > JOINT_STEP else joints

    def move(self, joints: np.ndarray | None, opening: float, substeps: int) -> None:
        """Drive to joint angles [6] (None: stay) and a gripper opening over `substeps` physics steps."""
        start, goal = self._joints, self._joints if joints is None else joints
        finger = FINGER_CLOSED + opening * (FINGER_OPEN - FINGER_CLOSED)
        for substep in range(substeps):
            if substep % 4 == 0:  # the target arrives four substeps early, for the joints to catch up
                angles = start + (goal - start) * min(1.0, (substep + 4) / (substeps - 4))
                self._client.setJointMotorControlArray(
                    self.body,
                    ARM_JOINTS,
                    pybullet.POSITION_CONTROL,
                    targetPositions=angles.tolist(),
                    forces=JOINT_FORCE,
                    positionGains=JOINT_GAIN,
                )
            self._squeeze(finger)
            self._client.stepSimulation()
        self._joints = goal

    def _squeeze(self, finger: float) -> None:
        states = self._client.getJointStates(self.body, FINGERS)
        forces = [GRIP_STIFFNESS * (finger - state[0]) - GRIP_DAMPING * state[1] for state in states]
        limited = [min(GRIP_LIMIT, max(-GRIP_LIMIT, force)) for force in forces]
        self._client.setJointMotorControlArray(self.body, FINGERS, pybullet.TORQUE_CONTROL, forces=limited)

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured tool position [3] and Bridge orientation [3,3] in the base frame."""
        state = self._client.getLinkState(self.body, HAND_LINK, computeForwardKinematics=True)
        link = np.array(self._client.getMatrixFromQuaternion(state[5])).reshape(3, 3)
        return np.array(state[4]) + 0.1364 * link[:, 0], link @ POINTING_DOWN.T

    def opening(self) -> float:
        """Measured gripper opening, 0 closed to 1 open."""
        fingers = self._client.getJointStates(self.body, FINGERS)
        mean = (fingers[0][0] + fingers[1][0]) / 2
        return min(1.0, max(0.0, (mean - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)))
