"""A benchmark through real processes: its plan, its numbers, and that neither workers nor Ray nor kills change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from robot_rl.benchmark import read_plan

PLAN: dict[str, Any] = {
    "suites": {"table": {"env": "tabletop/reach", "critic": "c", "policies": {"a": "runs/a", "b": "runs/b"}}},
    "methods": {"steered": "steered", "V-GPS 50": "vgps?num_samples=50"},
    "episodes": 7,
}


def written(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values) if not isinstance(values, str) else values)
    return path


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    assert list(plan.methods) == ["base", "steered", "V-GPS 50"]
    assert plan.methods["V-GPS 50"].config.num_samples == 50
    assert (plan.episodes, plan.seed) == (7, 4_000_000)
    assert json.loads(json.dumps(plan.to_json()))["methods"]["V-GPS 50"]["num_samples"] == 50
    part = plan.only((), ("b",), ("V-GPS 50",))
    assert list(part.suites["table"].policies) == ["b"]
    assert list(part.methods) == ["base", "V-GPS 50"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("{", "not a readable plan"),
        ([], "no JSON object"),
        ({"suites": {}}, "suites must be a JSON object with an entry"),
        ({"methods": {}}, "methods must be"),
        ({"methods": {"x": "magic"}}, "no such way of steering"),
        ({"episodes": 0}, "episodes is 0"),
        ({"seed": "one"}, "seed is 'one'"),
        ({"repeats": 3}, "unknown field 'repeats'; there are suites"),
        ({"suites": {"table": {"env": "tabletop"}}}, "suite 'table' lacks 'critic'"),
        ({"suites": {"a/b": {}}}, "without a slash"),
    ],
)
def test_a_wrong_plan_is_told_by_its_field(tmp_path: Path, change: Any, text: str) -> None:
    values = {**PLAN, **change} if isinstance(change, dict) else change
    with pytest.raises(InputError, match=text):
        read_plan(written(tmp_path, values))


def test_what_is_not_in_the_plan_cannot_be_chosen(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    for chosen, text in [
        ((("x",), (), ()), "--suites x"),
        (((), ("x",), ()), "--policies x"),
        (((), (), ("x",)), "--methods x"),
    ]:
        with pytest.raises(InputError, match=text):
            plan.only(*chosen)
