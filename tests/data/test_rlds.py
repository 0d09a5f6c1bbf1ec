"""Damaged and unusual RLDS folders: one line that names the file, the record and what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Episode, InputError, LanguageEncoder, RldsWriter, convert, open_dataset, read_episodes
from data.formats.base import Feature
from data.formats.features import decode, parse_features
from data.formats.rlds import RldsDataset
from data.formats.tfrecord import build_example, parse_example, read_records, write_record
from data.quality.check import check
from tests.data.reading import fails


@pytest.fixture
def copy(tmp_path: Path, written: Path) -> Path:
    """A copy of the written dataset's version folder, to be damaged."""
    shutil.copytree(written / "1.0.0", tmp_path / "1.0.0")
    return tmp_path / "1.0.0"


def shard(folder: Path) -> Path:
    return next(folder.glob("*.tfrecord*"))


def record_starts(file: Path) -> list[int]:
    data, starts = file.read_bytes(), [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 16 + struct.unpack_from("<Q", data, starts[-1])[0])
    return starts


def damage(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0xFF
    file.write_bytes(data)


def read_all(folder: Path, split: str = "train") -> int:
    return len(list(read_episodes(open_dataset(folder, split), images=False)))


def test_corrupt_record_is_named_and_can_be_skipped(copy: Path) -> None:
    damage(shard(copy), record_starts(shard(copy))[3] + 40)
    fails(lambda: read_all(copy), shard(copy).name, "record 3 is corrupt", "--skip-bad")
    skipped: list[InputError] = []
    episodes = list(read_episodes(open_dataset(copy), skipped.append, images=False))
    assert len(episodes) == 11
    assert [str(error) for error in skipped] == [
        f"{shard(copy)}: record 3 is corrupt (its checksum is wrong); copy the file again, or skip it with --skip-bad"
    ]
    assert episodes[3].source == f"made_dataset train #4 ({shard(copy).name} record 4)"


def test_damaged_length_ends_the_file(copy: Path) -> None:
    damage(shard(copy), record_starts(shard(copy))[5])
    fails(lambda: read_all(copy), "record 5 has a damaged length")
    skipped: list[InputError] = []
    assert len(list(read_episodes(open_dataset(copy), skipped.append, images=False))) == 5
    # One for each that is lost: they are counted.
    assert [str(error) for error in skipped] == 7 * [
        f"{shard(copy)}: record 5 has a damaged length; lost are 7 of its 12 episodes, #5 to #11 of train: copy the file again, or "
        "leave them out with --skip-bad"
    ]


@pytest.mark.parametrize("rest", [5, 200])
def test_truncated_inside_a_record(copy: Path, rest: int) -> None:
    start = record_starts(shard(copy))[4]
    shard(copy).write_bytes(shard(copy).read_bytes()[: start + rest])
    fails(lambda: read_all(copy), shard(copy).name, "record 4 is truncated")


def test_truncated_between_records(copy: Path) -> None:
    shard(copy).write_bytes(shard(copy).read_bytes()[: record_starts(shard(copy))[4]])
    fails(
        lambda: read_all(copy),
        shard(copy).name,
        "ends after 4 records, dataset_info.json says 12; lost are 8 of its 12 episodes",
    )


def test_a_record_that_is_no_example(copy: Path) -> None:
    with shard(copy).open("r+b") as file:
        write_record(file, b"\xff" * 50)
    fails(lambda: read_all(copy), "#0", "not a tf.train.Example")


def test_folders_that_are_no_dataset(tmp_path: Path, copy: Path) -> None:
    fails(lambda: open_dataset(tmp_path / "nowhere"), "nowhere: no such file or folder")
    (tmp_path / "empty").mkdir()
    fails(lambda: open_dataset(tmp_path / "empty"), "empty: not a dataset of a known format")
    fails(lambda: open_dataset(copy, "test"), "no split 'test'; it has 'train'")
    shutil.copytree(copy, tmp_path / "1.1.0")
    fails(lambda: open_dataset(tmp_path), "has versions 1.0.0, 1.1.0; give one")
    shutil.rmtree(tmp_path / "1.1.0")
    assert read_all(tmp_path) == 12
    shard(copy).unlink()
    fails(lambda: open_dataset(copy), "missing, though dataset_info.json lists it")


def test_a_split_of_which_no_file_is_there(sharded: Path) -> None:
    """Others were copied, and can be read."""
    info = json.loads((sharded / "dataset_info.json").read_text())
    (train,) = info["splits"]
    info["splits"] = [train, {**train, "name": "val"}]
    (sharded / "dataset_info.json").write_text(json.dumps(info))
    first = sorted(sharded.glob("*train*"))[0]
    assert open_dataset(sharded).length == 12
    fails(lambda: open_dataset(sharded, "val"), f"{first}".replace("train", "val"), "is missing", "copy it again")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("features.json", "{", "features.json: not valid JSON"),
        ("features.json", "[]", "holds [], expected a JSON object"),
        ("features.json", '{"featuresDict": {"features": {}}}', "no `steps` feature"),
        ("features.json", '{"featuresDict": 3}', "not a TFDS feature description"),
        ("dataset_info.json", "{}", "not a TFDS dataset_info"),
        (
            "dataset_info.json",
            '{"name": "x", "fileFormat": "riegeli", "splits": []}',
            "are riegeli, readable are tfrecord, array_record",
        ),
        ("dataset_info.json", '{"name": "x", "splits": [{"name": "train", "shardLengths": ["0"]}]}', "lists it"),
        ("dataset_info.json", '{"name": "x", "splits": [{"name": "train", "shardLengths": []}]}', "has no episodes"),
    ],
)
def test_bad_descriptions(copy: Path, name: str, content: str, message: str) -> None:
    (copy / name).write_text(content)
    fails(lambda: open_dataset(copy), message)


