"""robosuite's operational space controller (`OSC_POSE`), with a feed-forward of the goal's velocity.

The law is theirs: kp (goal - x) and critical damping in task space, decoupled in position and orientation, gravity compensated, and
the arm's redundant joint drawn to its rest posture. It is written again because theirs takes six times as long as the physics. With
a velocity of zero the torques are theirs to the last digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.robosuite.engine import mujoco, numba

STIFFNESS = 600.0  # 1/s^2; with robosuite's default of 150 the arm lags by two control steps
REST_STIFFNESS = 10.0


@numba.njit(cache=True)
def _torques(jacobian, mass, qpos, qvel, bias, position_error, rotation, goal_rotation, velocity, rest):  # pragma: no cover
    """[7]: J^T (L_x f_x, L_r f_r) + N^T M (kp (rest - q) - kd q'), against gravity. jacobian, mass: the arm's joints come first."""
    joints = len(rest)
    jacobian, mass = jacobian[:, :joints].copy(), mass[:joints, :joints].copy()
    turn = np.zeros(3)
    for axis in range(3):
        turn += 0.5 * np.cross(rotation[:, axis], goal_rotation[:, axis])
    wrench = 2 * np.sqrt(STIFFNESS) * (velocity - jacobian @ qvel)
    wrench[:3] += STIFFNESS * position_error
    wrench[3:] += STIFFNESS * turn
    inertia = np.linalg.solve(mass, jacobian.T)  # M^-1 J^T
    mobility = jacobian @ inertia
    posture = mass @ (REST_STIFFNESS * (rest - qpos) - 2 * np.sqrt(REST_STIFFNESS) * qvel)
    return jacobian.T @ np.linalg.solve(mobility, wrench - inertia.T @ posture) + posture + bias


class OperationalSpaceController:
    """Torques for the first `len(rest)` joints that move a site to a pose."""

    def __init__(self, model: Any, data: Any, site: int, rest: np.ndarray) -> None:
        """site: id of the site that is moved. rest [7]: the posture that the redundant joint is drawn to, radians."""
        self._model, self._data, self._site, self._rest = model, data, site, rest
        self._jacobian = np.zeros((6, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._low, self._high = model.actuator_ctrlrange[: len(rest)].T
        joints = len(rest)
        self._views = data.qpos[:joints], data.qvel[:joints], data.qfrc_bias[:joints]
        self._pose = data.site_xpos[site], data.site_xmat[site].reshape(3, 3)

    def torques(self, position: np.ndarray, rotation: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """[7], within the motors' limits. position [3], rotation [3,3], velocity [6] (linear, angular): the goal's, in the world."""
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_fullM(self._model, self._mass, self._data.qM)
        at, turned = self._pose
        wanted = _torques(self._jacobian, self._mass, *self._views, position - at, turned, rotation, velocity, self._rest)
        return np.minimum(np.maximum(wanted, self._low), self._high)
