"""What is particular to the robosuite family: its controller is robosuite's, its reach, and nothing is imported early."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from demonstrations import demonstrate

from sim.robosuite import ROBOSUITE
from sim.robosuite.environment import STATE_NAMES, within_reach
from sim.rotations import rotation_from_vector, vector_from_rotation


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_it_is_imported_late_and_quietly() -> None:
    make = "import sys, gymnasium, sim; assert 'robosuite' not in sys.modules and 'mujoco' not in sys.modules; "
    done = run(make + "env = gymnasium.make('Robosuite-Lift-v0', image_size=16); env.reset(); env.close()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_extra_one_line_says_what_to_install() -> None:
    script = "import sys; sys.modules['robosuite'] = None; import gymnasium, sim; gymnasium.make('Robosuite-Lift-v0')"
    last = run(script).stderr.strip().splitlines()[-1]
    assert last.startswith("data.errors.InputError")
    assert "pip install 'robot-rl[robosuite]'" in last


def test_the_controller_is_robosuites() -> None:
    """At rest and in motion its torques are those of robosuite's own OSC_POSE with the same gains."""
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    from sim.robosuite.controller import STIFFNESS, OperationalSpaceController

    config = load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"] |= {
        "kp": STIFFNESS,
        "uncouple_pos_ori": False,
        "input_type": "absolute",
        "input_ref_frame": "world",
    }
    env = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=config,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        seed=0,
    )
    env.reset()
    theirs, rng = env.robots[0].part_controllers["right"], np.random.default_rng(0)
    model, data = env.sim.model._model, env.sim.data._data
    ours = OperationalSpaceController(model, data, model.site("gripper0_right_grip_site").id, theirs.initial_joint)
    for _ in range(5):
        data.qvel[:7] = rng.normal(0, 0.3, 7)
        env.sim.forward()
        position = theirs.ref_pos + rng.normal(0, 0.02, 3)
        turn = rng.normal(0, 0.1, 3)
        theirs.update(force=True)
        rotation = rotation_from_vector(turn) @ theirs.ref_ori_mat
        theirs.set_goal(np.concatenate([position, vector_from_rotation(rotation)]))
        theirs.goal_ori = rotation
        expected = np.clip(theirs.run_controller(), *theirs.actuator_limits)
        np.testing.assert_allclose(ours.torques(position, rotation, np.zeros(6)), expected, atol=1e-6)
    env.close()


def test_pushing_on_and_on_stays_in_reach_and_does_not_wind_up() -> None:
    env = gym.make("Robosuite-Lift-v0", cameras=())
    env.reset(seed=0)
    for _ in range(16):
        far = env.step(np.array([0.05, 0, 0, 0, 0, 0, 1], np.float32))[0]["proprio"]
    assert np.linalg.norm(far[:3] - within_reach(far[:3].astype(float))) < 0.01
    assert env.step(np.array([-0.05, 0, 0, 0, 0, 0, 1], np.float32))[0]["proprio"][0] < far[0] - 0.03
    env.close()


@pytest.mark.parametrize("env_id", list(ROBOSUITE.tasks.values()))
def test_state_has_one_layout_for_all_tasks(env_id: str) -> None:
    env = gym.make(env_id, cameras=())
    words = set()
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        words.add(observation["instruction"])
        state = dict(zip(STATE_NAMES, observation["state"].tolist(), strict=True))
        task = env.unwrapped  # type: ignore[assignment]
        target = task.world.position(task.target)  # type: ignore[attr-defined]
        np.testing.assert_allclose([state[f"target: {axis}"] for axis in "xyz"], target, atol=1e-6)
        assert state["goal: present"] == float(bool(task.goal))  # type: ignore[attr-defined]
    assert len(words) > 1
    env.close()


@pytest.mark.parametrize("env_id", list(ROBOSUITE.tasks.values()))
def test_clean_demonstrations_succeed(env_id: str) -> None:
    assert demonstrate(env_id, 1.0, 4)[0] >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("env_id", list(ROBOSUITE.tasks.values()))
def test_quality_orders_success(env_id: str) -> None:
    clean, middling, poor = (demonstrate(env_id, quality, 50)[0] for quality in (1.0, 0.5, 0.0))
    assert clean >= 0.9
    assert clean > middling > poor
    assert 0 < poor < 0.5  # mostly fails
