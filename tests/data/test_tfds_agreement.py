"""TFDS itself reads what we write, and we read what TFDS reads. The only module that imports TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import Episode, RldsWriter
from data.formats.rlds import RldsDataset

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (extra `rlds`)")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed (extra `rlds`)")


def by_tfds(folder: Path, split: str = "train") -> list[tuple[dict, list[dict]]]:
    read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    episodes = tfds.builder_from_directory(str(folder)).as_dataset(split=split, read_config=read)
    return [(tfds.as_numpy(episode["episode_metadata"]), list(episode["steps"].as_numpy_iterator())) for episode in episodes]


def stack(steps: list[dict], *path: str) -> np.ndarray:
    def leaf(step: Any) -> Any:
        for key in path:
            step = step[key]
        return step

    return np.stack([leaf(step) for step in steps])


def test_tfds_reads_what_we_write(written: Path, episodes: list[Episode]) -> None:
    read = by_tfds(written / "1.0.0")
    assert len(read) == len(episodes)
    for (metadata, steps), episode in zip(read, episodes, strict=True):
        length = len(episode)
        assert len(steps) == length + 1
        np.testing.assert_array_equal(stack(steps, "action"), np.concatenate([episode.actions, np.zeros((1, 4), np.float32)]))
        for key, value in episode.observations.items():
            np.testing.assert_array_equal(stack(steps, "observation", key), value)
        success, index = episode.success is True, np.arange(length + 1)
        np.testing.assert_array_equal(stack(steps, "is_first"), index == 0)
        np.testing.assert_array_equal(stack(steps, "is_last"), index == length)
        np.testing.assert_array_equal(stack(steps, "is_terminal"), (index == length) & success)
        np.testing.assert_array_equal(stack(steps, "reward"), np.float32((index == length) & success))
        np.testing.assert_array_equal(stack(steps, "discount"), np.float32(~((index == length) & success)))
        assert {step["language_instruction"].decode() for step in steps} == {episode.instruction}
        assert (bool(metadata["success"]), bool(metadata["has_success"])) == (success, episode.success is not None)
        assert metadata["quality"].decode() == episode.info["quality"]


def test_tfds_reads_jpeg_shards_and_splits(
    tmp_path: Path, make_episode: Callable[..., Episode], action: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.formats.rlds_writer.SHARD_BYTES", 1000)
    colour = np.uint8([200, 60, 10])
    with RldsWriter(tmp_path / "My Set-2", action, image_format="jpeg") as writer:
        for seed in range(5):
            episode = make_episode(seed, 4)
            episode.observations["image_primary"][:] = colour
            writer.add(episode, split="train" if seed < 4 else "val")
    folder = tmp_path / "My Set-2" / "1.0.0"
    assert len(list(folder.glob("my_set_2-train.tfrecord-*-of-00004"))) == 4
    train, val = by_tfds(folder), by_tfds(folder, "val")
    assert (len(train), len(val)) == (4, 1)
    ours = next(RldsDataset.open(folder).episodes("val", range(1))).step("observation/image_primary")
    for frames in (ours, stack(val[0][1], "observation", "image_primary")):
        assert np.abs(frames.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_we_read_bridge_as_tfds_does(bridge: Path, split: str) -> None:
    read = by_tfds(bridge, split)
    ours = list(RldsDataset.open(bridge).episodes(split, range(25)))
    assert len(ours) == len(read) == 25
    for raw, (metadata, steps) in zip(ours, read, strict=True):
        assert raw.num_steps == len(steps) == 10
        for key in ("action", "reward", "discount", "is_first", "is_last", "is_terminal", "language_embedding"):
            np.testing.assert_array_equal(raw.step(key), stack(steps, key))
        np.testing.assert_array_equal(raw.step("observation/state"), stack(steps, "observation", "state"))
        assert raw.step("language_instruction") == [step["language_instruction"].decode() for step in steps]
        assert raw.metadata("episode_id") == metadata["episode_id"]
        assert raw.metadata("file_path").encode() == metadata["file_path"]
        for camera in ("image_0", "image_1", "image_2", "image_3"):
            frames, encoded = raw.step(f"observation/{camera}"), raw.values[f"steps/observation/{camera}"]
            exact = [tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy() for data in encoded[:2]]
            np.testing.assert_array_equal(frames[:2], exact)
            # TFDS itself uses the faster, approximate inverse transform.
            assert np.abs(frames.astype(int) - stack(steps, "observation", camera)).mean() < 4
