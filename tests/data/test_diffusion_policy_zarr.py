"""diffusion_policy's zarr: folders and zip files in either of zarr's formats, its compressors, float images, and damage."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.episode import Episode
from data.formats import open_format
from data.formats.diffusion_policy import DiffusionPolicyDataset
from data.quality.check import check as check_data
from data.source import open_dataset, read_episodes
from tests.data.reading import fails, read

zarr = pytest.importorskip("zarr", minversion="3")
numcodecs = pytest.importorskip("numcodecs")

ENDS = np.array([10, 25, 50])
_RNG = np.random.default_rng(0)
DATA = {
    "camera_0": _RNG.integers(0, 256, (50, 12, 16, 3), np.uint8),
    # As PushT's: floats from 0 to 255.
    "img": _RNG.integers(0, 256, (50, 8, 8, 3)).astype(np.float32),
    "action": _RNG.normal(size=(50, 2)).astype(np.float32),
    "state": _RNG.normal(size=(50, 5)),
    "timestamp": 100 + np.arange(50) / 10,
}
DESCRIPTION = {
    "action": {"names": ["x", "y"], "units": ["m", "m"], "low": [-3, -3], "high": [3, 3], "frame": "base", "control_hz": 10},
    "observations": {"image_primary": "camera_0", "image_secondary": "img", "proprio": "state[0:2]", "state": "state"},
    "instruction": {"text": "push the T onto its place"},
}
COMPRESSORS = [None, numcodecs.Blosc("zstd", 5, shuffle=2), numcodecs.Zstd(3), numcodecs.LZMA(), numcodecs.GZip(1)]


def write(path: Path, version: int = 2, compressor: Any = None, data: dict[str, np.ndarray] = DATA, ends: Any = ENDS) -> Path:
    root = zarr.open_group(str(path), mode="w", zarr_format=version)
    groups = {"data": root.create_group("data"), "meta": root.create_group("meta")}
    arrays = {f"data/{key}": value for key, value in data.items()} | ({} if ends is None else {"meta/episode_ends": ends})
    for name, value in arrays.items():
        group, _, key = name.partition("/")
        chunks = (7, *value.shape[1:])
        array = groups[group].create_array(key, shape=value.shape, dtype=value.dtype, chunks=chunks, compressors=compressor)
        array[...] = value
    return path


def pack(folder: Path, zipped: Path, within: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(zipped, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{within}{file.relative_to(folder)}")
    return zipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "pusht.zarr", compressor=numcodecs.Blosc("lz4"))


def check(path: Path) -> None:
    (path.parent / "robot_rl.json").write_text(json.dumps(DESCRIPTION))
    source = open_dataset(path)
    assert source.length == 3
    start = 0
    for number, (episode, end) in enumerate(zip(read_episodes(source), ENDS, strict=True)):
        rows = slice(start, end)
        assert episode.source == f"{path.name.partition('.')[0]} train #{number} ({path.name})"
        np.testing.assert_array_equal(episode.actions, DATA["action"][start : end - 1])
        np.testing.assert_array_equal(episode.observations["image_primary"], DATA["camera_0"][rows])
        np.testing.assert_array_equal(episode.observations["image_secondary"], DATA["img"][rows].astype(np.uint8))
        np.testing.assert_array_equal(episode.observations["proprio"], DATA["state"][rows, :2].astype(np.float32))
        np.testing.assert_array_equal(episode.observations["state"], DATA["state"][rows].astype(np.float32))
        assert (episode.instruction, episode.success, episode.rewards) == ("push the T onto its place", None, None)
        start = end


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_folders_of_any_compressor(tmp_path: Path, compressor: Any) -> None:
    check(write(tmp_path / "pusht.zarr", compressor=compressor))


def test_the_newer_zarr_format(tmp_path: Path) -> None:
    folder = write(tmp_path / "pusht.zarr", version=3)
    check(folder)
    check(pack(folder, tmp_path / "pusht.zarr.zip"))


@pytest.mark.parametrize("within", ["", "pusht/pusht_cchi.zarr/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files(tmp_path: Path, folder: Path, within: str, method: int) -> None:
    check(pack(folder, tmp_path / "zipped.zarr.zip", within, method))


def test_nested_keys_and_numbers_of_episodes(tmp_path: Path) -> None:
    folder = write(tmp_path / "nested.zarr")
    root = zarr.open_group(str(folder), mode="a")
    for name, value in {"data/obs/pos": DATA["state"], "meta/success": np.array([True, False, True])}.items():
        root.create_array(name, shape=value.shape, dtype=value.dtype, chunks=value.shape)[...] = value
    description = {**DESCRIPTION, "observations": {"proprio": "obs/pos"}}
    (folder / "robot_rl.json").write_text(json.dumps(description))
    episodes = list(read_episodes(open_dataset(folder)))
    np.testing.assert_array_equal(episodes[1].observations["proprio"], DATA["state"][10:25].astype(np.float32))
    assert [episode.success for episode in episodes] == [True, False, True]


def test_without_a_description_only_the_honest_is_derived(tmp_path: Path, folder: Path) -> None:
    source = open_dataset(folder)
    assert source.action["names"] == ["action_0", "action_1"]
    assert (source.action["frame"], source.action["control_hz"]) == ("unknown", 10.0)
    np.testing.assert_array_equal(source.action["low"], DATA["action"].min(axis=0))
    assert "unnamed and their limits are those of the data" in source.changes[-1]
    # No times, no rate: then it must be said, and is all that must.
    untimed = write(tmp_path / "untimed.zarr", data={key: value for key, value in DATA.items() if key != "timestamp"})
    fails(lambda: open_dataset(untimed), "no description of dataset 'untimed'", "robot_rl.json", "camera_0")
    (tmp_path / "untimed.robot_rl.json").write_text('{"action": {"control_hz": 12}}')
    assert open_dataset(untimed).action["control_hz"] == 12
    assert set(next(read_episodes(open_dataset(untimed))).observations) == {"image_primary", "image_secondary", "proprio"}


def test_images_from_zero_to_one_and_images_that_are_none(tmp_path: Path) -> None:
    unit = {**DATA, "img": DATA["img"] / 255}
    check(write(tmp_path / "unit.zarr", data=unit))
    beyond = {**DATA, "img": DATA["img"].copy()}
    beyond["img"][12, 3, 3, 1] = 300
    beyond["img"][30, 0, 0, 0] = np.nan
    episodes = read(write(tmp_path / "beyond.zarr", data=beyond))
    assert isinstance(episodes[0], Episode)
    for number in (1, 2):
        assert f"beyond train #{number} (beyond.zarr): data/img has pixels that are no numbers from 0 to 255" in str(
            episodes[number]
        )


def test_it_travels_and_reads_only_its_rows(folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_format(folder)))
    for damaged in (folder / "data" / "camera_0").glob("[0-2].0.0.0"):
        damaged.write_bytes(b"\xff" * 40)
    first, last = dataset.episodes("train", range(1, 3))
    fails(lambda: first.step("camera_0"), "pusht train #1 (pusht.zarr): data/camera_0 cannot be decoded")
    np.testing.assert_array_equal(last.step("camera_0"), DATA["camera_0"][25:])
    np.testing.assert_array_equal(last.step("camera_0", limit=2), DATA["camera_0"][25:27])


def test_our_training_store_is_not_one(folder: Path) -> None:
    assert DiffusionPolicyDataset.recognizes(folder)
    (folder / ".zattrs").write_text('{"robot_rl_store": 3}')
    assert not DiffusionPolicyDataset.recognizes(folder)


def test_a_corrupt_chunk_costs_its_episodes_alone(tmp_path: Path, folder: Path) -> None:
    zipped = pack(folder, tmp_path / "zipped.zarr.zip")
    with zipfile.ZipFile(zipped) as archive:
        place = archive.getinfo("data/camera_0/5.0.0.0")
    content = bytearray(zipped.read_bytes())
    content[place.header_offset + 80 : place.header_offset + 120] = b"\xff" * 40
    zipped.write_bytes(content)
    (folder / "data" / "camera_0" / "5.0.0.0").write_bytes(b"")
    for path in (folder, zipped):
        episodes = read(path)
        assert [isinstance(item, Episode) for item in episodes] == [True, True, False]
        assert f"train #2 ({path.name}): data/camera_0 cannot be decoded" in str(episodes[2])
        assert "\n" not in str(episodes[2])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_cut_blosc_chunk_is_named(tmp_path: Path, version: int, zipped: bool) -> None:
    """numcodecs makes whatever lies in memory of it, without an error."""
    blosc = numcodecs.Blosc("lz4") if version == 2 else zarr.codecs.BloscCodec(cname="lz4")
    folder = write(tmp_path / "cut.zarr", version, blosc)
    (folder / "robot_rl.json").write_text(json.dumps(DESCRIPTION))
    for key, row, size in (("action", 2, 40), ("state", 6, 10)):  # the second has lost a part of its header too
        chunk = folder / "data" / key / (f"c/{row}/0" if version == 3 else f"{row}.0")
        chunk.write_bytes(chunk.read_bytes()[:size])
    path = pack(folder, tmp_path / "cut.zarr.zip", "cut/") if zipped else folder
    if zipped:
        shutil.copy(folder / "robot_rl.json", tmp_path / "cut.robot_rl.json")
    episodes = read(path)
    assert isinstance(episodes[0], Episode)
    assert re.search(r"#1 .*data/action/(c/)?2[./]0 has 40 bytes, \d+ were written\); copy it again", str(episodes[1]))
    assert re.search(r"#2 .*data/state/(c/)?6[./]0 has 10 bytes", str(episodes[2]))


def test_arrays_that_are_too_short_or_not_finite(tmp_path: Path) -> None:
    short = {**DATA, "state": DATA["state"][:40]}
    episodes = read(write(tmp_path / "short.zarr", data=short))
    assert isinstance(episodes[1], Episode)
    assert "short train #2 (short.zarr): data/state has 40 rows, the episode ends at row 50" in str(episodes[2])
    holes = {**DATA, "action": DATA["action"].copy()}
    holes["action"][13, 1] = np.nan
    episodes = read(write(tmp_path / "holes.zarr", data=holes))
    assert "holes train #1 (holes.zarr): action is not finite at step 3" in str(episodes[1])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (None, "no meta/episode_ends"),
        (np.array([10, 30, 25]), "meta/episode_ends falls at episode 2 (25 rows after 30)"),
        (np.array([-1, 30]), "meta/episode_ends falls at episode 0 (-1 rows after 0)"),
        (np.array([10.0, 20.0]), "meta/episode_ends is float64(2,), expected whole numbers"),
        (np.array([[10, 20]]), "meta/episode_ends is int64(1, 2), expected whole numbers"),
    ],
)
def test_bad_episode_ends(tmp_path: Path, ends: np.ndarray | None, message: str) -> None:
    path = write(tmp_path / "bad.zarr", ends=ends)
    fails(lambda: open_dataset(path), f"{path}: {message}")


def test_an_episode_without_steps(tmp_path: Path) -> None:
    episodes = read(write(tmp_path / "empty.zarr", ends=np.array([10, 10, 50])))
    assert [isinstance(item, Episode) for item in episodes] == [True, False, True]
    assert str(episodes[1]) == "empty train #1 (empty.zarr): has no steps; drop it with --skip-bad"


def test_unknown_codecs_and_pickles_are_refused_alone(folder: Path) -> None:
    def compressed_by(key: str, **codec: Any) -> None:
        shutil.copytree(folder / "data" / "camera_0", folder / "data" / key)
        file = folder / "data" / key / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": codec}))

    # UMI's cameras; and a pickle, which would run what it holds.
    compressed_by("camera_jxl", id="imagecodecs_jpegxl", effort=3)
    compressed_by("camera_pickled", id="pickle", protocol=5)
    assert all(isinstance(item, Episode) for item in read(folder))
    episode = next(iter(open_format(folder).episodes("train", range(1))))
    fails(lambda: episode.step("camera_jxl"), "data/camera_jxl is not readable", "imagecodecs_jpegxl", "install its codec")
    fails(lambda: episode.step("camera_pickled"), "data/camera_pickled is", "pickle")


def test_folders_and_zip_files_that_are_none(tmp_path: Path, folder: Path) -> None:
    zipped = pack(folder, tmp_path / "cut.zarr.zip")
    zipped.write_bytes(zipped.read_bytes()[:-100])
    fails(lambda: open_dataset(zipped), f"{zipped}: not a readable zarr group")
    (tmp_path / "empty.zarr").mkdir()
    fails(lambda: open_dataset(tmp_path / "empty.zarr"), "empty.zarr: not a readable zarr group")
    shutil.rmtree(folder / "data")
    fails(lambda: open_dataset(folder), "pusht.zarr: no arrays under `data`")
    (folder / "meta" / "episode_ends" / ".zarray").write_text("{")
    fails(lambda: open_dataset(folder), "meta/episode_ends cannot be read")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
def test_chunks_that_are_not_there_are_found_by_check(tmp_path: Path, version: int, zipped: bool) -> None:
    """zarr reads them as zeros, without an error."""
    folder = write(tmp_path / "holes.zarr", version)
    (folder / "robot_rl.json").write_text(json.dumps({**DESCRIPTION, "instruction": {"text": "push"}}))
    place = "c/{}/0/0/0" if version == 3 else "{}.0.0.0"
    assert not any(finding.fault.startswith("missing") for finding in check_data(open_dataset(folder)))
    (folder / "data/camera_0" / place.format(1)).unlink()  # rows 7 to 13: the end of one episode and the start of the next
    (folder / "data/action" / ("c/6/0" if version == 3 else "6.0")).unlink()
    path = pack(folder, tmp_path / "holes.zarr.zip", "holes.zarr/") if zipped else folder
    if zipped:
        shutil.copy(folder / "robot_rl.json", tmp_path / "holes.robot_rl.json")
    told = check_data(open_dataset(path))
    found = {finding.fault: finding for finding in told}
    assert told[0].fault == "missing-frames"
    assert "blank-frames" not in found  # the black frames in their place are no second fault
    frames, numbers = found["missing-frames"], found["missing-numbers"]
    assert (frames.severity, frames.episodes, numbers.severity, numbers.episodes) == ("error", ("#0", "#1"), "warning", ("#2",))
    assert "image_primary" in frames.message
    shutil.rmtree(tmp_path / "holes.zarr/meta/episode_ends/c" if version == 3 else tmp_path / "none", ignore_errors=True)
    (folder / "meta/episode_ends/0").unlink(missing_ok=True)
    fails(lambda: open_dataset(folder), "meta/episode_ends has lost a chunk")
