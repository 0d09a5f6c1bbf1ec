"""A benchmark through real processes: its plan, its numbers, and that neither workers nor Ray nor kills change them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.source import EpisodeList
from data.store.conversion import convert
from policies.config import FlowConfig, GaussianConfig
from robot_rl.benchmark import BenchmarkPlan, BenchmarkResult, SuitePlan, read_elsewhere, read_plan, remarks, run_benchmark
from robot_rl.benchmark.failures import record_failures
from robot_rl.benchmark.report import write_benchmark_report
from robot_rl.benchmark.result import FORMAT
from robot_rl.collect import Demonstration, action_description, record
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.console import check_replaceable
from robot_rl.critic import CriticConfig
from robot_rl.evaluation import EpisodeOutcome, EvaluationResult, local_pool, ray_pool
from robot_rl.recipes import train_critic, train_policy
from robot_rl.steering import Method, parse_method
from sim import SUITES

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
        ({"methods": {"x": "magic"}}, "plan.json: method 'x': 'magic': no such way of steering"),
        ({"methods": {"x": "vgps?num_samples=-3"}}, "plan.json: method 'x': .*num.samples is -3"),
        ({"methods": {"x": "vgps?num_samples=3&num_samples=4"}}, "method 'x': .* gives an option twice"),
        ({"methods": {"x": 5}}, "method 'x' is 5; it must be a text"),
        ('{"suites": 1, "suites": 2}', "'suites' is there twice"),
        ({"suites": {"t": {"env": ["a"], "critic": "c", "policies": {"p": "p"}}}}, "env of suite 't' is .* must be a text"),
        ({"suites": {"t": {"env": "a", "critic": "c", "policies": {"p": ""}}}}, "policy 'p' of suite 't' is .* must be a text"),
        ({"methods": {"x": "base"}}, "method 'x': the policy alone always takes part"),
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
    with pytest.raises(InputError, match=r"--methods base: there is nothing to compare it with"):
        plan.only((), (), ("base", "base"))


METHODS = {"steered": "steered?num_samples=4", "chance": "random?num_samples=4", "voting": "robomonkey?num_samples=4"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkPlan:
    """Two untrained policies and a critic on the tabletop's state: hardly anything succeeds, everything runs."""
    folder = tmp_path_factory.mktemp("benchmark")
    episodes = [record(Demonstration(SUITES["tabletop"].tasks["reach"], 1.0, seed, cameras=())) for seed in range(3)]
    source = EpisodeList("reach", action_description(SUITES["tabletop"].tasks["reach"]), episodes)
    store = convert(source, folder / "store").store.path
    training = TrainingConfig(steps=2, batch_size=8)
    train_critic(store, folder / "critic", CriticConfig(hidden=16, members=2), training)
    for name, config in (("gaussian", GaussianConfig(hidden=16)), ("flow", FlowConfig(hidden=16, inference_steps=2))):
        train_policy(store, folder / name, config, CloningConfig(), training)
    policies = {name: str(folder / name) for name in ("gaussian", "flow")}
    suite = SuitePlan("tabletop/reach,tabletop/push", str(folder / "critic"), policies)
    return BenchmarkPlan({"table": suite}, {"base": Method("base")} | {k: parse_method(m) for k, m in METHODS.items()}, 2, 5)


def untimed(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: untimed(value) for key, value in values.items() if not key.endswith("_seconds")}
    return [untimed(value) for value in values] if isinstance(values, list) else values


