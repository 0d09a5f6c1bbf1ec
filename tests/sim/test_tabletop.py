"""What is particular to the PyBullet family: the arm's kinematics, the state's slots, predicates, independence, speed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from environment_conformance import random_actions, rollout

from sim.bench import bench
from sim.rotations import rotation_from_rpy, rpy_from_rotation
from sim.tabletop import TABLETOP
from sim.tabletop.arm import POINTING_DOWN, Arm, inverse_kinematics
from sim.tabletop.client import PhysicsClient
from sim.tabletop.environment import STATE_NAMES
from sim.tabletop.expert import Expert
from sim.tabletop.tasks import TASK_TABLE


def test_nothing_is_printed_on_standard_output() -> None:
    """The command line's output may be a program's input, and PyBullet is talkative."""
    script = "import gymnasium, sim; env = gymnasium.make('Tabletop-Lift-v0'); env.reset(); env.close()"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == ""


def test_inverse_kinematics_is_exact() -> None:
    client = PhysicsClient()
    arm, rng, solved = Arm(client), np.random.default_rng(0), 0
    for _ in range(200):
        position = rng.uniform([0.18, -0.2, 0.012], [0.40, 0.2, 0.2])
        rotation = rotation_from_rpy(*rng.uniform([-0.2, -0.2, -1.5], [0.2, 0.2, 1.5]))
        if inverse_kinematics(position, rotation, Arm.HOME) is not None:
            solved += 1
            arm.place(position, rotation)
            measured, orientation = arm.tool_pose()
            np.testing.assert_allclose(measured, position, atol=1e-4)
            np.testing.assert_allclose(orientation, rotation, atol=1e-3)
    assert solved > 190
    assert inverse_kinematics(np.array([1.0, 0.0, 0.1]), np.eye(3), Arm.HOME) is None
    client.close()


def test_rpy_round_trip() -> None:
    for angles in np.random.default_rng(0).uniform(-1.4, 1.4, (50, 3)):
        np.testing.assert_allclose(rpy_from_rotation(rotation_from_rpy(*angles)), angles, atol=1e-9)
    np.testing.assert_allclose(POINTING_DOWN[:, 0], [0, 0, -1])  # the hand's own forward axis looks down


@pytest.mark.parametrize("env_id", list(TABLETOP.tasks.values()))
def test_state_has_one_layout_for_all_tasks(env_id: str) -> None:
    env = gym.make(env_id, cameras=())
    observation, _ = env.reset(seed=0)
    layout = env.unwrapped.layout  # type: ignore[attr-defined]
    state = dict(zip(STATE_NAMES, observation["state"].tolist(), strict=True))
    present = {key.split(":")[0] for key, value in state.items() if key.endswith("present") and value == 1.0}
    assert len(present) == len(layout.poses)
    target = env.unwrapped.scene.position(layout.target)  # type: ignore[attr-defined]
    np.testing.assert_allclose([state[f"target: {axis}"] for axis in "xyz"], target, atol=1e-6)
    if layout.goal != layout.target:
        goal = env.unwrapped.scene.position(layout.goal)  # type: ignore[attr-defined]
        np.testing.assert_allclose([state[f"second from target {axis}"] for axis in "xyz"], goal - target, atol=1e-6)
    for name in present:
        relative = [state[f"{name}: from tool {axis}"] for axis in "xyz"]
        absolute = [state[f"{name}: {axis}"] for axis in "xyz"]
        np.testing.assert_allclose(absolute, observation["proprio"][:3] + relative, atol=1e-6)
    assert not any(value for key, value in state.items() if ":" in key and key.split(":")[0] not in present)
    env.close()


def test_instructions_name_what_lies_there() -> None:
    words = set()
    for task in TASK_TABLE.values():
        rng = np.random.default_rng(0)
        for _ in range(60):
            layout = task.layout(task, rng)
            words.add(layout.instruction)
            assert layout.target in layout.instruction
            assert {layout.target, layout.goal} <= set(layout.poses)
    assert 20 <= len(words) <= 40


def test_the_instruction_decides_which_block_counts() -> None:
    """A motion that touched the block that was meant is no success once the other block is meant."""
    env = gym.make("Tabletop-Reach-v0", cameras=())
    env.reset(seed=0)
    expert, actions, success = Expert(env, seed=0), [], False
    while not success:
        actions.append(expert.act())
        success = env.step(actions[-1])[4]["success"]
    env.reset(seed=0)
    meant = env.unwrapped.layout  # type: ignore[attr-defined]
    env.unwrapped.layout = replace(meant, target=meant.goal, goal=meant.target)  # type: ignore[attr-defined]
    assert not any(env.step(action)[4]["success"] for action in actions)
    env.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_held_block_stays_held(seed: int) -> None:
    """The grip holds by friction through fast random motion, turns included, and keeps the block in its middle."""
    env = gym.make("Tabletop-Lift-v0", cameras=())
    env.reset(seed=seed)
    scene, layout = env.unwrapped.scene, env.unwrapped.layout  # type: ignore[attr-defined]
    expert, done = Expert(env, seed=seed), False
    while not done:
        done = env.step(expert.act())[2]
    for action in random_actions(env, 30):
        action[2] = 0.04 if scene.arm.tool_pose()[0][2] < 0.15 else -0.04
        action[6] = 0.0
        env.step(action)
    tool, rotation = scene.arm.tool_pose()
    assert scene.fingers_on(layout.target) == 2
    assert abs(rotation.T @ (scene.position(layout.target) - tool))[1] < 0.004
    env.close()


def test_a_wrist_singularity_does_not_fling_the_arm() -> None:
    """Tilting on and on ends in refusals, not in a wrist that turns over within one step."""
    env = gym.make("Tabletop-Lift-v0", cameras=())
    before = env.reset(seed=0)[0]["proprio"]
    for _ in range(25):
        after = env.step(np.array([0, 0, 0, 0.25, -0.25, 0, 1], np.float32))[0]["proprio"]
        assert np.abs(after[:3] - before[:3]).max() < 0.03
        before = after
    env.close()


def test_pushing_against_the_table_does_not_wind_up() -> None:
    env = gym.make("Tabletop-Lift-v0", cameras=())
    env.reset(seed=0)
    down = np.array([0, 0, -0.05, 0, 0, 0, 0], np.float32)
    for _ in range(10):
        low = env.step(down)[0]["proprio"][2]
    assert env.step(-down)[0]["proprio"][2] > low + 0.03
    env.close()


def test_dozens_of_environments_in_one_process() -> None:
    envs = [gym.make("Tabletop-Push-v0", cameras=()) for _ in range(40)]
    for env in envs:
        env.reset(seed=5)
    finals = [rollout(env, 6, random_actions(env, 2))[-1]["state"] for env in envs]
    for env in envs:
        env.close()
    assert all(np.array_equal(finals[0], final) for final in finals)


def test_options_and_unknown_names() -> None:
    env = gym.make("Tabletop-Lift-v0", image_size=(48, 64), cameras=("wrist",))
    observation, _ = env.reset(seed=0)
    assert observation["image_wrist"].shape == (48, 64, 3)
    assert "image_primary" not in observation
    env.close()
    with pytest.raises(ValueError, match="unknown cameras"):
        gym.make("Tabletop-Lift-v0", cameras=("side",))
    with pytest.raises(gym.error.NameNotFound):
        gym.make("Tabletop-Juggle-v0")


def test_bench_measures_something() -> None:
    assert min(bench(seconds=0.6).values()) > 10
