"""convert, killed or failing at any moment: what was there is never destroyed, and what was done is not lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import (
    ConversionConfig,
    Episode,
    InputError,
    LanguageEncoder,
    Preparation,
    RewardConfig,
    Store,
    convert,
    open_dataset,
    relabel,
)
from data.atomic import _prefix
from tests.data.stores import go, snapshot, source

ROOT = Path(__file__).parents[2]


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
        if done == 4:
            shutil.copytree(made_store.path, tmp_path / "store")

    with pytest.raises(InputError, match="exists; choose another place"):
        go(written, tmp_path / "store", discount=0.5, progress=progress)
    assert snapshot(tmp_path / "store") == snapshot(made_store.path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_store_and_can_go_on(
    written: Path, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(written, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    write, calls = os.pwrite, 0

    def fail(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise error
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fail)
        with pytest.raises(type(error)):
            go(written, tmp_path / "store", overwrite=True, discount=0.5)
    assert snapshot(tmp_path / "store") == before
    made = go(written, tmp_path / "store", overwrite=True, discount=0.5)
    assert 0 < made.resumed < 12
    assert made.store.counts["episodes"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


KILLED = """
import os, signal, sys
from data import ConversionConfig, LanguageEncoder, Preparation, RewardConfig, convert, open_dataset
def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    config = ConversionConfig(Preparation(storage=sys.argv[5]), RewardConfig(discount=0.5))
    convert(open_dataset(sys.argv[1]), sys.argv[2], config, overwrite=True, language=LanguageEncoder("dataset"), progress=progress,
            workers=int(sys.argv[4]))
"""


@pytest.mark.parametrize(("workers", "storage"), [(0, "raw"), (1, "jpeg")])
def test_sigkill_leaves_the_old_store_and_loses_nothing(written: Path, tmp_path: Path, workers: int, storage: str) -> None:
    """Killed twice, the same call gives the bytes of a run that never was."""
    go(written, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    (tmp_path / "convert.py").write_text(KILLED)

    def run(at: int) -> int:
        command = [
            sys.executable,
            str(tmp_path / "convert.py"),
            str(written),
            str(tmp_path / "store"),
            str(at),
            str(workers),
            storage,
        ]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode

    for at in (4, 8):
        assert run(at) == -signal.SIGKILL
        assert snapshot(tmp_path / "store") == before
    assert run(-1) == 0
    config = ConversionConfig(Preparation(storage=storage), RewardConfig(discount=0.5))
    whole = convert(open_dataset(written), tmp_path / "whole", config, language=LanguageEncoder("dataset")).store
    resumed = Store.open(tmp_path / "store")
    resumed.verify()

    assert snapshot(resumed.path) == snapshot(whole.path)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "whole", "convert.py"}


def test_a_resumed_conversion_gives_the_same_bytes_whatever_the_order_of_the_keys(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    def turned(episode: Episode) -> Episode:
        return replace(episode, observations=dict(sorted(episode.observations.items(), reverse=True)))

    episodes = source([turned(make_episode(seed, 5)) for seed in range(8)])

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(episodes, tmp_path / "store", progress=stop)
    assert go(episodes, tmp_path / "store").resumed == 4
    go(episodes, tmp_path / "whole")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")


def test_a_store_that_was_labelled_meanwhile_is_converted_from_the_start(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    store = go(source([make_episode(seed, 5) for seed in range(8)]), tmp_path / "store").store

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(store, tmp_path / "copy", progress=stop)
    labelled = relabel(store.path, np.zeros(8, np.int8))
    made = go(labelled, tmp_path / "copy")
    assert made.resumed == 0
    assert not made.store.success.any()


def test_other_settings_start_over(written: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(written, tmp_path / "store", progress=stop)
    assert go(written, tmp_path / "store", discount=0.5).resumed == 0


def test_two_conversions_to_one_place(written: Path, tmp_path: Path) -> None:
    def second(done: int, total: int | None) -> None:
        with pytest.raises(InputError, match="another process is writing here"):
            go(written, tmp_path / "store")

    assert go(written, tmp_path / "store", progress=second).store.counts["episodes"] == 12


def test_killed_between_the_two_renames(written: Path, tmp_path: Path) -> None:
    go(written, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "store").rename(tmp_path / f"{_prefix(tmp_path / 'store')}{dead.pid}.old")
    with pytest.raises(InputError, match="exists; choose another place"):
        go(written, tmp_path / "store")
    assert snapshot(tmp_path / "store") == before