def test_neither_workers_nor_ray_nor_kills_change_the_numbers(plan: BenchmarkPlan, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    values = run_benchmark(plan, local_pool(1), journal=journal).to_json()
    assert json.loads(json.dumps(values)) == values
    expected = untimed(values)
    for name in METHODS:
        method = values["methods"][name]
        assert [(cell["policy"], cell["env_id"]) for cell in method["cells"]] == [
            (policy, SUITES["tabletop"].tasks[task]) for policy in ("gaussian", "flow") for task in ("reach", "push")
        ]
        assert all(cell["episodes"] == 2 for cell in method["cells"])
    assert set(values["first_vs"]) == {"chance", "voting"}
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 2 * 4
    journal.write_bytes(b"".join(lines[:7]))
    assert untimed(run_benchmark(plan, local_pool(2), journal=journal).to_json()) == expected
    assert untimed(run_benchmark(plan, ray_pool(2, "local")).to_json()) == expected


def test_parts_that_ran_elsewhere_make_the_whole(plan: BenchmarkPlan, tmp_path: Path) -> None:
    def kept(name: str, values: Any) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(values))
        return tmp_path / name

    whole = run_benchmark(plan, local_pool(1)).to_json()
    part = run_benchmark(plan.only((), ("flow",), ()), local_pool(1)).to_json()
    flow = kept("flow", part)
    found = read_elsewhere([flow], plan)
    assert list(found) == [("table", "flow")]
    result = run_benchmark(plan, local_pool(1), journal=tmp_path / "journal.jsonl", elsewhere=found)
    assert untimed(result.to_json()) == untimed(whole)
    assert b"flow" not in (tmp_path / "journal.jsonl").read_bytes()
    assert {failure.policy for failure in record_failures(result, 1, workers=1, elsewhere=found)} == {"gaussian"}
    # All of it, where neither policies nor critic are.
    moved = replace(plan, suites={"table": replace(plan.suites["table"], critic="nowhere")})
    assert untimed(run_benchmark(moved, local_pool(1), elsewhere=read_elsewhere([kept("whole", whole)], moved)).to_json()) == {
        **untimed(whole),
        "plan": json.loads(json.dumps(moved.to_json())),
    }
    # A critic that was trained again in between is another one, whatever it is called.
    again = json.loads(json.dumps(part))
    again["suites"]["table"]["flow"]["provenance"]["critic"] = "0" * 16
    with pytest.raises(InputError, match=r"the critic .* was not the same in table/gaussian and table/flow"):
        run_benchmark(plan, local_pool(1), elsewhere=read_elsewhere([kept("again", again)], plan))
    other = {**plan.methods, "steered": parse_method("steered?num_samples=9")}
    for folders, wanted, text in [
        ([flow, flow], plan, "has steered of flow in table, as another"),
        ([flow], replace(plan, episodes=3), "ran with episodes 2, the plan says 3"),
        ([flow], replace(plan, methods=other), "method 'steered' had other settings; give it another name"),
        (
            [flow],
            replace(plan, suites={"table": replace(plan.suites["table"], env="tabletop")}),
            "'table' ran in tabletop/reach,",
        ),
        ([flow], plan.only((), ("gaussian",), ()), "has table/flow, and none of table/gaussian; see --suites"),
        ([tmp_path / "none"], plan, "not the results of a benchmark .No such file"),
        ([kept("cut", {**part, "suites": {"table": {"flow": {}}}})], plan, "not the results of a benchmark .it has no"),
        ([kept("old", {**part, "format": "robot-rl benchmark 0"})], plan, "of this version"),
    ]:
        with pytest.raises(InputError, match=text):
            read_elsewhere(folders, wanted)


def test_methods_are_added_to_what_has_run(plan: BenchmarkPlan, tmp_path: Path) -> None:
    suite = replace(plan.suites["table"], env="tabletop/reach")
    plan = replace(plan, suites={"table": suite}).only((), ("flow",), ())
    reach = SUITES["tabletop"].tasks["reach"]

    def ran(name: str, *methods: str, change: Any = None, **options: Any) -> Path:
        values = run_benchmark(plan.only((), (), methods), local_pool(1), **options).to_json()
        if change:
            change(values["suites"]["table"]["flow"])
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(values))
        return tmp_path / name

    whole = untimed(run_benchmark(plan, local_pool(1)).to_json())
    chance = ran("chance", "chance")
    journal = tmp_path / "journal.jsonl"
    found = read_elsewhere([chance], plan)
    result = run_benchmark(plan, local_pool(1), journal=journal, elsewhere=found)
    assert untimed(result.to_json()) == whole
    assert {json.loads(line)["block"]["arm"] for line in journal.read_bytes().splitlines()[1:]} == {"steered", "voting"}
    (failure,) = record_failures(result, 1, workers=1, elsewhere=found)
    assert (failure.method, failure.failed.seed) == ("steered", failure.base.seed)
    # Whichever came first, and none of it here.
    parts = [ran("voting", "voting"), chance, ran("steered", "steered")]
    assert untimed(run_benchmark(plan, local_pool(1), elsewhere=read_elsewhere(parts, plan)).to_json()) == whole
    assert record_failures(result, 1, workers=1, elsewhere=read_elsewhere(parts, plan)) == []

    def trained_again(contest: Any) -> None:
        contest["provenance"]["policy"] = "0" * 16

    def newer(contest: Any) -> None:
        contest["versions"]["torch"] = "99"

    def ended_early(contest: Any) -> None:
        for arm in contest["tasks"][reach]["arms"].values():
            del arm["outcomes"][1:]

    def luckier(contest: Any) -> None:
        outcome = contest["tasks"][reach]["arms"]["base"]["outcomes"][1]
        outcome["success"] = not outcome["success"]

    for change, text in (
        (trained_again, "flow in table ran elsewhere with another policy or critic"),
        (newer, "flow in table ran elsewhere with other versions"),
        (ended_early, "flow in table ended early in Tabletop-Reach-v0 elsewhere; methods cannot be added"),
        (luckier, "flow in table acted otherwise alone than in another of the runs"),
    ):
        folder = ran(change.__name__, "voting", change=change)
        with pytest.raises(InputError, match=text):
            read_elsewhere([chance, folder], plan)
        if change is not luckier:
            with pytest.raises(InputError, match=text):
                run_benchmark(plan, local_pool(1), elsewhere=read_elsewhere([folder], plan))


