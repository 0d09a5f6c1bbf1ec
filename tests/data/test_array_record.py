"""RLDS as TFDS itself writes it: ArrayRecord files, compressed and ragged tensors; and without TensorFlow."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import Episode, InputError, open_dataset, read_episodes
from data.formats.rlds import RldsDataset, RldsEpisode

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
REPOSITORY = Path(__file__).parents[2]
EPISODES, LENGTH = 5, 6
DESCRIPTION = {
    "action": {"names": ["x", "y"], "units": ["m", "m"], "low": [-9, -9], "high": [9, 9], "frame": "base", "control_hz": 5},
    "observations": {"image_primary": "observation/image", "proprio": ["observation/pose", "observation/zipped"]},
}


def made(seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "action": rng.normal(size=2).astype(np.float32),
            "is_first": index == 0,
            "reward": np.float32(index),
            "language_instruction": f"öffne {seed}",
            "observation": {
                "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
                # tf.train.Example holds float32 whatever a feature's type.
                "pose": rng.normal(size=(2, 2)).astype(np.float32).astype(np.float64),
                "zipped": rng.normal(size=3).astype(np.float32),
                "depth": rng.integers(0, 60000, (4, 4, 1), dtype=np.uint16),
                "contacts": rng.normal(size=2 + seed % 2 * index).astype(np.float32),
            },
        }
        for index in range(LENGTH)
    ]


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def by_tfds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that TFDS wrote, in several shards."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (extra `rlds`)")
    if request.param == "array_record":
        pytest.importorskip("array_record", reason="array-record is not installed")
    tensor = tfds.features.Tensor
    observation = {
        "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
        "pose": tensor(shape=(2, 2), dtype=np.float64),
        "zipped": tensor(shape=(3,), dtype=np.float32, encoding="zlib"),
        "depth": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
        "contacts": tfds.features.Sequence(np.float32),
    }
    steps = {
        "action": tensor(shape=(2,), dtype=np.float32),
        "is_first": np.bool_,
        "reward": np.float32,
        "language_instruction": tfds.features.Text(),
        "observation": observation,
    }
    features = {"steps": tfds.features.Dataset(steps), "episode_metadata": {"success": np.bool_}}

    with tfds.core.registered.skip_registration():

        class TinyRobot(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = tmp_path_factory.mktemp("package")

            def _info(self) -> object:
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _: object) -> dict:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> object:
                for seed in range(EPISODES):
                    yield seed, {"steps": made(seed), "episode_metadata": {"success": seed % 2 == 0}}

    builder = TinyRobot(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    (Path(builder.data_dir) / "robot_rl.json").write_text(json.dumps(DESCRIPTION))
    return Path(builder.data_dir)


def original(episode: RldsEpisode) -> list[dict]:
    """TFDS shuffles: the instruction tells which episode it was."""
    return made(int(episode.step("language_instruction")[0].split()[1]))


def episodes_of(folder: Path) -> list[RldsEpisode]:
    dataset = RldsDataset.open(folder)
    return [item for item in dataset.episodes("train", range(EPISODES)) if not isinstance(item, InputError)]


def test_every_value_is_read_back(by_tfds: Path) -> None:
    assert len(list(by_tfds.glob("*-of-00002"))) == 2
    found = episodes_of(by_tfds)
    assert len({episode.step("language_instruction")[0] for episode in found}) == EPISODES
    for episode in found:
        steps = original(episode)
        assert episode.num_steps == LENGTH
        assert episode.metadata("success") == (steps[0]["language_instruction"] in {"öffne 0", "öffne 2", "öffne 4"})
        for key in ("action", "is_first", "reward"):
            np.testing.assert_array_equal(episode.step(key), [step[key] for step in steps])
        for key in ("image", "pose", "zipped"):
            np.testing.assert_array_equal(episode.step(f"observation/{key}"), [step["observation"][key] for step in steps])


def test_what_only_tfds_reads_is_read_through_it(by_tfds: Path) -> None:
    for episode in episodes_of(by_tfds):
        steps = original(episode)
        np.testing.assert_array_equal(episode.step("observation/depth"), [step["observation"]["depth"] for step in steps])
        if len({len(step["observation"]["contacts"]) for step in steps}) == 1:
            contacts = [step["observation"]["contacts"] for step in steps]
            np.testing.assert_array_equal(episode.step("observation/contacts"), contacts)
        else:
            with pytest.raises(InputError, match="steps/observation/contacts has another shape in each step"):
                episode.step("observation/contacts")


def test_ranges_and_other_processes(by_tfds: Path) -> None:
    source = open_dataset(by_tfds)
    everything = [episode.source for episode in read_episodes(source)]
    assert len(everything) == EPISODES
    assert [next(pickle.loads(pickle.dumps(source)).read(range(i, i + 1))).source for i in range(EPISODES)] == everything


def test_standardised(by_tfds: Path) -> None:
    for raw, episode in zip(episodes_of(by_tfds), read_episodes(open_dataset(by_tfds)), strict=True):
        steps = original(raw)
        assert episode.actions.shape == (LENGTH - 1, 2)
        assert episode.observations["proprio"].shape == (LENGTH, 7)
        np.testing.assert_array_equal(episode.observations["image_primary"], [step["observation"]["image"] for step in steps])
        # What arriving at the last step gave belongs to the transition that led there.
        np.testing.assert_array_equal(episode.rewards, [0, 1, 2, 3, 4 + 5])


_WITHOUT_TENSORFLOW = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
from data import InputError, open_dataset, read_episodes
from data.formats.rlds import RldsDataset

for episode in read_episodes(open_dataset(sys.argv[1])):
    print(episode.source, len(episode), sum(float(value.sum()) for value in episode.observations.values()))
for key in sys.argv[2:]:
    try:
        next(RldsDataset.open(sys.argv[1]).episodes("train", range(1))).step(key)
    except InputError as error:
        print(error)
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
"""


