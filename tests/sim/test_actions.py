"""What an action means is the same in all our suites: motions in the base frame, and a gripper whose opening is absolute."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from sim.actions import ACTION_HIGH
from sim.robosuite import ROBOSUITE
from sim.rotations import rotation_from_rpy, rpy_from_rotation
from sim.tabletop import TABLETOP


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize(
    ("env_id", "share", "metres", "radians"),
    [
        (TABLETOP.tasks["lift"], 0.6, 8e-3, 8e-3),
        (ROBOSUITE.tasks["lift"], 0.3, 5e-3, 2e-2),  # the wrist's joints have friction
    ],
)
def test_an_action_moves_the_tool_by_itself(env_id: str, share: float, metres: float, radians: float, axis: int) -> None:
    """0.2 s later proprio has changed by what was asked, in the base frame, and by nothing else."""
    env = gym.make(env_id, cameras=())
    before = env.reset(seed=0)[0]["proprio"]
    action = np.zeros(7, np.float32)
    action[axis], action[6] = share * ACTION_HIGH[axis], 1.0
    after = env.step(action)[0]["proprio"]
    np.testing.assert_allclose((after - before)[:3], action[:3], atol=metres)
    # Roll and pitch are about the base frame's axes, rpy about the turned tool's: compare rotations.
    turn = rotation_from_rpy(*after[3:6]) @ rotation_from_rpy(*before[3:6]).T
    np.testing.assert_allclose(rpy_from_rotation(turn), action[3:6], atol=radians)
    env.close()


@pytest.mark.parametrize(("env_id", "steps", "slack"), [(TABLETOP.tasks["lift"], 3, 0.03), (ROBOSUITE.tasks["lift"], 4, 0.05)])
def test_the_gripper_is_absolute_and_one_is_open(env_id: str, steps: int, slack: float) -> None:
    env = gym.make(env_id, cameras=())
    env.reset(seed=0)
    for opening in (0.0, 0.5, 1.0):
        for _ in range(steps):
            observation = env.step(np.array([0, 0, 0, 0, 0, 0, opening], np.float32))[0]
        assert observation["proprio"][6] == pytest.approx(opening, abs=slack)
    env.close()
