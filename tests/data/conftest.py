"""The datasets that the tests of `data` run over: a slice of real Bridge, one written by our writer, and stores made of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import Episode, LanguageEncoder, RldsWriter, Store, convert, open_dataset
from tests.data import robomimic_files

BRIDGE = Path(__file__).parents[3] / "shared" / "data" / "bridge_dataset" / "1.0.0"
ACTION = {
    "names": ["x", "y", "z", "gripper"],
    "units": ["m", "m", "m", "open"],
    "low": [-0.1, -0.1, -0.1, 0.0],
    "high": [0.1, 0.1, 0.1, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 10.0,
}


@pytest.fixture(scope="session")
def action() -> dict:
    return ACTION


@pytest.fixture(scope="session")
def bridge() -> Path:
    if not BRIDGE.is_dir():
        pytest.skip(f"the Bridge slice is not there ({BRIDGE})")
    return BRIDGE


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    def make(seed: int, length: int, success: bool | None = True) -> Episode:
        rng = np.random.default_rng(seed)
        actions = rng.normal(0, 0.03, (length, 4)).astype(np.float32)
        actions[:, 3] = rng.integers(0, 2, length)
        embedding = np.zeros(6, np.float32)
        embedding[seed % 2] = 2.0
        return Episode(
            observations={
                "image_primary": rng.integers(0, 256, (length + 1, 12, 16, 3), dtype=np.uint8),
                "image_wrist": rng.integers(0, 256, (length + 1, 8, 8, 3), dtype=np.uint8),
                "proprio": rng.normal(size=(length + 1, 5)).astype(np.float32),
                "state": rng.normal(size=(length + 1, 9)).astype(np.float32),
            },
            actions=actions,
            instruction=("öffne the drawer", "close the drawer")[seed % 2],
            success=success,
            source=f"made #{seed}",
            instruction_embedding=embedding,
            info={"quality": ("clean", "dithering")[seed % 2]},
        )

    return make


@pytest.fixture(scope="session")
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    return [make_episode(seed, 3 + seed % 7, (True, False, None)[seed % 3]) for seed in range(12)]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    """`episodes` in an RLDS folder."""
    out = tmp_path_factory.mktemp("written") / "made_dataset"
    with RldsWriter(out, ACTION) as writer:
        for episode in episodes:
            writer.add(episode)
    return out


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory, written: Path) -> Store:
    return convert(open_dataset(written), tmp_path_factory.mktemp("made") / "store", language=LanguageEncoder("dataset")).store


@pytest.fixture(scope="session")
def bridge_store(tmp_path_factory: pytest.TempPathFactory, bridge: Path) -> Store:
    return convert(open_dataset(bridge), tmp_path_factory.mktemp("bridge") / "store", language=LanguageEncoder("dataset")).store


@pytest.fixture
def robomimic_file(tmp_path: Path) -> Path:
    return robomimic_files.write(tmp_path / "square.hdf5", args=robomimic_files.env_args())
