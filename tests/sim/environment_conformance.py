"""What every environment promises, as a suite that any of them inherits: subclass it and say how one is made.

class TestMyRobot(EnvironmentConformance):
    def make(self, **kwargs): return MyRobotEnv(**kwargs)
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

Observation = dict[str, Any]


def assert_same(first: Observation, second: Observation) -> None:
    """Equal keys, types and bits."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, str):
            assert value == second[key]
        else:
            assert value.dtype == second[key].dtype
            np.testing.assert_array_equal(value, second[key], err_msg=key)


def differs(first: Observation, second: Observation) -> bool:
    return any(not np.array_equal(value, second[key]) for key, value in first.items())


def random_actions(env: gym.Env, count: int, seed: int = 0) -> np.ndarray:
    """[count, A] float32, uniform within the action bounds."""
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    return np.random.default_rng(seed).uniform(space.low, space.high, (count, *space.shape)).astype(np.float32)


def rollout(env: gym.Env, seed: int, actions: np.ndarray) -> list[Observation]:
    """The observations of a reset and of the actions until the episode ends."""
    observations = [env.reset(seed=seed)[0]]
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        if terminated or truncated:
            break
    return observations


class EnvironmentConformance:
    """Subclasses provide `make(**kwargs)`: a new environment with its time limit."""

    def make(self, **kwargs: Any) -> gym.Env:
        raise NotImplementedError

    def make_blind(self) -> gym.Env:
        """The same without cameras, for tests of whole episodes, where rendering can be left out."""
        return self.make()

    @pytest.fixture
    def env(self):
        env = self.make()
        yield env
        env.close()

    def test_metadata_says_what_an_action_means(self, env: gym.Env) -> None:
        metadata, size = env.unwrapped.metadata, env.action_space.shape[0]  # type: ignore[index]
        assert len(metadata["action_names"]) == len(metadata["action_units"]) == size
        assert metadata["control_hz"] > 0
        assert isinstance(metadata["action_frame"], str)

    def test_observations_lie_in_their_space(self, env: gym.Env) -> None:
        observations = rollout(env, 0, random_actions(env, 5))
        for observation in observations:
            assert env.observation_space.contains(observation)
            assert observation["proprio"].dtype == np.float32
            assert observation["instruction"]
            images = [value for key, value in observation.items() if key.startswith("image_")]
            assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images)

    def test_same_seed_is_the_same_episode_whatever_ran_before(self, env: gym.Env) -> None:
        actions = random_actions(env, 6)
        rollout(env, 1, random_actions(env, 12, seed=1))
        again = rollout(env, 7, actions)
        other = self.make()
        for first, second in zip(again, rollout(other, 7, actions), strict=True):
            assert_same(first, second)
        other.close()

    def test_another_environment_in_between_changes_nothing(self, env: gym.Env) -> None:
        actions = random_actions(env, 5)
        alone = rollout(env, 3, actions)
        other = self.make()
        other.reset(seed=4)
        together = [env.reset(seed=3)[0]]
        for action in actions:
            other.step(action)
            together.append(env.step(action)[0])
        other.close()
        together.append(env.step(actions[0])[0])  # and it lives on when the other is gone
        for first, second in zip(alone, together, strict=False):
            assert_same(first, second)

    def test_seeds_differ(self, env: gym.Env) -> None:
        assert differs(env.reset(seed=0)[0], env.reset(seed=1)[0])

    def test_applied_action_is_reported_and_bounded(self, env: gym.Env) -> None:
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        env.reset(seed=0)
        inside = random_actions(env, 1)[0]
        np.testing.assert_array_equal(env.step(inside)[4]["applied_action"], inside)
        applied = env.step(space.high * 10)[4]["applied_action"]
        assert applied.dtype == np.float32
        assert space.contains(applied)

    def test_a_malformed_action_is_refused(self, env: gym.Env) -> None:
        env.reset(seed=0)
        size = env.action_space.shape[0]  # type: ignore[index]
        for bad in (np.full(size, np.nan), np.full(size, np.inf), np.zeros(size + 1), np.zeros((1, size))):
            with pytest.raises(ValueError, match="action"):
                env.step(bad.astype(np.float32))

    def test_success_is_a_bool_in_every_info(self, env: gym.Env) -> None:
        _, info = env.reset(seed=0)
        assert info["success"] is False
        assert isinstance(env.step(random_actions(env, 1)[0])[4]["success"], bool)

    def test_doing_nothing_never_succeeds_and_ends_at_the_limit(self) -> None:
        env = self.make_blind()
        still = np.zeros(env.action_space.shape, np.float32)  # type: ignore[arg-type]
        for gripper in (0.0, 1.0):
            still[-1] = gripper
            env.reset(seed=int(gripper))
            limit = env.spec.max_episode_steps  # type: ignore[union-attr]
            for step in range(limit):
                _, _, terminated, truncated, info = env.step(still)
                assert not terminated
                assert not info["success"]
                assert truncated == (step == limit - 1)
        env.close()

    def test_images_change_when_the_robot_moves(self, env: gym.Env) -> None:
        first = env.reset(seed=0)[0]
        action = np.zeros(env.action_space.shape, np.float32)  # type: ignore[arg-type]
        action[:3] = env.action_space.high[:3]  # type: ignore[attr-defined]
        for _ in range(3):
            last = env.step(action)[0]
        for key in first:
            if key.startswith("image_"):
                assert (first[key] != last[key]).mean() > 0.005, key

    def test_closing_twice_and_starting_again(self, env: gym.Env) -> None:
        first = env.reset(seed=2)[0]
        env.close()
        env.close()
        assert_same(first, env.reset(seed=2)[0])
