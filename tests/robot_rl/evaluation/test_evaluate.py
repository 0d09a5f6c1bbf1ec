"""Evaluations with real processes: any number of workers, kills and resumes give one answer."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
from point_mass import Make

from data.errors import InputError
from robot_rl.evaluation import (
    Contest,
    EvaluationSettings,
    PairedCounts,
    evaluate,
    local_pool,
    mcnemar_p,
    results_table,
    run_block,
    run_contests,
)
from robot_rl.evaluation.evaluate import INTERIM_LEVEL
from robot_rl.evaluation.recording import Wanted, record_episodes

ENVS = ["test/PointMass-v0", "test/PointMassFar-v0"]
ARMS = {"base": Make(0.8), "steered": Make(0.05), "random": Make(0.8)}


def untimed(result: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in result.items() if not key.endswith("_seconds")}, sort_keys=True)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return evaluate(ARMS, ENVS, 30, seed=7, workers=1).to_json()


def test_result_structure(reference: dict[str, Any]) -> None:
    assert json.loads(json.dumps(reference)) == reference
    assert list(reference["arms"]) == ["base", "steered", "random"]
    for scope, episodes in [(reference, 60), *((task, 30) for task in reference["tasks"].values())]:
        for arm in scope["arms"].values():
            assert arm["episodes"] == episodes == len(arm["outcomes"])
            assert arm["successes"] == sum(o["success"] for o in arm["outcomes"])
            assert arm["interval"][0] <= arm["success_rate"] <= arm["interval"][1]
        steered = scope["steered_vs_base"]
        assert steered["difference"] == pytest.approx(
            scope["arms"]["steered"]["success_rate"] - scope["arms"]["base"]["success_rate"]
        )
        assert steered["difference_interval"][0] <= steered["difference"] <= steered["difference_interval"][1]
        assert 0 <= steered["mcnemar_p"] <= 1
        assert "random_vs_base" in scope
    assert reference["steered_vs_base"]["difference"] > 0.2  # less noise does find the goal more often
    assert [o["seed"] for o in reference["tasks"][ENVS[1]]["arms"]["random"]["outcomes"]] == list(range(7, 37))
    aggregate = reference["aggregate"]["steered_vs_base"]
    assert aggregate["mean_difference"] == pytest.approx(reference["steered_vs_base"]["difference"])
    assert reference["settings"]["episodes"] == 30
    assert reference["versions"]["torch"]
    # Arms have random numbers of their own: the same policy under another name does not repeat itself.
    assert reference["arms"]["random"]["outcomes"] != reference["arms"]["base"]["outcomes"]


def test_workers_do_not_change_results(reference: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(ARMS, ENVS, 30, seed=7, workers=2, on_block=lambda done, total, *_: seen.append((done, total)))
    assert untimed(result.to_json()) == untimed(reference)
    assert seen == [(done, 12) for done in range(1, 13)]
    assert not multiprocessing.active_children()


def test_a_counted_block_can_be_seen_again(reference: dict[str, Any]) -> None:
    settings = EvaluationSettings(tuple(ENVS), 30, 7)
    block = next(b for b in settings.blocks(["base"]) if b.first == 25)
    again = run_block(Make(0.8)(), settings, block, record=range(7, 37))
    counted = reference["tasks"][ENVS[0]]["arms"]["base"]["outcomes"][25:]
    assert [(o.seed, o.success, o.steps) for o in again] == [(o["seed"], o["success"], o["steps"]) for o in counted]
    assert all(o.frames is not None and len(o.frames) == o.steps + 1 for o in again)


SLOW: dict[str, Any] = {"delay": 0.001}
SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from point_mass import Make
from robot_rl.evaluation import evaluate

if __name__ == "__main__":
    evaluate({arms!r}, {envs!r}, 30, seed=7, workers=2, env_kwargs={kwargs!r}, journal=Path({journal!r}))
"""


@pytest.fixture
def run(tmp_path: Path) -> subprocess.Popen[str]:
    """A journaled evaluation in a process group of its own, with two workers and two completed blocks."""
    journal = tmp_path / "j.jsonl"
    script = tmp_path / "run.py"
    here = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(here=here, arms=ARMS, envs=ENVS, kwargs=SLOW, journal=str(journal)))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_lines(journal, 3)
    return process


