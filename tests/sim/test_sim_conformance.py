"""The environment suite over every registered simulator task."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import pytest
from environment_conformance import EnvironmentConformance
from gymnasium.utils.env_checker import check_env

from sim import SUITES


@pytest.mark.parametrize("env_id", [env_id for suite in ("tabletop", "robosuite") for env_id in SUITES[suite].tasks.values()])
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
