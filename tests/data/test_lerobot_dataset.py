"""LeRobotDataset: files that lerobot wrote read as lerobot reads them, ours are laid out as its own, and damage is one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data import Episode, InputError, open_dataset
from data.formats import lerobot_writer, open_format
from data.formats.lerobot import LeRobotDataset
from data.formats.lerobot_writer import LeRobotWriter
from data.formats.video import VideoReader, VideoWriter
from tests.data.reading import fails, read

FIXTURES = Path(__file__).parent / "fixtures"
ACTION = {
    "names": ["x", "y", "gripper"],
    "units": ["m", "m", "open"],
    "low": [-1.0, -1.0, 0.0],
    "high": [1.0, 1.0, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 10.0,
}


def picture(step: int, number: int, height: int = 32, width: int = 48) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 2 + step * 11, y * 3 + number * 40, np.full_like(x, step * 20)], axis=-1).astype(np.uint8)


def made(number: int, length: int, success: bool | None = True) -> Episode:
    rng = np.random.default_rng(number)
    frames = np.stack([picture(step, number) for step in range(length + 1)])
    return Episode(
        observations={
            "image_primary": frames,
            "image_wrist": frames[:, :16, :24],
            "proprio": rng.normal(size=(length + 1, 3)).astype(np.float32),
            "state": rng.normal(size=(length + 1, 1)).astype(np.float32),
        },
        actions=rng.normal(size=(length, 3)).astype(np.float32),
        instruction=("öffne the drawer", "close the drawer")[number % 2],
        success=success,
        source=f"made #{number}",
        instruction_embedding=np.eye(4, dtype=np.float32)[number % 2],
        info={"quality": ("clean", "dithering")[number % 2]},
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=number % 3 == 0,
    )


EPISODES = [made(number, 3 + number % 4, (None, True, False)[number % 3]) for number in range(7)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EPISODES as h264 video."""
    out = tmp_path_factory.mktemp("written") / "made_dataset"
    with LeRobotWriter(out, ACTION) as writer:
        for episode in EPISODES:
            writer.add(episode)
    return out


@pytest.fixture
def copy(tmp_path: Path, written: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "made_dataset"))


@pytest.fixture
def copy_v21(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "lerobot_v21"))


def one_bad(folder: Path, number: int, *parts: str) -> None:
    """Only this episode is bad, its one line has these parts, and all others still come."""
    items = read(folder)
    bad = {index: str(item) for index, item in enumerate(items) if isinstance(item, InputError)}
    assert list(bad) == [number], bad
    for part in (f"{folder.name} train #{number}", *parts):
        assert part in bad[number]
    assert "\n" not in bad[number]


