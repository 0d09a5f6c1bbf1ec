"""The environment suite over every registered simulator task."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import pytest
from environment_conformance import EnvironmentConformance
from gymnasium.utils.env_checker import check_env

from sim import SUITES, make_expert

OURS = ("tabletop", "robosuite")


@pytest.mark.parametrize("env_id", [env_id for suite in OURS for env_id in SUITES[suite].tasks.values()])
class TestSuites(EnvironmentConformance):
    @pytest.fixture(autouse=True)
    def _remember(self, env_id: str) -> None:
        self.env_id = env_id

    def make(self, **kwargs: Any) -> gym.Env:
        return gym.make(self.env_id, **{"image_size": 32, **kwargs})

    def make_blind(self) -> gym.Env:
        return self.make(cameras=())

    def test_gymnasium_accepts_it(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(self.make().unwrapped)


def digest(suite: str) -> str:
    """A hash over every bit, images included, of how an expert begins each task."""
    total = hashlib.sha256()
    for env_id in SUITES[suite].tasks.values():
        env = gym.make(env_id, image_size=32)
        expert = make_expert(env_id, env, 1.0, 3)
        observation, _ = env.reset(seed=11)
        for _ in range(12):
            for key in sorted(observation):
                value = observation[key]
                total.update(value.encode() if isinstance(value, str) else value.tobytes())
            observation = env.step(expert.act())[0]
        env.close()
    return total.hexdigest()


@pytest.mark.parametrize("suite", OURS)
def test_another_process_computes_the_same_bits(suite: str) -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_sim_conformance as t; print('digest', t.digest({suite!r}))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert f"digest {digest(suite)}" in out
