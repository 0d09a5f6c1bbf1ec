"""Files of every format damaged at random: one line that names the dataset, or nothing at all; never another exception."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import InputError, LeRobotWriter, RldsWriter, RobomimicWriter, open_dataset
from tests.conftest import ACTION, make_episodes
from tests.data import robomimic_files
from tests.data import test_diffusion_policy_zarr as zarr_files

TIMES = 12
PYTHON = ("NoneType", "Errno", "object has no", "object is not", "Error(", "unpack", "Traceback")


def by(writer: Any, name: str = "made", **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with writer(folder / name, ACTION, **options) as out:
            for episode in make_episodes(4):
                out.add(episode)
        return folder / name

    return make


def by_zarr(version: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = zarr_files.write(folder / "made.zarr", version)
        (path / "robot_rl.json").write_text(json.dumps(zarr_files.DESCRIPTION))
        return path

    return make


def zipped(folder: Path) -> Path:
    shutil.copy(by_zarr(2)(folder.parent) / "robot_rl.json", folder / "made.robot_rl.json")
    return zarr_files.pack(folder.parent / "made.zarr", folder / "made.zarr.zip")


FORMATS: dict[str, Callable[[Path], Path]] = {
    "rlds": by(RldsWriter),
    "lerobot": by(LeRobotWriter, image_format="png"),
    "robomimic": by(RobomimicWriter, "made.hdf5"),
    "robosuite": lambda folder: robomimic_files.write(folder / "made.hdf5", 3, robomimic_files.env_args()),
    "zarr 2": by_zarr(2),
    "zarr 3": by_zarr(3),
    "zip": zipped,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_one_line(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    (tmp_path / "whole").mkdir()
    path = FORMATS[kind](tmp_path / "whole")
    for number in range(TIMES):
        copy = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(number)))
        damage(rng, rng.choice(sorted(file for file in copy.rglob("*") if file.is_file())))
        try:
            source = open_dataset(copy / path.name)
            told = [str(item) for item in source.read(range(source.length)) if isinstance(item, InputError)]
            source.gaps()
        except InputError as error:
            told = [str(error)]
        for line in told:
            assert "made" in line
            assert "\n" not in line
            assert not any(word in line for word in PYTHON), line


def damage(rng: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    if file.suffix == ".json" or file.name.startswith(".z"):
        file.write_text(json.dumps(changed(rng, json.loads(data))))
        return
    how = rng.choice(("cut", "bits", "nothing", "gone", "zeros"))
    if how == "bits":
        for _ in range(20):
            data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
    file.write_bytes({"cut": data[: rng.randrange(len(data))], "nothing": b"", "zeros": bytes(len(data))}.get(how, data))
    if how == "gone":
        file.unlink()


def changed(rng: random.Random, value: Any) -> Any:
    """A JSON value in which one is missing, or replaced by an odd one."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice([None, 0, -1, "x", [], {}, [1, 2], True])
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and rng.random() < 0.2:
        return {name: item for name, item in value.items() if name != key}
    value[key] = changed(rng, value[key])
    return value
