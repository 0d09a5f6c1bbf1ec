"""The page has every number of a benchmark, marks what got worse, shows the failures it should, and fetches nothing."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.benchmark import BenchmarkPlan, BenchmarkResult, SuitePlan, read_plan
from robot_rl.benchmark.charts import families, mean_success
from robot_rl.benchmark.failures import Failure, choose_failures
from robot_rl.benchmark.report import write_benchmark_report
from robot_rl.evaluation import EpisodeOutcome, EvaluationResult
from robot_rl.steering.methods import Method, parse_method

METHODS = {
    "ours": "steered",
    "V-GPS <10>": "vgps",
    "V-GPS <50>": "vgps?num_samples=50",
    "chance": "random",
}
TASKS = {"table": ("Reach-v0", "Push-v0", "Lift-v0"), "kitchen": ("Drawer-v0", "Pot-v0")}
POLICIES = ("octo", "pi0", "diffusion")
EPISODES = 60


def make_result(
    methods: dict[str, str] = METHODS,
    tasks: dict[str, tuple[str, ...]] = TASKS,
    policies: tuple[str, ...] = POLICIES,
    episodes: int = EPISODES,
) -> BenchmarkResult:
    """The first method helps, but in the first task of each suite harms the last policy much; chance changes nothing."""
    random = np.random.default_rng(0)
    suites = {s: SuitePlan(f"{s}/all", f"runs/{s}-critic", {p: f"runs/{p}" for p in policies}) for s in tasks}
    plan = BenchmarkPlan(
        suites, {"base": Method("base")} | {name: parse_method(spec) for name, spec in methods.items()}, episodes, 7
    )
    first = next(iter(methods))
    results = {}
    for suite, env_ids in tasks.items():
        for number, policy in enumerate(policies):
            outcomes: dict[str, dict[str, list[EpisodeOutcome]]] = {arm: {} for arm in plan.methods}
            for env_id in env_ids:
                base = 0.3 + 0.1 * number
                harmed = policy == policies[-1] and env_id == env_ids[0]
                for arm, method in plan.methods.items():
                    gain = {"base": 0.0, "random": 0.0}.get(method.name, 0.25)
                    rate = 0.05 if harmed and arm == first else base + gain
                    outcomes[arm][env_id] = [
                        EpisodeOutcome(
                            env_id,
                            7 + i,
                            success=bool(random.random() < rate),
                            steps=20,
                            instruction=f"do {env_id}",
                            disagreement=[float(random.random()), float(random.random())] if arm == first else [],
                        )
                        for i in range(episodes)
                    ]
            header = {
                "arms": {arm: repr(method) for arm, method in plan.methods.items()},
                "settings": {"env_ids": list(env_ids), "episodes": episodes},
                "versions": {"python": "3.11", "torch": "2.7"},
                "provenance": {"policy": f"{policy}-digest", "critic": f"{suite}-digest"},
            }
            results[suite, policy] = EvaluationResult(outcomes, 7, header, 60.0, 600.0)
    crashed = results["table", "pi0"].outcomes["chance"]["Push-v0"]
    assert isinstance(crashed, list)
    for index in (3, 4):
        crashed[index] = EpisodeOutcome("Push-v0", 7 + index, steps=4, error="step 4: RuntimeError: simulator <exploded>")
    return BenchmarkResult(plan, results)


class Page(HTMLParser):
    """Its words, section by section, and every address that a browser would fetch; tags must be closed in order."""

    VOID = ("meta", "br", "line", "circle", "rect", "path", "wbr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.sections: dict[str, str] = {}
        self._heading = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        assert all(address.startswith("data:video/mp4;base64,") for address in self.addresses)
        assert "http" not in re.sub("http-equiv", "", self.source)
        assert "<script" not in self.source

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self._heading = data
        self.sections[self._heading] = (
            self.sections.get(self._heading, "") + data + ("" if self.open[-1:] in (["pre"], ["td"], ["b"]) else " ")
        )


@pytest.fixture(scope="module")
def result() -> BenchmarkResult:
    return make_result()


@pytest.fixture(scope="module")
def values(result: BenchmarkResult) -> dict[str, Any]:
    return dict(json.loads(json.dumps(result.to_json())))


def written(path: Path, values: dict[str, Any], failures: list[Failure] | None = None) -> Page:
    write_benchmark_report(path / "report.html", values, failures or [])
    assert [file.name for file in path.iterdir()] == ["report.html"]
    return Page(path / "report.html")


def test_every_cell_is_there_with_its_numbers(values: dict[str, Any], tmp_path: Path) -> None:
    page = written(tmp_path, values)
    assert len(page.source) < 80_000
    cells = re.findall(r'<td data-name="[^"]*">(\d+% → \d+%.*?)</td>', page.source)
    expected = [cell for method in values["methods"].values() for cell in method["cells"]]
    # The page goes row by row, the numbers policy by policy.
    shown = sorted(html.unescape(re.sub("<[^>]*>", " ", cell)) for cell in cells)
    assert len(shown) == len(expected) == 4 * 3 * 5
    for cell in expected:
        start = f"{100 * cell['base_rate']:.0f}% → {100 * cell['rate']:.0f}%"
        p = ", ".join(
            f"{name} {'<0.001' if cell[key] < 0.001 else f'{cell[key]:.3f}'}" for name, key in (("p", "p"), ("Holm", "p_holm"))
        )
        assert any(text.startswith(start) and p in text for text in shown), (start, p)
    assert sum("▼" in text for text in shown) == sum(method["worse"] for method in values["methods"].values()) == 2
    assert sum("▲" in text for text in shown) == sum(method["better"] for method in values["methods"].values()) > 10
    before = sum(method["worse_uncorrected"] for method in values["methods"].values())
    assert sum("▽" in text or "▼" in text for text in shown) == before


def test_head_and_sections_say_what_was_compared(values: dict[str, Any], tmp_path: Path) -> None:
    page = written(tmp_path, values)
    total = values["methods"]["ours"]["overall"]
    head = page.sections[""]
    for text in (
        "ours on 3 policies",
        "table (3 tasks, 3 policies) and kitchen (2 tasks, 3 policies)",
        "4 methods (ours, V-GPS <10>, V-GPS <50> and chance), 60 episodes each",
        f"{100 * total['against_mean_success']:.0f}% → {100 * total['mean_success']:.0f}%",
        f"gain, in points {100 * total['difference']:+.0f} ",
        f"mean relative gain {100 * total['relative_gain']:+.0f}%",
        "4,500",
        "2 errors",
    ):
        assert text in head
    assert "ended earlier" not in head
    assert "too narrow" not in head
    assert "episodes</small>" not in page.source
    assert list(page.sections)[1:] == [
        "Methods and policies",
        "Gain over the base policy",
        "Every cell",
        "Task by task",
        "More candidates",
        "Errors",
        "Settings",
    ]
    for other in ("V-GPS <10>", "V-GPS <50>", "chance"):
        assert f"ours \N{MINUS SIGN} {other}" in page.sections["Gain over the base policy"]
    for env_ids in TASKS.values():
        assert all(env_id in page.sections["Task by task"] for env_id in env_ids)
    errors = page.sections["Errors"]
    assert "2 episodes ended with an error" in errors
    for seed in (10, 11):
        assert f"pi0 in table, chance: Push-v0, seed {seed}: step 4: RuntimeError: simulator <exploded>" in errors
    for text in ("octo-digest", "kitchen-digest", "torch 2.7", "7 to 66", "num_samples 50", "60.0 minutes of work"):
        assert text in page.sections["Settings"]


def test_the_page_has_the_plan_that_runs_it_again(result: BenchmarkResult, values: dict[str, Any], tmp_path: Path) -> None:
    page = written(tmp_path, values)
    printed = html.unescape(re.findall(r"<pre class=plan>(.*?)</pre>", page.source, re.DOTALL)[0])
    again = tmp_path / "plan.json"
    again.write_text(printed)
    assert read_plan(again) == result.plan


def test_one_method_and_no_errors(tmp_path: Path) -> None:
    small = make_result({"ours": "steered", "chance": "random"}, {"table": ("Push-v0",)}, ("pi0",), 20)
    outcomes = {arm: tasks for arm, tasks in small.results["table", "pi0"].outcomes.items() if arm != "chance"}
    outcomes = {arm: {e: episodes[:10] for e, episodes in tasks.items()} for arm, tasks in outcomes.items()}
    plan = replace(small.plan, methods={name: m for name, m in small.plan.methods.items() if name != "chance"})
    alone = BenchmarkResult(plan, {("table", "pi0"): replace(small.results["table", "pi0"], outcomes=outcomes)})
    page = written(tmp_path, alone.to_json())
    assert "1 cell ended earlier" in page.sections[""]
    assert "bootstrap intervals of means are too narrow" in page.sections[""]
    assert "ended after 10 episodes" in page.sections["Every cell"]
    assert "the first of them where a cell ended early" in page.sections["Settings"]
    assert "--stop-early" in page.sections["Settings"]
    assert "No episode ended with an error" in page.sections["Errors"]
    assert "against each other method" not in page.source
    assert "More candidates" not in page.sections


def test_families_are_what_is_the_same_but_for_k() -> None:
    methods = {
        "a": "steered",
        "b": "steered?num_samples=4",
        "c": "steered?num_samples=4&aggregate=mean",
        "d": "steered?aggregate=mean&num_samples=64",
        "e": "random",
        "f": "pa_rl",
    }
    plan = BenchmarkPlan({}, {"base": Method("base")} | {name: parse_method(spec) for name, spec in methods.items()})
    assert families(plan.to_json()) == {"steered": {4: "b", 32: "a"}, "steered, aggregate mean": {4: "c", 64: "d"}}


def test_mean_success_covers_the_mean_of_cells(values: dict[str, Any]) -> None:
    mean, (low, high) = mean_success(values, "ours")
    assert mean == pytest.approx(values["methods"]["ours"]["overall"]["mean_success"])
    # The mean of 15 independent cells of 60: its normal interval, which the bootstrap approaches.
    rates = [cell["rate"] for cell in values["methods"]["ours"]["cells"]]
    half = 1.96 * np.sqrt(sum(r * (1 - r) / EPISODES for r in rates)) / len(rates)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.004)


def test_failures_are_those_of_most_disagreement(result: BenchmarkResult) -> None:
    chosen = choose_failures(result, 12)
    means = [float(np.mean(outcome.disagreement)) for _, _, outcome in chosen]
    assert len(chosen) == 12
    assert means == sorted(means, reverse=True)
    failed = [
        outcome
        for contest in result.results.values()
        for outcomes in contest.outcomes["ours"].values()
        for outcome in outcomes
        if not outcome.success
    ]
    assert means[0] == max(np.mean(outcome.disagreement) for outcome in failed)
    cells = [(suite, policy, outcome.env_id) for suite, policy, outcome in chosen]
    assert max(cells.count(cell) for cell in cells) == 2
    assert choose_failures(result, 0) == []
    assert len(choose_failures(result, 1000)) <= 2 * 15


def test_failures_stand_beside_the_base(result: BenchmarkResult, values: dict[str, Any], tmp_path: Path) -> None:
    failures = []
    for number, (suite, policy, outcome) in enumerate(choose_failures(result, 3)):
        frames = np.zeros((5, 32, 32, 3), np.uint8)
        # The last one ends otherwise when it is recorded.
        seen = replace(outcome, frames=frames, success=number == 2)
        failures.append(
            Failure(suite, policy, "ours", seen, replace(outcome, success=True, frames=frames, disagreement=[]), 5.0)
        )
    page = written(tmp_path, values, failures)
    assert len(page.addresses) == 6
    text = page.sections["Failures"]
    places = [
        text.index(
            f"{failure.policy} in {failure.suite}, {failure.failed.env_id}, seed {failure.failed.seed}; "
            f"disagreement {np.mean(failure.failed.disagreement):.3g}"
        )
        for failure in failures
    ]
    assert places == sorted(places)
    assert text.count("do not repeat themselves") == 1
    assert failures[0].failed.instruction in text
    assert "succeeded from the same state in 3 of these 3" in text
