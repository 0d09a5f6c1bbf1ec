"""`robot-rl bench serve` measures three servers on the same bytes."""

from __future__ import annotations

from robot_rl.runtime.bench import ECHO, EXCHANGE, OURS, bench


def test_the_bench_runs():
    values = bench(20)
    rows = {row["what"]: row for row in values["rows"]}
    assert set(rows) == {ECHO, EXCHANGE, OURS}
    assert 301_000 < values["request_bytes"] < 302_000
    assert rows[ECHO]["ratio_p50"] == 1
    # A tenth of what a robot would notice; the ratio itself is for a quiet machine.
    assert 0 < rows[OURS]["p50"] < 50