def edit(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    parquet.write_table(change(parquet.read_table(file)), file)


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize("name", ["lerobot_v30", "lerobot_v21"])
def test_reads_what_lerobot_reads(name: str) -> None:
    dataset = pickle.loads(pickle.dumps(open_format(FIXTURES / name)))
    assert isinstance(dataset, LeRobotDataset)
    assert (dataset.name, dict(dataset.splits)) == (name, {"train": 5})
    expected = np.load(FIXTURES / f"{name}.npz")
    assert set(dataset.features) == set(expected.files)
    ends = np.cumsum([0, 7, 5, 9, 4, 6])
    # In order, and each alone: a range gives the same wherever it starts.
    alone = [next(iter(dataset.episodes("train", range(index, index + 1)))) for index in (3, 0, 4, 1, 2)]
    for number, episode in [*enumerate(dataset.episodes("train", range(5))), *zip((3, 0, 4, 1, 2), alone, strict=True)]:
        rows = slice(ends[number], ends[number + 1])
        assert episode.num_steps == ends[number + 1] - ends[number]
        for key, feature in dataset.features.items():
            values, wanted = episode.step(key), expected[key][rows]
            if feature.kind == "text":
                assert values == list(wanted)
            elif feature.kind == "image":
                assert values.dtype == np.uint8
                assert values.shape[1:] == feature.shape
                # Conversion from YUV differs by a step or two between processors.
                np.testing.assert_allclose(values[:, ::4, ::4].astype(int), wanted, atol=2)
                np.testing.assert_array_equal(episode.step(key, limit=2), values[:2])
            else:
                assert values.dtype == feature.dtype
                # lerobot gives float32 where the file has float64.
                np.testing.assert_array_equal(values.reshape(wanted.shape).astype(wanted.dtype), wanted)


@pytest.mark.parametrize("name", ["lerobot_v30", "lerobot_v21"])
def test_describes_itself(name: str) -> None:
    source = open_dataset(FIXTURES / name)
    expected = np.load(FIXTURES / f"{name}.npz")
    action = source.action
    assert action["names"] == ["shoulder_pan.pos", "elbow.pos", "gripper.pos"]
    assert (action["control_hz"], action["frame"]) == (10, "so100_follower joint positions")
    np.testing.assert_allclose([action["low"], action["high"]], [f(expected["action"], axis=0) for f in (np.min, np.max)])
    episodes = [item for item in source.read(range(5)) if isinstance(item, Episode)]
    assert [len(episode) for episode in episodes] == [6, 4, 8, 3, 5]
    assert [episode.success for episode in episodes] == [True, False, True, False, True]
    assert [episode.rewards.tolist()[-1] for episode in episodes] == [1, 0, 1, 0, 1]
    assert [episode.instruction for episode in episodes[:2]] == ["pick the cube", "öffne the drawer"]
    shapes = {key: value.shape[1:] for key, value in episodes[0].observations.items()}
    assert shapes == {"image_primary": (32, 48, 3), "image_wrist": (16, 20, 3), "proprio": (3,)}
    np.testing.assert_array_equal(episodes[0].actions, expected["action"][:6])


@pytest.mark.parametrize(("image_format", "loss"), [("png", 0), ("h264", 8), ("av1", 12)])
def test_what_is_written_is_read(tmp_path: Path, image_format: Any, loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "DATA_FILE_BYTES", 1000)
    monkeypatch.setattr(lerobot_writer, "VIDEO_FILE_BYTES", 3000)
    monkeypatch.setattr(lerobot_writer, "FILES_PER_CHUNK", 2)
    with LeRobotWriter(tmp_path / "out", {**ACTION, "control_hz": 12.5}, image_format) as writer:
        for number, episode in enumerate(EPISODES):
            writer.add(episode, "train" if number < 5 else "val")
    assert (tmp_path / "out/data/chunk-001/file-000.parquet").exists()
    assert not list(tmp_path.glob(".*"))
    items = [*read(tmp_path / "out"), *read(tmp_path / "out", "val")]
    assert open_dataset(tmp_path / "out").action == {**ACTION, "control_hz": 12.5}
    for item, episode in zip(items, EPISODES, strict=True):
        assert isinstance(item, Episode), item
        assert set(item.observations) == set(episode.observations)
        for key, value in episode.observations.items():
            if key.startswith("image_"):
                away = np.abs(item.observations[key].astype(int)[:, None] - value[None]).mean(axis=(2, 3, 4))
                assert np.diag(away).max() <= loss
                # Each is its own frame, not one beside it.
                np.testing.assert_array_equal(away.argmin(axis=1), np.arange(len(value)))
            else:
                np.testing.assert_array_equal(item.observations[key], value)
        for field in ("actions", "rewards", "instruction_embedding"):
            np.testing.assert_array_equal(getattr(item, field), getattr(episode, field))
        assert (item.instruction, item.success, item.terminated) == (episode.instruction, episode.success, episode.terminated)
        assert item.info == {"source": episode.source, **episode.info}


def test_layout_is_that_of_lerobot(written: Path) -> None:
    """Every column and field that lerobot 0.4.4 writes, ours have, of the same type and shape."""
    theirs, folder = FIXTURES / "lerobot_v30", "chunk-000/file-000.parquet"
    info, wanted = (json.loads((root / "meta/info.json").read_text()) for root in (written, theirs))
    assert set(info) == set(wanted)
    assert info["data_path"] == wanted["data_path"]
    assert info["video_path"] == wanted["video_path"]
    camera, top = (side["features"][f"observation.images.{key}"] for side, key in ((info, "primary"), (wanted, "top")))
    assert set(camera) == set(top)
    assert set(camera["info"]) == set(top["info"])
    rename = {"observation.images.primary": "observation.images.top"}
    for file in (f"meta/episodes/{folder}", f"data/{folder}"):
        ours, original = (parquet.read_schema(root / file) for root in (written, theirs))
        types = {name: ours.field(name).type for name in ours.names}
        for old, new in rename.items():
            types |= {name.replace(old, new): kind for name, kind in types.items() if old in name}
        for field in original:
            if not any(other in field.name for other in ("wrist", "grid", "next.success")):
                assert types[field.name] == field.type, field.name
    statistics, original = (json.loads((root / "meta/stats.json").read_text()) for root in (written, theirs))
    for key, old in (("action", "action"), ("observation.images.primary", "observation.images.top")):
        assert {name: np.shape(value) for name, value in statistics[key].items()} == {
            name: np.shape(value) for name, value in original[old].items()
        }
    tasks = parquet.read_table(written / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_rows_say_which_columns_are_pictures(tmp_path: Path) -> None:
    """As lerobot's own do, whose streaming reader and the hub look there alone."""
    with LeRobotWriter(tmp_path / "out", ACTION, "png") as writer:
        writer.add(EPISODES[0])

    def pictures(root: Path) -> dict[str, Any]:
        metadata = parquet.read_schema(root / "data/chunk-000/file-000.parquet").metadata
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {key: feature for key, feature in features.items() if feature["_type"] == "Image"}

    theirs = pictures(FIXTURES / "lerobot_v30")["observation.images.wrist"]
    assert pictures(tmp_path / "out") == dict.fromkeys(["observation.images.primary", "observation.images.wrist"], theirs)


def test_statistics_are_those_of_the_frames(written: Path) -> None:
    statistics = json.loads((written / "meta/stats.json").read_text())["observation.state"]
    values = np.concatenate([episode.observations["proprio"] for episode in EPISODES])
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(statistics[name], getattr(values, name)(axis=0), rtol=1e-5)
    assert statistics["count"] == [len(values)]


def test_writer_refuses(tmp_path: Path) -> None:
    def write(*items: tuple[Episode, str], image_format: Any = "png") -> None:
        with LeRobotWriter(tmp_path / "out", ACTION, image_format) as writer:
            for episode, split in items:
                writer.add(episode, split)

    first, second = EPISODES[0], EPISODES[1]
    odd = {**first.observations, "image_primary": first.observations["image_primary"][:, :31]}
    fails(lambda: write(), "no episode was written")
    fails(lambda: write((first, "a"), (second, "b"), (first, "a")), "made #0", "splits are ranges")
    fails(lambda: write((first, "a"), (replace(second, info={}), "a")), "made #1", "differs from the first episode in quality")
    fails(lambda: write((first, "a"), (replace(second, rewards=None), "a")), "made #1", "next.reward")
    fails(lambda: write((replace(first, observations=odd), "a"), image_format="h264"), "made #0", "even sizes", "png")
    fails(lambda: write((replace(first, actions=first.actions * np.nan), "a")), "made #0", "not finite")
    assert not list(tmp_path.iterdir())
    write((first, "a"))
    fails(lambda: write((first, "a")), "exists", "--overwrite")


def test_open_gops() -> None:
    """Where a key frame is shown after frames that follow it, a seek must go further back; lerobot refuses such a file."""
    file = FIXTURES / "lerobot_hevc.mp4"
    whole = VideoReader(file).frames(np.arange(25) / 10)
    reader = VideoReader(file)
    for start in (12, 0, 21, 1, 3, 7, 24):
        np.testing.assert_array_equal(reader.frames(np.arange(start, min(start + 4, 25)) / 10), whole[start : start + 4])


def test_an_episode_is_read_without_those_before_it(tmp_path: Path) -> None:
    """Damage at the beginning of a file of many episodes harms only the episode that it is in."""
    file = tmp_path / "long.mp4"
    from fractions import Fraction

    with VideoWriter(file, Fraction(10), 64, 64, "h264") as writer:
        writer.add(np.stack([picture(step, step % 5, 64, 64) for step in range(100)]))
    good = VideoReader(file).frames(np.arange(60, 70) / 10)
    data = bytearray(file.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 900 : start + 2000] = bytes(1100)
    file.write_bytes(data)
    reader = VideoReader(file)
    fails(lambda: reader.frames(np.arange(100) / 10), "long.mp4", "damaged")
    np.testing.assert_array_equal(VideoReader(file).frames(np.arange(60, 70) / 10), good)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ({"codebase_version": "v2.0"}, "v2.0 is too old"),
        ({"codebase_version": "v1.6"}, "v1.6 is too old"),
        ({"codebase_version": "v4.0"}, "'v4.0', v2.1 and v3.0 are read"),
        ({"features": None}, "needs `features` and `fps`"),
        ({"fps": 0}, "needs `features` and `fps`"),
        ({"features": {"action": {"dtype": "float32"}}}, "feature 'action' is not described"),
        ({"splits": {"train": "0:70"}}, "split 'train' is '0:70', meta has 7 episodes"),
    ],
)
def test_damaged_info(copy: Path, content: str | dict, message: str) -> None:
    file = copy / "meta/info.json"
    info = json.loads(file.read_text())
    file.write_text(content if isinstance(content, str) else json.dumps({**info, **content}))
    fails(lambda: open_dataset(copy), "made_dataset", message)


