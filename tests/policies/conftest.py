"""Checkpoints in the layouts of others that several test files open: each is written once, as is the policy read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.lerobot import LeRobotPolicy
from policies.octo import OctoPolicy
from policies.openvla import OpenVLAPolicy
from tests.policies import foreign_checkpoints, octo_checkpoints, openvla_checkpoint


@pytest.fixture(scope="session")
def octo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return octo_checkpoints.write(tmp_path_factory.mktemp("octo") / "checkpoint")


@pytest.fixture(scope="session")
def octo(octo_folder: Path) -> OctoPolicy:
    return OctoPolicy.load(octo_folder)


@pytest.fixture(scope="session")
def openvla_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openvla_checkpoint.openvla(tmp_path_factory.mktemp("openvla"))


@pytest.fixture(scope="session")
def openvla(openvla_folder: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(openvla_folder)


@pytest.fixture(scope="session")
def oft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openvla_checkpoint.oft(tmp_path_factory.mktemp("oft"))


@pytest.fixture(scope="session")
def lerobot_diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_checkpoints.lerobot(tmp_path_factory.mktemp("lerobot") / "diffusion", foreign_checkpoints.DIFFUSION)


@pytest.fixture(scope="session")
def lerobot_act_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_checkpoints.lerobot(tmp_path_factory.mktemp("lerobot") / "act", foreign_checkpoints.ACT, environment=2)


@pytest.fixture(scope="session")
def lerobot_diffusion(lerobot_diffusion_folder: Path) -> LeRobotPolicy:
    return LeRobotPolicy.load(lerobot_diffusion_folder)


@pytest.fixture(scope="session")
def lerobot_act(lerobot_act_folder: Path) -> LeRobotPolicy:
    return LeRobotPolicy.load(lerobot_act_folder)
