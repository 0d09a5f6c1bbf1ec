"""The demo from end to end, in a small size, killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robot_rl.cli import main

SMALL = ["--demonstrations", "3", "--policy-steps", "60", "--critic-steps", "60", "--episodes", "2"]


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli", "demo", "--out", str(out), *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(out: Path) -> dict:
    process = start(out)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert "Tabletop-Stack-v0" in shown
    values = json.loads((out / "results.json").read_text())
    return {name: values[name] for name in ("arms", "tasks", "steered_vs_base", "aggregate")}


def test_the_demo_makes_its_table_and_its_page(tmp_path, capsys):
    values = finish(tmp_path / "demo")
    assert set(values["arms"]) == {"base", "steered", "random"}
    assert len(values["tasks"]) == 6
    page = (tmp_path / "demo" / "report.html").read_text()
    for needed in ("<table", "<svg", "data:video/mp4;base64,", "What the critic thought"):
        assert needed in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    started = time.perf_counter()
    assert finish(tmp_path / "demo") == values
    assert time.perf_counter() - started < 30, "a finished demo has only its table to print"
    assert main(["demo", "--out", str(tmp_path / "demo"), *SMALL[:-1], "3"]) == 2  # another demo does not take its place
    assert "episodes 2, not 3" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_demo_killed_at_every_stage_ends_like_one_that_was_not(tmp_path):
    whole, out = finish(tmp_path / "whole"), tmp_path / "killed"
    stages = ("tabletop_mixed", "store", "policy", "critic", "evaluation.journal.jsonl")
    for stage in stages:
        process = start(out)
        while not (out / stage).exists():
            time.sleep(0.02)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert finish(out) == whole