def test_shape_that_does_not_fit_the_record(copy: Path) -> None:
    text = (copy / "features.json").read_text()
    tree = json.loads(text)
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["action"]["tensor"]["shape"]["dimensions"] = ["8"]
    (copy / "features.json").write_text(json.dumps(tree))
    fails(lambda: read_all(copy), "#0", "action has")


def rewrite_first(folder: Path, change: Callable[[dict], None]) -> None:
    """Write the dataset again, its first record changed."""
    records = [data for _, data in read_records(shard(folder), range(12))]
    features = parse_features(json.loads((folder / "features.json").read_text()), "test")
    with shard(folder).open("wb") as file:
        for number, data in enumerate(records):
            arrays = {}
            for key, value in parse_example(data, "test").items():
                arrays[key] = np.array(value, features[key].dtype) if features[key].kind == "tensor" else list(value)
            if number == 0:
                change(arrays)
            write_record(file, build_example(arrays))


PLANTED: dict[str, tuple[Callable[[dict], object], str]] = {
    "nan": (lambda a: a["steps/action"].__setitem__(6, np.nan), "action is not finite at step 1"),
    "bytes for numbers": (
        lambda a: a.update({"steps/action": [b"x"] * 16}),
        "steps/action holds bytes, features.json says numbers",
    ),
    "numbers for text": (
        lambda a: a.update({"steps/language_instruction": np.zeros(4)}),
        "steps/language_instruction holds numbers, features.json says bytes (text)",
    ),
    "missing camera": (lambda a: a.pop("steps/observation/image_wrist"), "no step feature 'observation/image_wrist'"),
    "missing frames": (lambda a: a["steps/observation/image_wrist"].pop(), "image_wrist has 3 steps, others have 4"),
    "broken frame": (
        lambda a: a["steps/observation/image_wrist"].__setitem__(2, b"jpeg"),
        "the image of step 2 cannot be decoded",
    ),
    "ragged": (lambda a: a.update({"steps/action": np.zeros(12, np.float32)}), "action has 3 steps, others have 4"),
    "cut numbers": (
        lambda a: a.update({"steps/action": np.zeros(15, np.float32)}),
        "steps/action has 15 values, which do not divide",
    ),
    "one step": (
        lambda a: a.update({k: v[: len(v) // 4] for k, v in a.items() if k.startswith("steps")}),
        "has 1 step, a transition",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_names_its_episode_and_costs_it_alone(copy: Path, fault: str) -> None:
    change, message = PLANTED[fault]
    rewrite_first(copy, change)
    items = list(open_dataset(copy).read(range(12)))
    (error,) = (str(item) for item in items if isinstance(item, InputError))
    assert error.startswith(f"made_dataset train #0 ({shard(copy).name} record 0): ")
    assert message in error
    assert "\n" not in error
    assert sum(isinstance(item, Episode) for item in items) == 11


def test_unsupported_features_are_refused_only_when_asked_for(copy: Path) -> None:
    tree = {
        "featuresDict": {
            "features": {
                "steps": {
                    "sequence": {
                        "feature": {
                            "featuresDict": {
                                "features": {
                                    "ragged": {"sequence": {"feature": {"tensor": {"dtype": "float32"}}, "length": "-1"}},
                                    "fixed": {"sequence": {"feature": {"tensor": {"dtype": "float32"}}, "length": "2"}},
                                    "zipped": {"tensor": {"dtype": "uint8", "encoding": "lzma", "shape": {}}},
                                    "half": {"tensor": {"dtype": "bfloat16", "shape": {}}},
                                    "depth": {"image": {"dtype": "uint16", "shape": {"dimensions": ["4", "4", "1"]}}},
                                    "film": {"pythonClassName": "a.b.Video", "video": {}},
                                    "label": {"classLabel": {}},
                                }
                            }
                        },
                        "length": "-1",
                    }
                }
            }
        }
    }
    features = parse_features(tree, "test")
    np.testing.assert_array_equal(decode(features["steps/fixed"], [1, 2, 3, 4], "test"), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(decode(features["steps/label"], [1, 2], "test"), [1, 2])
    expected = {
        "ragged": "a tensor of variable shape [-1]",
        "zipped": "a tensor in encoding 'lzma'",
        "half": "a tensor of bfloat16",
        "depth": "an image of uint16 [4, 4, 1], not one RGB uint8",
        "film": "a Video feature",
    }
    for name, reason in expected.items():
        fails(lambda name=name: decode(features[f"steps/{name}"], [], "test"), f"steps/{name} is {reason}")


def test_undecodable_image() -> None:
    fails(lambda: decode(Feature("steps/image", "image"), [b"no image"], "here"), "here: steps/image: the image of step 0")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(
            st.lists(st.binary(max_size=20), max_size=5),
            st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(np.float32),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(lambda v: np.array(v, np.int64)),
        ),
        max_size=5,
    )
)
def test_examples_survive_serialisation(features: dict) -> None:
    parsed = parse_example(build_example(features), "test")
    assert set(parsed) == set(features)
    for key, value in features.items():
        assert list(parsed[key]) == list(value)


def test_streaming_holds_one_episode(written: Path) -> None:
    episodes = RldsDataset.open(written).episodes("train", range(12))
    assert next(episodes).num_steps == 4
    episodes.close()


@pytest.fixture
def sharded(tmp_path: Path, episodes: list[Episode], action: dict, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same twelve episodes in several files."""
    monkeypatch.setattr("data.formats.rlds_writer.SHARD_BYTES", 20_000)
    with RldsWriter(tmp_path / "sharded", action) as writer:
        for episode in episodes:
            writer.add(episode)
    return tmp_path / "sharded/1.0.0"


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_ranges_together_give_everything_once(sharded: Path, size: int) -> None:
    source = open_dataset(sharded)
    assert len(list(sharded.glob("*.tfrecord*"))) > 3
    ranges = [range(start, min(start + size, 12)) for start in range(0, 12, size)]
    parts = [[episode.source for episode in source.read(part, images=False)] for part in ranges]
    assert [len(part) for part in parts] == [len(part) for part in ranges]
    assert [source for part in parts for source in part] == [episode.source for episode in read_episodes(source)]


def test_a_range_does_not_read_what_lies_before_it(copy: Path) -> None:
    damage(shard(copy), record_starts(shard(copy))[3] + 40)
    assert all(isinstance(item, Episode) for item in open_dataset(copy).read(range(4, 12)))


@pytest.mark.parametrize("size", [1, 3, 12])
@pytest.mark.parametrize("fault", ["cut between records", "cut inside a record", "damaged length", "one too many"])
def test_each_lost_episode_is_told_once_whatever_the_ranges(copy: Path, size: int, fault: str) -> None:
    file = shard(copy)
    starts = record_starts(file)
    if fault == "damaged length":
        damage(file, starts[6])
    elif fault == "one too many":
        with file.open("ab") as out:
            write_record(out, b"more")
    else:
        file.write_bytes(file.read_bytes()[: starts[6] + (30 if "inside" in fault else 0)])
    source = open_dataset(copy)
    items = [item for start in range(0, 12, size) for item in source.read(range(start, start + size), images=False)]
    told = {str(item) for item in items if isinstance(item, InputError)}
    assert len(told) == 1
    if fault == "one too many":
        assert len(items) == 13
    else:
        assert [isinstance(item, Episode) for item in items] == [True] * 6 + [False] * 6
        assert "lost are 6 of its 12 episodes, #6 to #11 of train" in told.pop()


def test_what_a_cut_shard_has_lost_is_counted_by_check_and_convert(sharded: Path, tmp_path: Path) -> None:
    file = sorted(sharded.glob("*.tfrecord*"))[0]
    starts = record_starts(file)
    assert len(starts) > 3
    file.write_bytes(file.read_bytes()[: starts[1] + 20])
    lost = len(starts) - 2  # the last start is the file's end
    source = open_dataset(sharded)
    (finding,) = (finding for finding in check(source) if finding.fault == "unusable-episode")
    assert finding.count == lost
    for part in (f"{lost} of 12 episodes cannot be used", file.name, "#1 to #", "--skip-bad"):
        assert part in str(finding)
    made = convert(source, tmp_path / "store", language=LanguageEncoder("dataset"), skip_bad=True)
    assert len(made.skipped) == made.store.counts["skipped"] == lost
    assert f"{lost} bad episodes are left out" in made.store.changes
