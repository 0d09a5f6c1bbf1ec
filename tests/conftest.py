"""What several test packages need: a small synthetic store, made by the real converter."""

from __future__ import annotations

import os
import signal

# A shell starts what it runs in the background deaf to Ctrl-C, and so would the processes be that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Set before anything imports a numerical library: the machines are small and often busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# And before another library imports MuJoCo, as `sim` does.
os.environ.setdefault("MUJOCO_GL", "egl")

from pathlib import Path

import numpy as np
import pytest
import torch

from data.episode import Episode
from data.language import LanguageEncoder
from data.source import EpisodeList
from data.store.conversion import convert
from data.store.store import Store

ACTION = {
    "names": ["x", "y", "gripper"],
    "units": ["m", "m", "1"],
    "low": [-0.05, -0.05, 0.0],
    "high": [0.05, 0.05, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 5.0,
}
INSTRUCTIONS = ("go left", "go right")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    return


def make_episodes(count: int, seed: int = 0) -> list[Episode]:
    """Episodes that move left or right as told; each third one moves the other way and fails."""
    rng = np.random.default_rng(seed)
    embeddings = np.eye(8, dtype=np.float32)
    episodes = []
    for index in range(count):
        length, side, success = int(rng.integers(5, 12)), index % 2, index % 3 != 0
        actions = rng.normal(0, 0.005, (length, 3)).astype(np.float32)
        actions[:, 0] += 0.03 * (1 if side == int(success) else -1)
        actions[:, 2] = rng.integers(0, 2, length)
        position = np.concatenate([np.zeros((1, 2)), np.cumsum(actions[:, :2], axis=0)]).astype(np.float32)
        episodes.append(
            Episode(
                observations={
                    "state": np.concatenate([position, rng.normal(size=(length + 1, 2))], axis=1).astype(np.float32),
                    "proprio": position,
                    "image_primary": rng.integers(0, 256, (length + 1, 16, 16, 3), dtype=np.uint8),
                },
                actions=actions,
                instruction=INSTRUCTIONS[side],
                success=success,
                source=f"synthetic #{index}",
                instruction_embedding=embeddings[side],
            )
        )
    return episodes


def make_store(folder: Path, action: dict = ACTION, count: int = 24) -> Store:
    return convert(EpisodeList("synthetic", action, make_episodes(count)), folder, language=LanguageEncoder("dataset")).store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "store")
