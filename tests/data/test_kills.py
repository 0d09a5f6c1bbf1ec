"""No moment to die is a bad one: a writer that ends before any of its writes, or in the midst of one, loses nothing and can go on.

A child process counts every call that changes the disk and ends, without a word, before its n-th; the default run draws some n, the
slow one takes all.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import (
    ConversionConfig,
    EpisodeList,
    InputError,
    LanguageEncoder,
    Preparation,
    ReplayWriter,
    RewardConfig,
    Store,
    atomic,
    convert,
    relabel,
)
from tests.conftest import ACTION, make_episodes
from tests.data.test_replay import at, language

CALLS = ("pwrite", "truncate", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "sync")
DRAWN = 6
EPISODES = make_episodes(3)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.store.array.CHUNK_BYTES", 16384)
    monkeypatch.setattr("data.store.array.PAGE", 4096)
    # A process that dies takes no page of the system's with it.
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("os.sync", lambda: None)


class Shared:
    """Two numbers that outlive the child: how many calls it made, and how many steps it knows to be written."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def add(self, index: int) -> int:
        value = self[index] + 1
        self._memory[8 * index : 8 * index + 8] = struct.pack("<Q", value)
        return value

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("<Q", self._memory, 8 * index)[0])


def dying(act: Callable[[Shared], Any], at_call: int) -> Shared:
    """Do it in a child that ends before its call number `at_call`; every other one ends after half of what it was to write."""
    shared, child = Shared(), os.fork()
    if child == 0:
        signal.alarm(30)

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                if shared.add(0) == at_call:
                    if call is pwrite and at_call % 2:
                        file, data, offset = arguments
                        pwrite(file, data[: len(data) // 2], offset)
                    os._exit(9)
                return call(*arguments, **options)

            return wrapped

        pwrite = os.pwrite
        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        atomic._exchange, Path.write_text = deadly(atomic._exchange), deadly(Path.write_text)  # type: ignore[method-assign]
        try:
            act(shared)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (9 if at_call <= shared[0] else 0)
    return shared


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def moments(request: pytest.FixtureRequest) -> Callable[[int], list[int]]:
    """Of so many calls, those to die before; the first and the last ones are always among them."""

    def draw(count: int) -> list[int]:
        drawn = range(1, count + 1) if request.param == "all" else random.Random(7).sample(range(2, count - 1), DRAWN)
        return sorted({1, count - 1, count, *drawn})

    return draw


def content(folder: Path) -> dict[str, bytes]:
    """All but what says when, not what."""
    left_out = (".commit", ".lock", ".conversion.json", ".skipped.jsonl")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".partial")}


@pytest.mark.parametrize("jpeg", [False, True])
def test_replay(tmp_path: Path, jpeg: bool, moments: Callable[[int], list[int]]) -> None:
    def play(out: Path, shared: Shared) -> None:
        for until in (1, 3):  # closed, and opened again
            with ReplayWriter(out, ACTION, language=language(), jpeg=jpeg) as writer:
                while writer.episodes < until:
                    episode = EPISODES[writer.episodes]
                    writer.begin(at(episode, 0), episode.instruction)
                    for step in range(len(episode)):
                        last, success = step == len(episode) - 1, bool(episode.success)
                        ends = {"terminated": last and success, "truncated": last, "success": success}
                        writer.step(episode.actions[step], at(episode, step + 1), **ends)
                        shared.add(1)

    def check(store: Store) -> int:
        """How many episodes are not whole."""
        cut, ends = 0, [0, *store.episode_ends.tolist()]
        for index, episode in enumerate(EPISODES[: store.length]):
            rows = np.arange(ends[index], ends[index + 1])
            whole = len(rows) == len(episode) + 1
            cut += not whole
            for key in ("proprio", "state") if jpeg else ("proprio", "state", "image_primary"):
                np.testing.assert_array_equal(store.gather(key, rows), episode.observations[key][: len(rows)])
            assert store.gather("image_primary", rows).shape == (len(rows), 16, 16, 3)
            np.testing.assert_array_equal(store.gather("action", rows[:-1]), episode.actions[: len(rows) - 1])
            expected = RewardConfig().label(len(rows) - 1, whole and bool(episode.success))
            for values, wanted in zip(store.labels(), expected, strict=True):
                np.testing.assert_array_equal(values[rows], np.append(wanted, np.float32(0)))
        return cut

    out = tmp_path / "online"
    calls = dying(lambda shared: play(out, shared), 10**9)[0]
    assert check(Store.open(out)) == 0
    whole = content(out)
    shutil.rmtree(out)
    for moment in moments(calls):
        sure = dying(lambda shared: play(out, shared), moment)[1]
        if sure:
            left = Store.open(out)
            assert sure <= left.counts["transitions"] <= sure + 1
            assert check(left) <= 1
        play(out, Shared())
        again = Store.open(out)
        again.verify()
        assert (again.length, again.running) == (3, False)
        if not check(again):
            assert content(out) == whole
        shutil.rmtree(out)


