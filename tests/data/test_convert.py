"""convert: what it refuses, what it skips, and that it never destroys what was there."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from data import Episode, EpisodeSource, InputError, LanguageEncoder, Store, convert
from data.atomic import _prefix
from data.formats.tfrecord import OnBad

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(action: dict) -> Callable[..., EpisodeSource]:
    def make(episodes: list[Episode]) -> EpisodeSource:
        def read(on_bad: OnBad | None, images: bool) -> Iterator[Episode]:
            yield from episodes

        return EpisodeSource("made", "memory", "train", action, len(episodes), read)

    return make


def go(source: Any, out: Path, **options: Any) -> Any:
    return convert(source, out, language=LanguageEncoder("dataset"), **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_any_zarr_reader_opens_it(made_store: Store) -> None:
    group = zarr.open_group(str(made_store.path), mode="r")
    assert group.attrs["counts"]["episodes"] == 12
    np.testing.assert_array_equal(group["meta"]["episode_ends"][:], made_store.episode_ends)
    for key in made_store.arrays:
        np.testing.assert_array_equal(group["data"][key][:], made_store.load(key))
    assert (made_store.path / "dataset_statistics.json").exists()


def test_many_chunks_read_alike(written: Path, made_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.store.zarr_array.CHUNK_BYTES", 1000)
    monkeypatch.setattr("data.store.zarr_array._MAX_MAPS", 5)
    small = go(written, tmp_path / "small").store
    assert len(list((small.path / "data/image_primary").glob("[0-9]*"))) > 20
    rows = np.random.default_rng(0).integers(0, small.counts["steps"], 200)
    group = zarr.open_group(str(small.path), mode="r")
    for key in made_store.arrays:
        np.testing.assert_array_equal(small.load(key), made_store.load(key))
        np.testing.assert_array_equal(small.gather(key, rows), made_store.load(key)[rows])
        np.testing.assert_array_equal(group["data"][key][:], made_store.load(key))
    assert small.gather("action", rows[:0]).shape == (0, 4)
    with pytest.raises(IndexError):
        small.gather("action", np.array([small.counts["steps"]]))


def test_progress_counts_episodes(written: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    go(written, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_existing_output(written: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="exists and is not a training store"):
            go(written, tmp_path / "precious", overwrite=overwrite)
    assert snapshot(tmp_path / "precious") == {"notes.txt": b"mine"}
    (tmp_path / "store").mkdir()
    go(written, tmp_path / "store")
    with pytest.raises(InputError, match=r"exists; .* replace it with --overwrite"):
        go(written, tmp_path / "store")
    assert go(written, tmp_path / "store", overwrite=True, discount=0.5).store.reward["discount"] == 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "store"}


def test_a_store_that_appears_meanwhile_is_kept(written: Path, tmp_path: Path, made_store: Store) -> None:
    def progress(done: int, total: int | None) -> None:
        if done == 5:
            shutil.copytree(made_store.path, tmp_path / "store")

    with pytest.raises(InputError, match="exists; choose another place"):
        go(written, tmp_path / "store", discount=0.5, progress=progress)
    assert snapshot(tmp_path / "store") == snapshot(made_store.path)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_store(
    written: Path, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(written, tmp_path / "store")
    before = snapshot(tmp_path)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("data.store.zarr_array.ArrayWriter._flush", fail)
    with pytest.raises(type(error)):
        go(written, tmp_path / "store", overwrite=True)
    assert snapshot(tmp_path) == before


KILLED = """
import os, signal, sys
from data import LanguageEncoder, convert
def progress(done, total):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], overwrite=True, language=LanguageEncoder("dataset"), discount=0.5, progress=progress)
"""


def test_sigkill_leaves_the_old_store(written: Path, tmp_path: Path) -> None:
    go(written, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    command = [sys.executable, "-c", KILLED, str(written), str(tmp_path / "store")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert snapshot(tmp_path / "store") == before
    Store.open(tmp_path / "store")
    go(written, tmp_path / "store", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_killed_between_the_two_renames(written: Path, tmp_path: Path) -> None:
    go(written, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "store").rename(tmp_path / f"{_prefix(tmp_path / 'store')}{dead.pid}.old")
    with pytest.raises(InputError, match="exists; choose another place"):
        go(written, tmp_path / "store")
    assert snapshot(tmp_path / "store") == before


def test_skip_bad(source: Callable[..., EpisodeSource], make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    good, broken, odd = make_episode(0, 5), make_episode(1, 6), make_episode(2, 4)
    broken.actions[2, 1] = np.nan
    odd.observations["proprio"] = odd.observations["proprio"][:, :3]
    with pytest.raises(InputError, match="made #1: action is not finite at step 2"):
        go(source([good, broken, odd]), tmp_path / "store")
    assert not list(tmp_path.iterdir())
    conversion = go(source([good, broken, odd, good]), tmp_path / "store", skip_bad=True)
    assert conversion.store.counts == {"episodes": 2, "steps": 12, "transitions": 10, "skipped": 2}
    assert conversion.skipped[1] == "made #2: proprio is (3,) a step, (5,) in the episodes before it"
    with pytest.raises(InputError, match="no usable episode in split 'train'; made #1"):
        go(source([broken]), tmp_path / "other", skip_bad=True)


def test_cameras_that_come_and_go(
    source: Callable[..., EpisodeSource], make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    whole, partial = make_episode(0, 5), make_episode(1, 6)
    del partial.observations["image_wrist"]
    for order in ([whole, partial, whole], [partial, whole]):
        conversion = go(source(order), tmp_path / "store", overwrite=True)
        assert conversion.dropped_cameras == ["image_wrist"]
        assert conversion.store.observation_keys == ["image_primary", "proprio", "state"]
        assert not (conversion.store.path / "data/image_wrist").exists()
    with pytest.raises(InputError, match="made #1: has no image_wrist"):
        go(source([whole, partial]), tmp_path / "other", cameras=("image_primary", "image_wrist"))
    store = go(source([partial, whole]), tmp_path / "other", cameras=("image_primary",)).store
    assert store.observation_keys == ["image_primary", "proprio", "state"]
    dropped = replace(partial, observations={k: v for k, v in partial.observations.items() if k != "proprio"})
    with pytest.raises(InputError, match="made #1: has action, reward"):
        go(source([whole, dropped]), tmp_path / "third")


def test_bad_conventions(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="success_steps is 0"):
        go(written, tmp_path / "store", success_steps=0)


def remove_attribute(folder: Path) -> None:
    text = (folder / ".zattrs").read_text()
    (folder / ".zattrs").write_text(text.replace('"counts"', '"count"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such training store"),
        (lambda f: (f / ".zattrs").unlink(), "not a training store of robot-rl"),
        (lambda f: (f / ".zattrs").write_text('{"robot_rl_store": 99}'), "a store of version 99"),
        (remove_attribute, "lacks counts"),
        (lambda f: shutil.rmtree(f / "data"), "data/action: missing from the store"),
        (lambda f: (f / "data/proprio/0.0").write_bytes(b"short"), "has 5 of"),
        (lambda f: (f / "data/image_primary/0.0.0.0").unlink(), "has 0 of"),
        (lambda f: (f / "data/reward/.zarray").write_text("{"), "reward/.zarray: damaged"),
        (lambda f: (f / "data/reward/.zarray").write_text(zarr_text(compressor={"id": "zstd"})), "is compressed"),
        (lambda f: shutil.copytree(f / "meta/success", f / "data/success"), "data/success: has 12 rows"),
        (lambda f: shutil.rmtree(f / "meta/instruction_embeddings"), "instruction_embeddings: missing"),
    ],
)
def test_damaged_stores(made_store: Store, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    shutil.copytree(made_store.path, tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=message) as caught:
        Store.open(tmp_path / "store")
    assert "\n" not in str(caught.value)


def zarr_text(**change: Any) -> str:
    plain = {"shape": [3], "chunks": [3], "dtype": "<f4", "compressor": None, "filters": None, "order": "C"}
    return json.dumps({**plain, **change})