def wait_for_lines(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kill_and_resume(run: subprocess.Popen[str], reference: dict[str, Any], tmp_path: Path) -> None:
    workers = children(run.pid)
    run.kill()
    run.wait()
    wait_until_gone(workers)  # orphans leave by themselves
    journal = tmp_path / "j.jsonl"
    survived = journal.read_bytes()
    done = survived.count(b"\n") - 1
    assert 2 <= done < 12
    journal.write_bytes(survived + b'{"block": {"arm": "ba')  # as if it had been writing

    ran: list[int] = []
    resumed = evaluate(ARMS, ENVS, 30, 7, workers=1, env_kwargs=SLOW, journal=journal, on_block=lambda at, *_: ran.append(at))
    assert ran == list(range(done + 1, 13))
    assert journal.read_bytes().startswith(survived)
    # The reference ran in one go and without a delay, which is the only difference.
    assert untimed({**resumed.to_json(), "settings": None}) == untimed({**reference, "settings": None})


def test_keyboard_interrupt_ends_the_workers(run: subprocess.Popen[str]) -> None:
    workers = children(run.pid)
    assert len(workers) >= 2
    os.killpg(run.pid, signal.SIGINT)  # what Ctrl-C does
    assert run.wait(20) != 0
    wait_until_gone(workers)
    assert run.stderr is not None
    text = run.stderr.read()
    assert text.count("Traceback") == 1  # the parent's; the workers say nothing
    assert text.rstrip().endswith("KeyboardInterrupt")


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(InputError, match=r"killed by SIGKILL.*fewer workers.*base in test/PointMass-v0, episodes 0 to 1"):
        evaluate({"base": Make(0.3, "kill")}, ENVS[:1], 2, seed=0, workers=2)
    assert not multiprocessing.active_children()


def test_a_defect_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect of ours"):
        evaluate({"base": Make(0.3, "raise")}, ENVS[:1], 2, seed=0, workers=2)


def test_journal_is_used_and_guarded(tmp_path: Path) -> None:
    journal = tmp_path / "runs" / "j.jsonl"

    def run(seed: int = 0, noise: float = 0.3, **kwargs: Any) -> dict[str, Any]:
        return evaluate({"base": Make(noise)}, ENVS[:1], 30, seed, workers=1, journal=journal, **kwargs).to_json()

    first = run()
    ran: list[Any] = []
    assert untimed(run(on_block=lambda *_: ran.append(1))) == untimed(first)
    assert not ran
    with pytest.raises(InputError, match=r"other settings: settings, seed was 0, is 1. Write this one to another"):
        run(seed=1)
    with pytest.raises(InputError, match=r"other settings: arms, base was .*0\.3.* is .*0\.1"):
        run(noise=0.1)
    with pytest.raises(InputError, match="other settings: provenance, digest was not there"):
        run(provenance={"digest": "abc"})

    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], b"{broken", *lines[2:]]))
    with pytest.raises(InputError, match="line 2 is damaged, which holds a block; delete the line to run it again"):
        run()
    for was, now in (
        (b'"success": false', b'"success": null'),
        (b'"success": true', b'"success": null'),
        (b'"count": 25', b'"count": 2'),
    ):
        journal.write_bytes(b"\n".join([lines[0], lines[1].replace(was, now), *lines[2:]]))
        with pytest.raises(InputError, match="line 2 is damaged, which holds a block"):
            run()
    journal.write_bytes(b"\n".join([b"{broken", *lines[1:]]))
    with pytest.raises(InputError, match="line 1 is damaged, which holds the settings; choose another path"):
        run()
    for foreign in (b'{"format": "other"}\n', b"a picture of my cat"):
        journal.write_bytes(foreign)
        with pytest.raises(InputError, match="not an evaluation journal"):
            run()
        assert journal.read_bytes() == foreign
    journal.write_bytes(lines[0][:40])  # killed while it wrote the header
    assert untimed(run()) == untimed(first)


def test_two_evaluations_cannot_share_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"

    def nested(*_: Any) -> None:
        with pytest.raises(InputError, match="another evaluation is writing"):
            evaluate({"base": Make(0.3)}, ENVS[:1], 2, seed=0, workers=1, journal=journal)

    evaluate({"base": Make(0.3)}, ENVS[:1], 2, seed=0, workers=1, journal=journal, on_block=nested)


def test_users_mistakes() -> None:
    for arms, envs, episodes, workers in [
        ({}, ENVS, 5, 1),
        (ARMS, [], 5, 1),
        (ARMS, ENVS[:1] * 2, 5, 1),
        (ARMS, ENVS, 0, 1),
        (ARMS, ENVS, 1, 0),
    ]:
        with pytest.raises(InputError, match=r"nothing to evaluate|must be at least 1"):
            evaluate(arms, envs, episodes, seed=0, workers=workers)
    with pytest.raises(InputError, match="no such environment"):
        evaluate(ARMS, ["test/Nowhere-v0"], 1, seed=0, workers=2)