def test_convert(tmp_path: Path, moments: Callable[[int], list[int]]) -> None:
    """Over an old store, with a bad episode and a camera that goes."""
    bad = replace(EPISODES[1], actions=EPISODES[1].actions * np.float32(np.nan), source="a bad one")
    blind = replace(make_episodes(9)[8], source="blind").without_images()
    episodes = [*EPISODES, bad, *make_episodes(8)[4:], blind]
    source = EpisodeList("made", ACTION, episodes)

    def make(out: Path, jpeg: bool = False) -> None:
        config = ConversionConfig(Preparation(storage="jpeg" if jpeg else "raw"))
        convert(source, out, config, language=LanguageEncoder("dataset"), overwrite=True, skip_bad=True)

    old = convert(EpisodeList("old", ACTION, EPISODES), tmp_path / "old", language=LanguageEncoder("dataset")).store.path
    for jpeg in (False, True):
        (tmp_path / "in").mkdir()
        shutil.copytree(old, tmp_path / "in/store")
        calls = dying(lambda shared, jpeg=jpeg: make(tmp_path / "in/store", jpeg), 10**9)[0]
        whole = content(tmp_path / "in/store")
        assert Store.open(tmp_path / "in/store").counts["episodes"] == 8
        shutil.rmtree(tmp_path / "in")
        for moment in moments(calls):
            out = tmp_path / "in/store"
            out.parent.mkdir()
            shutil.copytree(old, out)
            dying(lambda shared, out=out, jpeg=jpeg: make(out, jpeg), moment)
            Store.open(out).verify()
            assert content(out) in (content(old), whole)
            make(out, jpeg)
            Store.open(out).verify()
            assert content(out) == whole
            assert [path.name for path in out.parent.iterdir()] == ["store"]
            shutil.rmtree(out.parent)


def test_relabel(tmp_path: Path, moments: Callable[[int], list[int]]) -> None:
    config, language = ConversionConfig(), LanguageEncoder("dataset")
    old = convert(EpisodeList("old", ACTION, EPISODES), tmp_path / "old", config, language=language).store.path
    success, achieved = np.array([1, 0, -1], np.int8), np.array([-1, 0, -1])

    def label(out: Path) -> None:
        relabel(out, success, achieved=achieved)

    (tmp_path / "in").mkdir()
    out = tmp_path / "in/store"
    shutil.copytree(old, out)
    calls = dying(lambda shared: label(out), 10**9)[0]
    whole = content(out)
    shutil.rmtree(out)
    for moment in moments(calls):
        shutil.copytree(old, out)
        dying(lambda shared: label(out), moment)
        Store.open(out).verify()
        assert content(out) in (content(old), whole)
        if content(out) != whole:
            label(out)
        Store.open(out).verify()
        assert content(out) == whole
        with pytest.raises(InputError, match="success must be"):
            relabel(out, success[:2])  # which also clears away what the dead left
        assert len(list(out.parent.iterdir())) <= 2
        shutil.rmtree(out)
