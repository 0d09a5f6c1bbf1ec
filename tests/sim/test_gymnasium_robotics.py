"""Somebody else's environments as a suite: they are found by `module:suite`, and keep every promise."""

from __future__ import annotations

from pathlib import Path
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


def test_a_module_stands_for_all_that_follow_it() -> None:
    ids = sim.environment_ids("tabletop/lift, sim.gymnasium_robotics:fetch/push,fetch/reach")
    assert [env_id.partition(":")[0] for env_id in ids] == ["Tabletop-Lift-v0", *["sim.gymnasium_robotics"] * 2]
    with pytest.raises(InputError, match=r"names .*FetchPush.* twice"):
        sim.environment_ids("sim.gymnasium_robotics:fetch,fetch/push")


@pytest.mark.parametrize(
    "line", ["raise RuntimeError('no licence')", "a b", "raise SystemExit(3)", "import nothing_of_the_kind"]
)
def test_a_module_that_cannot_be_imported_is_named(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_suite.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="cannot import broken_suite"):
        sim.environment_ids("broken_suite:mine")


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
