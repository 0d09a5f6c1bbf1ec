"""`robot-rl collect`: experts fill a training store, in parallel, and a killed recording goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data import Store
from robot_rl.cli import main

ARGUMENTS = ["--env", "tabletop/reach,tabletop/lift", "--demonstrations", "20", "--qualities", "1", "0", "--seed", "3"]


def test_a_recording_is_killed_and_goes_on(tmp_path: Path) -> None:
    assert main(["collect", "--out", str(tmp_path / "whole"), *ARGUMENTS, "--workers", "1"]) == 0
    whole = Store.open(tmp_path / "whole")
    assert whole.length == 40
    assert {text.split()[0] for text in whole.instructions} >= {"lift"}
    assert 0 < (whole.success == 1).sum() < 40
    script = f"from robot_rl.cli import main; main({['collect', '--out', str(tmp_path / 'killed'), *ARGUMENTS]!r})"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stderr=subprocess.DEVNULL)
    commit, deadline = tmp_path / ".killed.partial" / "meta" / ".commit", time.monotonic() + 90
    while not (commit.exists() and np.fromfile(commit, np.uint64).max(initial=0)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert main(["collect", "--out", str(tmp_path / "killed"), *ARGUMENTS]) == 0
    again = Store.open(tmp_path / "killed")
    assert again.length == 40
    for first, second in zip(whole.read(range(40)), again.read(range(40)), strict=True):
        assert (first.instruction, first.success) == (second.instruction, second.success)
        np.testing.assert_array_equal(first.actions, second.actions)
        np.testing.assert_array_equal(first.observations["state"], second.observations["state"])


def test_mistakes(tmp_path: Path, capsys) -> None:
    for arguments, text in [
        (["--env", "tabletop/fly"], "no such task; it has reach"),
        (["--qualities", "2"], "each must be between 0 and 1"),
        (["--demonstrations", "0"], "must be 1 or more"),
    ]:
        assert main(["collect", "--out", str(tmp_path / "x"), *arguments]) == 2
        assert text in capsys.readouterr().err