def test_damaged_meta(copy: Path, copy_v21: Path) -> None:
    with (copy_v21 / "meta/episodes.jsonl").open("a") as file:
        file.write("{")
    fails(lambda: open_dataset(copy_v21), "episodes.jsonl", "line 6 is not valid JSON")
    edit(copy / "meta/tasks.parquet", lambda table: table.drop_columns(["task_index"]))
    fails(lambda: open_dataset(copy), "tasks.parquet", "expected task and task_index")
    episodes = copy / "meta/episodes/chunk-000/file-000.parquet"
    episodes.write_bytes(episodes.read_bytes()[:5000])
    (copy / "meta/tasks.parquet").unlink()
    fails(lambda: open_dataset(copy), "file-000.parquet", "damaged")
    shutil.rmtree(copy / "meta/episodes")
    fails(lambda: open_dataset(copy), "meta/episodes: no parquet files")


def test_no_statistics_and_no_description(copy: Path) -> None:
    (copy / "robot_rl.json").unlink()
    assert open_dataset(copy).action["names"] == ACTION["names"]
    # What the user knows better overrules what info.json says, and the rest stays.
    (copy / "robot_rl.json").write_text(json.dumps({"action": {"units": ACTION["units"]}}))
    assert {**open_dataset(copy).action, "frame": "", "low": [], "high": []} == {**ACTION, "frame": "", "low": [], "high": []}
    (copy / "robot_rl.json").unlink()
    (copy / "meta/stats.json").unlink()
    fails(lambda: open_dataset(copy), "no description of dataset 'made_dataset'", "robot_rl.json")


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_one_bad_parquet_file(copy_v21: Path, damage: str) -> None:
    file = copy_v21 / "data/chunk-000/episode_000002.parquet"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:3000])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    one_bad(copy_v21, 2, "episode_000002.parquet", "missing" if damage == "missing" else "not a readable parquet file")


