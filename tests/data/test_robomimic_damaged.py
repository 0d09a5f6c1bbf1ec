"""robomimic's files, damaged: a bad file or episode is named in a line, and the others come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.episode import Episode
from data.errors import InputError
from data.quality.check import check
from data.source import open_dataset
from tests.data import robomimic_files as files
from tests.data.reading import fails, read


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_file_of_a_folder_is_left_out_alone(tmp_path: Path, content: bytes | None) -> None:
    for name in ("a.hdf5", "b.hdf5", "c.hdf5"):
        files.write(tmp_path / name, 3, files.env_args())
    damaged = tmp_path / "b.hdf5"
    damaged.write_bytes(damaged.read_bytes()[:5000] if content is None else content)
    source = open_dataset(tmp_path)
    items = list(source.read(range(source.length)))
    assert [isinstance(item, Episode) for item in items] == [True] * 3 + [False] + [True] * 3
    for part in (str(damaged), "not a readable HDF5 file", "--skip-bad"):
        assert part in str(items[3])
    (finding,) = (finding for finding in check(source) if finding.fault == "unusable-episode")
    assert "b.hdf5" in str(finding)
    for name in ("a.hdf5", "c.hdf5"):
        (tmp_path / name).write_bytes(b"")
    fails(lambda: open_dataset(tmp_path), "none of its 3 files can be read", "a.hdf5: not a readable HDF5 file")


@pytest.mark.parametrize("known", [True, False])
def test_demonstrations_of_other_sizes_are_named_and_left_out(tmp_path: Path, known: bool) -> None:
    file = files.write(tmp_path / "mixed.hdf5", 6, files.env_args(*([] if known else [None])))
    with h5py.File(file, "a") as opened:
        for number, name, width in ((2, "actions", 6), (3, "obs/object", 11), (4, "next_obs/robot0_eef_pos", 2)):
            demo = opened[f"data/demo_{number}"]
            del demo[name]
            demo[name] = np.zeros((4 + number, width))
    items = read(file)
    assert [number for number, item in enumerate(items) if isinstance(item, InputError)] == [2, 3, 4]
    for item, name in zip(items[2:5], ("actions is [6]", "obs/object is [11]", "next_obs/robot0_eef_pos is [2]"), strict=True):
        assert f"{name} a step" in str(item)
        assert "(mixed.hdf5 demo_" in str(item)
        assert str(item).endswith("drop it with --skip-bad")


def _remove_observation(demo: h5py.Group) -> None:
    del demo["obs/agentview_image"]


def _ragged(demo: h5py.Group) -> None:
    value = demo["obs/object"][:-1]
    del demo["obs/object"]
    demo["obs/object"] = value


def _ragged_next(demo: h5py.Group) -> None:
    del demo["next_obs/robot0_eef_pos"]


def _short_rewards(demo: h5py.Group) -> None:
    del demo["rewards"]
    demo["rewards"] = [0.0]


def _not_a_number(demo: h5py.Group) -> None:
    demo["actions"][2, 1] = np.nan


def _text_actions(demo: h5py.Group) -> None:
    count = len(demo["actions"])
    del demo["actions"]
    demo["actions"] = np.array([[b"a"] * 7] * count)


def _float_images(demo: h5py.Group) -> None:
    for group in ("obs", "next_obs"):
        values = demo[f"{group}/agentview_image"][:] / 255.0
        del demo[f"{group}/agentview_image"]
        demo[f"{group}/agentview_image"] = values


def _declared_longer(demo: h5py.Group) -> None:
    demo.attrs["num_samples"] = 99


def _empty(demo: h5py.Group) -> None:
    for name in list(demo):
        del demo[name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_observation, "no 'obs/agentview_image'"),
        (_ragged, "obs/object has 6 steps, actions 7"),
        (_ragged_next, "no 'next_obs/robot0_eef_pos'"),
        (_short_rewards, "rewards has 1 steps, actions 7"),
        (_not_a_number, "action is not finite at step 2"),
        (_text_actions, "actions is of |S1, not numbers"),
        (_float_images, "image_primary is float64"),
        (_declared_longer, "has 7 actions, its num_samples says 99"),
        (_empty, "no 'actions'"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_come(robomimic_file: Path, damage: Callable[[Any], None], message: str) -> None:
    with h5py.File(robomimic_file, "a") as opened:
        damage(opened["data/demo_3"])
    episodes = read(robomimic_file)
    assert [number for number, item in enumerate(episodes) if isinstance(item, InputError)] == [3]
    assert message in str(episodes[3])
    assert "square train #3 (square.hdf5 demo_3)" in str(episodes[3])
    assert "\n" not in str(episodes[3])


def test_a_corrupt_chunk_is_named(robomimic_file: Path) -> None:
    with h5py.File(robomimic_file) as opened:
        chunk = opened["data/demo_5/obs/agentview_image"].id.get_chunk_info(0)
    content = bytearray(robomimic_file.read_bytes())
    content[chunk.byte_offset + 2 : chunk.byte_offset + 60] = bytes(58)
    robomimic_file.write_bytes(content)
    episodes = read(robomimic_file)
    assert [number for number, item in enumerate(episodes) if isinstance(item, InputError)] == [5]
    assert "demo_5): obs/agentview_image cannot be read" in str(episodes[5])


def test_a_mask_may_name_what_is_not_there(tmp_path: Path) -> None:
    file = files.write(tmp_path / "a.hdf5", 3, files.env_args(), masks={"valid": ["demo_1", "demo_7"]})
    first, second = read(file, "valid")
    assert isinstance(first, Episode)
    assert str(second).startswith("a valid #1 (a.hdf5 demo_7): the mask 'valid' names it, but it is not in the file")


def test_files_that_are_none(tmp_path: Path, robomimic_file: Path) -> None:
    content = robomimic_file.read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(content[: len(content) // 2])
    fails(lambda: open_dataset(tmp_path / "cut.hdf5"), "cut.hdf5: not a readable HDF5 file", "truncated", "copy it again")
    (tmp_path / "text.hdf5").write_text("hello")
    fails(lambda: open_dataset(tmp_path / "text.hdf5"), "text.hdf5: not a readable HDF5 file")
    with h5py.File(tmp_path / "aloha.hdf5", "w") as opened:
        opened["action"], opened["observations/qpos"] = np.zeros((5, 14)), np.zeros((5, 14))
    fails(lambda: open_dataset(tmp_path / "aloha.hdf5"), "no episodes under `data` (action, observations)")
    with h5py.File(tmp_path / "states.hdf5", "w") as opened:
        opened["data/demo_1/actions"], opened["data/demo_1/states"] = np.zeros((5, 7)), np.zeros((5, 32))
    fails(lambda: open_dataset(tmp_path / "states.hdf5"), "dataset_states_to_obs.py")
    fails(lambda: open_dataset(robomimic_file, "test"), "no split 'test'")
    with h5py.File(robomimic_file, "a") as opened:
        opened["data"].attrs["env_args"] = "{"
    fails(lambda: open_dataset(robomimic_file), "attribute env_args is not valid JSON")