def test_errors_are_counted_and_named() -> None:
    result = evaluate({"base": Make(0.3)}, ENVS[:1], 10, seed=0, workers=1, env_kwargs={"crash": "step"}).to_json()
    assert result["arms"]["base"]["errors"] == 1
    assert result["arms"]["base"]["outcomes"][3]["error"] == "step 0: RuntimeError: simulator exploded"
    assert "steered_vs_base" not in result


def test_table(reference: dict[str, Any]) -> None:
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(results_table(reference))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in [*ENVS, "all tasks", "steered", "\N{MINUS SIGN} base", "<0.001"]:
        assert word in text


@pytest.mark.parametrize(
    ("kind", "text", "workers"),
    [("segfault", "killed by SIGSEGV", 2), ("exit", "exited with code 5", 1), ("hang", "longer than 1 s", 2)],
)
def test_what_takes_its_process_down_is_a_named_failure(kind: str, text: str, workers: int) -> None:
    """Only the episode that does; the others of its block run again without it."""
    settings = EvaluationSettings((ENVS[0],), 6, 10, env_kwargs={"crash": kind})
    contest = Contest({"steered": Make(0.05)}, settings)
    episodes = run_contests({"": contest}, local_pool(workers, time_limit=1.0))[""].outcomes["steered"][ENVS[0]]
    assert [o.seed for o in episodes] == list(range(10, 16))
    assert [o.seed for o in episodes if o.error] == [13]
    assert text in str(episodes[3].error)
    assert not episodes[3].success
    assert any(o.success for o in episodes)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["segfault", "hang"])
def test_a_block_that_falls_is_not_recorded(kind: str) -> None:
    """Neither does it take the recording with it, nor hold it up; with one worker too."""
    contests = {
        name: Contest({"steered": Make(0.05)}, EvaluationSettings((ENVS[0],), episodes, 10, env_kwargs={"crash": kind}))
        for name, episodes in (("falls", 6), ("calm", 3))  # seed 13 is the one
    }
    wanted = [Wanted(name, "steered", ENVS[0], 11) for name in contests]
    assert [episode.contest for episode in record_episodes(contests, wanted, workers=1, time_limit=2.0)] == ["calm"]


def test_looks_in_between_hardly_decide_by_chance() -> None:
    """Equal arms in 30 cells, looked at after 25, 50 and 75 episodes: the level of the tests at the end is as good as kept."""
    rng, cells, level = np.random.default_rng(0), 30, 0.05 / 30
    decided = at_the_end = 0
    for _ in range(20_000):
        first, second = rng.random((2, 100)) < 0.5
        p = [mcnemar_p(PairedCounts.of(first[:n], second[:n])) for n in (25, 50, 75, 100)]
        decided += min(p[:3]) < INTERIM_LEVEL / cells
        at_the_end += p[3] < level
    assert decided <= 4  # 20,000 of level 0.001 / 30, three times, would be 2
    assert at_the_end + decided <= 20_000 * level


def test_early_stopping_decides_by_whole_rounds(tmp_path: Path) -> None:
    """Far better is decided after 50 episodes, equally good never; with any number of workers, and after any kill."""
    clear = Contest({"base": Make(0.8), "steered": Make(0.02)}, EvaluationSettings((ENVS[0],), 100, 0))
    open_ = Contest({"base": Make(0.3), "steered": Make(0.3)}, EvaluationSettings((ENVS[1],), 100, 0))
    contests = {"clear": clear, "open": open_}
    journal = tmp_path / "j.jsonl"
    seen: list[tuple[int, int]] = []
    first = run_contests(
        contests, local_pool(1), journal=journal, stop_early=True, on_block=lambda done, total, *_: seen.append((done, total))
    )
    counts = {name: len(result.outcomes["steered"][result.header["settings"]["env_ids"][0]]) for name, result in first.items()}
    assert counts == {"clear": 50, "open": 100}
    assert seen[-1] == (12, 12)
    other = run_contests(contests, local_pool(2), stop_early=True)
    assert [untimed(other[name].to_json()) for name in contests] == [untimed(first[name].to_json()) for name in contests]
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in (2, 5, 8):
        journal.write_bytes(b"".join(lines[:kept]))
        again = run_contests(contests, local_pool(1), journal=journal, stop_early=True)
        assert [untimed(again[name].to_json()) for name in contests] == [untimed(first[name].to_json()) for name in contests]