@pytest.mark.parametrize("damage", ["truncated", "missing", "shorter"])
def test_one_bad_video(copy_v21: Path, damage: str) -> None:
    folder = copy_v21 / "videos/chunk-000/observation.images.top"
    file = folder / "episode_000001.mp4"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:700])
    elif damage == "missing":
        file.unlink()
    else:
        shutil.copy(folder / "episode_000003.mp4", file)
    expected = {
        "truncated": "not a readable video",
        "missing": "missing",
        "shorter": "no frame within 0.0001 s of 0.4000 s",
    }
    one_bad(copy_v21, 1, "observation.images.top", "episode_000001.mp4", expected[damage])
    # Its numbers are still there for who needs no cameras.
    source = open_dataset(copy_v21)
    assert all(isinstance(item, Episode) for item in source.read(range(5), images=False))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("action", pa.array([["a", "b", "c"]] * 9), "holds list"),
        ("action", pa.array([[1.0, 2.0]] * 9), "has 2 values on axis 0, info.json says [3]"),
        ("action", pa.array([[1.0, 2.0, 3.0]] * 8 + [[1.0]]), "has 1/3 values"),
        ("action", pa.array([[1.0, 2.0, 3.0]] * 8 + [None]), "missing values"),
        ("action", pa.array([[1.0, 2.0, np.nan]] + [[1.0, 2.0, 3.0]] * 8), "action is not finite at step 0"),
        ("action", pa.array([1.0] * 9), "info.json says float32[3]"),
        ("observation.state", pa.array([[1.0, 2.0, np.inf]] * 9), "proprio is not finite at step 0"),
        ("next.reward", pa.array(["high"] * 9), "next.reward: holds string"),
        ("task_index", pa.array([7] * 9), "task_index 7 is not among the 2 texts"),
        ("timestamp", pa.array([0.0] * 9, pa.float32()), "timestamps of its rows do not increase"),
        ("timestamp", pa.array(np.arange(9) / 10 + 0.03, pa.float32()), "no frame within 0.0001 s of 0.0300 s"),
        ("observation.images.wrist", pa.array([{"bytes": b"no image", "path": ""}] * 9), "the image of step 0"),
        ("observation.images.wrist", pa.array([{"bytes": None, "path": "gone.png"}] * 9), "gone.png"),
        ("episode_index", pa.array([3] * 9), "no rows of episode 2"),
    ],
)
def test_one_bad_column(copy_v21: Path, column: str, values: pa.Array, message: str) -> None:
    edit(copy_v21 / "data/chunk-000/episode_000002.parquet", lambda table: set_column(table, column, values))
    one_bad(copy_v21, 2, message, "episode_000002.parquet")