def without_tensorflow(folder: Path, *keys: str) -> list[str]:
    command = [sys.executable, "-c", _WITHOUT_TENSORFLOW, str(folder), *keys]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def described(episodes: list[Episode]) -> list[str]:
    sums = ((episode, sum(float(value.sum()) for value in episode.observations.values())) for episode in episodes)
    return [f"{episode.source} {len(episode)} {total}" for episode, total in sums]


def test_the_same_without_tensorflow(by_tfds: Path) -> None:
    lines = without_tensorflow(by_tfds, "observation/depth")
    assert lines[:EPISODES] == described(list(read_episodes(open_dataset(by_tfds))))
    assert "steps/observation/depth is an image of uint16 [4, 4, 1], not one RGB uint8, which is read by" in lines[EPISODES]
    assert "pip install 'robot-rl[rlds]'" in lines[EPISODES]


def test_bridge_without_tensorflow(bridge: Path) -> None:
    assert without_tensorflow(bridge) == described(list(read_episodes(open_dataset(bridge))))


def copy_of(folder: Path, to: Path) -> Path:
    if not list(folder.glob("*.array_record*")):
        pytest.skip("TFRecord files are damaged in test_rlds")
    return Path(shutil.copytree(folder, to / "1.0.0"))


@pytest.mark.parametrize("size", [1, EPISODES])
@pytest.mark.parametrize("cut", [0.5, 0.0])
def test_a_truncated_array_record_file_has_lost_all_of_its_episodes(
    by_tfds: Path, tmp_path: Path, cut: float, size: int
) -> None:
    folder = copy_of(by_tfds, tmp_path)
    file = sorted(folder.glob("*.array_record*"))[0]
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * cut)])
    source = open_dataset(folder)
    items = [item for start in range(0, EPISODES, size) for item in source.read(range(start, start + size))]
    (_, lost), (_, there) = RldsDataset.open(folder).shards["train"]
    assert [isinstance(item, Episode) for item in items] == [False] * lost + [True] * there
    (error,) = {str(item) for item in items if isinstance(item, InputError)}
    assert file.name in error
    assert f"lost are {lost} of its {lost} episodes" in error
    assert "\n" not in error


def test_a_damaged_record_costs_itself_alone(by_tfds: Path, tmp_path: Path) -> None:
    folder = copy_of(by_tfds, tmp_path)
    file = sorted(folder.glob("*.array_record*"))[0]
    data = bytearray(file.read_bytes())
    data[200] ^= 0xFF
    file.write_bytes(data)
    items = list(open_dataset(folder).read(range(EPISODES)))
    (error,) = (str(item) for item in items if isinstance(item, InputError))
    assert f"{file.name}: record 0 cannot be read" in error
    assert "\n" not in error
    assert len(items) == EPISODES