def test_policies_that_do_not_fit_are_named_before_anything_runs(plan: BenchmarkPlan) -> None:
    suite = plan.suites["table"]
    other = replace(plan, suites={"table": replace(suite, policies={"ghost": "runs/none"})})
    with pytest.raises(InputError, match=r"table, ghost: .*no such checkpoint"):
        run_benchmark(other, local_pool(1))


def result_of(first: list[int], base: list[int]) -> BenchmarkResult:
    """Cells of 100 episodes with so many successes of the first method and of the base, the successes first."""
    env_ids = [f"task{index}" for index in range(len(first))]
    outcomes = {
        arm: {
            e: [EpisodeOutcome(e, seed, success=seed < count) for seed in range(100)]
            for e, count in zip(env_ids, counts, strict=True)
        }
        for arm, counts in (("base", base), ("steered", first))
    }
    header = {"arms": {}, "settings": {"env_ids": env_ids}, "versions": {}, "provenance": {}}
    plan = BenchmarkPlan(
        {"s": SuitePlan("x", "c", {"p": "p"})}, {"base": Method("base"), "steered": parse_method("steered")}, 100, 0
    )
    return BenchmarkResult(plan, {("s", "p"): EvaluationResult(outcomes, 0, header, 0.0, 0.0)})


def test_worse_cells_are_counted_with_and_without_correction() -> None:
    method = result_of([90, 50, 41, 20], [50, 50, 50, 40]).to_json()["methods"]["steered"]
    assert (method["better"], method["worse"], method["worse_uncorrected"]) == (1, 2, 2)
    assert [round(cell["difference"], 2) for cell in method["cells"]] == [0.4, 0.0, -0.09, -0.2]
    p = [cell["p"] for cell in method["cells"]]
    assert [cell["p_holm"] for cell in method["cells"]] == pytest.approx(multipletests(p))
    assert method["overall"]["difference"] == pytest.approx(0.0275)
    assert method["overall"]["relative_gain"] == pytest.approx((0.8 + 0 - 0.18 - 0.5) / 4)


def test_errors_and_early_ends_are_said() -> None:
    result = result_of([90, 50], [50, 50])
    assert remarks(result.to_json()) == []
    for outcomes in result.results["s", "p"].outcomes.values():
        del outcomes["task0"][25:]
        outcomes["task1"][3].error = "step 2: RuntimeError: exploded"
    errors, early = remarks(result.to_json())
    assert errors.startswith("2 episodes ended with an error")
    assert early == "1 of 2 cells were decided early, after 25 episodes"


def multipletests(p: list[float]) -> list[float]:
    """Holm's adjustment, written another way: of a hypothesis, the largest of p_j times how many are at least as large as p_j."""
    return [max(min(1.0, q * sum(r >= q for r in p)) for q in p if q <= own) for own in p]


def test_failures_are_recorded_for_the_page(plan: BenchmarkPlan, tmp_path: Path) -> None:
    result = run_benchmark(plan.only((), ("flow",), ("steered",)), local_pool(1))
    (failure,) = record_failures(result, 1, workers=1)
    assert failure.failed.frames is not None
    assert failure.base.frames is not None
    assert failure.failed.seed == failure.base.seed
    assert failure.control_hz == 5
    everything = [
        o for outcomes in result.results["table", "flow"].outcomes["steered"].values() for o in outcomes if not o.success
    ]
    most = max(everything, key=lambda outcome: sum(outcome.disagreement) / len(outcome.disagreement))
    assert (failure.failed.env_id, failure.failed.seed) == (most.env_id, most.seed)
    assert failure.failed.disagreement == most.disagreement
    write_benchmark_report(tmp_path / "report.html", result.to_json(), [failure])
    assert (tmp_path / "report.html").read_text().count("<video") == 2


def test_only_results_of_the_same_command_are_replaced(tmp_path: Path) -> None:
    place = tmp_path / "results.json"
    check_replaceable(place, "--out", FORMAT)
    place.write_text(json.dumps({"format": FORMAT}))
    check_replaceable(place, "--out", FORMAT)
    for other in ('{"format": "robot-rl evaluation 1"}', '{"suites": {}}', "[]", "a picture of my cat"):
        place.write_text(other)
        with pytest.raises(InputError, match=r"--out .*results\.json: is there, and no result of this command"):
            check_replaceable(place, "--out", FORMAT)
        assert place.read_text() == other