def test_rows_that_are_missing(copy: Path) -> None:
    """Several episodes in one file: those whose rows are all there still come."""
    file = next((copy / "data").rglob("*.parquet"))
    edit(file, lambda table: pa.concat_tables([table.slice(0, 5), table.slice(6)]))
    one_bad(copy, 1, "file-000.parquet", "has 4 rows of episode 1, meta/episodes says 5")
    edit(file, lambda table: table.drop_columns(["action"]))
    errors = [str(item) for item in read(copy) if isinstance(item, InputError)]
    assert len(errors) == len(EPISODES)
    assert all("no column 'action'" in error for index, error in enumerate(errors) if index != 1)


def test_features_that_are_no_rgb_image(copy: Path) -> None:
    file = copy / "meta/info.json"
    info = json.loads(file.read_text())
    features = info["features"]
    features["observation.images.primary"]["info"]["video.is_depth_map"] = True
    features["observation.images.wrist"]["shape"] = [16, 24, 1]
    file.write_text(json.dumps(info))
    episode = next(iter(LeRobotDataset.open(copy).episodes("train", range(1))))
    fails(lambda: episode.step("observation.images.primary"), "made_dataset train #0", "a depth map")
    fails(lambda: episode.step("observation.images.wrist"), "an image of [16, 24, 1], not RGB")
    fails(lambda: episode.step("observation.images.third"), "no step feature", "present: action")
