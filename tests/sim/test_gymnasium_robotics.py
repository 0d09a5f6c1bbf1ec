"""Somebody else's environments as a suite: they are found by `module:suite`, and keep every promise."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from environment_conformance import EnvironmentConformance

import sim
from data.errors import InputError


def test_a_module_brings_its_suite() -> None:
    ids = sim.environment_ids("sim.gymnasium_robotics:fetch")
    assert len(ids) == 4
    assert all(env_id.startswith("sim.gymnasium_robotics:Fetch") for env_id in ids)  # so that another process can make it
    assert sim.environment_ids("sim.gymnasium_robotics:fetch/push")[0] in ids
    suite = sim.suite_of(ids[0])
    assert suite is not None
    assert suite.name == "fetch"
    env = gym.make(ids[0])
    with pytest.raises(InputError, match="nobody demonstrates"):
        sim.make_expert(ids[0], env)
    env.close()


@pytest.mark.parametrize(
    "env_id",
    [sim.environment_ids(f"sim.gymnasium_robotics:{name}")[0] for name in ("fetch/reach", "fetch/push", "adroit/door")],
)
class TestRobotics(EnvironmentConformance):
    @pytest.fixture(autouse=True)
    def _remember(self, env_id: str) -> None:
        self.env_id = env_id

    def make(self, **kwargs: Any) -> gym.Env:
        return gym.make(self.env_id, **kwargs)
