"""Success by rule, and what failures achieved instead: what expressions mean, and that mistakes in them are one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import InputError, Store, relabel
from data.labels.hindsight import achieved_instructions
from data.labels.rules import EpisodeView, Rule, Rules, episode_views, read_rules
from tests.conftest import make_store

VIEW = EpisodeView(
    vectors={
        "state": np.array([[0.0, 5.0, 0.0], [0.5, 4.0, 0.0], [0.2, 3.0, 0.0], [0.3, 2.0, 0.0]], np.float32),
        "proprio": np.array([[1.0], [1.0], [0.0], [0.0]], np.float32),
    },
    instruction="put the bowl away",
    length=3,
    where="made episode 0",
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("state[0] > 0.25", True),
        ("state[0] > 0.25 and proprio[0] > 0.5", False),
        ("not proprio[0] > 0.5 or state[-1] > 1", True),
        ("0.1 < state[0] < 0.4", True),
        ("all_last(state[0] > 0.1, 3)", True),
        ("all_last(state[0] > 0.1, 4)", False),
        ("all_last(proprio[0] < 0.5, 100)", False),
        ("any_last(state[0] > 0.4, 2)", False),
        ("any_last(state[0] > 0.4, 3)", True),
        ("ever(state[0] > 0.4)", True),
        ("max(state[0]) == 0.5 and min(state[1]) == 2 and mean(state[1]) == 3.5", True),
        ("first(state[1]) - state[1] == 3", True),
        ("hypot(state[1], 0) == 2 and abs(0 - state[1]) == 2", True),
        ("length < 10 and 'bowl' in instruction", True),
        ("state[0] ** 2 < 0.1", True),
        ("True if length > 5 else False", False),
    ],
)
def test_what_a_rule_means(expression, expected):
    assert Rule(expression)(VIEW) is expected


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("state[0 >", "rule 'state[0 >'"),
        ("stat[0] > 1", "no 'stat'; there are state[0..2], proprio[0..0], length and instruction"),
        ("state[3] > 1", "state has 3 numbers, 0 to 2"),
        ("state[0.5] > 1", "does not exist"),
        ("state[0]", "not true or false"),
        ("state > 1", "made episode 0"),
        ("state[0:2] > 1", "state"),
        ("state[0] / state[2] > 1", "made episode 0"),
        ("all_last(state[0] > 1)", "given 1 arguments"),
        ("all_last(state[0] > 1, 0)", "whole number from 1 on"),
        ("all_last(state[0], 2)", "not true or false"),
        ("max(state[0] > 1, 2) > 1", "given 2 arguments"),
        ("mean(instruction) > 1", "mean"),
        ("hypot(1) + length > sqrt(0 - 1)", "made episode 0"),
        ("abs() > 1", "made episode 0"),
        ("instruction.upper() == 'A'", "rule"),
        ("().__class__ == 1", "rule"),
        ("__import__('os').system('true') == 0", """no call of "__import__('os').system";"""),
        ("open('x') == 1", "no call of 'open'"),
        ("[x for x in (1,)] == 1", "rule"),
        ("(lambda: 1)() == 1", "no call of"),
        ("9 ** 9 ** 9 > 1", "too large"),
        ("'a' * 10 ** 9 == 'a'", "rule"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_rule(expression, part):
    with pytest.raises(InputError) as caught:
        Rule(expression)(VIEW)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert expression[:20] in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="state[]()0123456789.<>=+-*/% andornotallastmxifelse,_'\"", max_size=40))
def test_no_text_does_anything_but_judge_or_say_what_is_wrong(text):
    try:
        said: bool | str = Rule(text)(VIEW)
    except InputError as error:
        said = str(error)
    assert isinstance(said, bool) or (said.startswith("rule ") and "\n" not in said)


def test_rules_by_instruction_leave_the_others_unlabelled(store: Store, tmp_path):
    (tmp_path / "rules.json").write_text(json.dumps({"GO L*": "proprio[0] < 0"}))
    labels = Rules.load(tmp_path / "rules.json").label(store)
    for view, label in zip(episode_views(store), labels, strict=True):
        expected = -1 if view.instruction == "go right" else int(view.vectors["proprio"][-1, 0] < 0)
        assert label == expected
    assert set(labels) == {-1, 0, 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', "\xff"])
def test_a_wrong_rules_file_is_one_line(text, tmp_path):
    (tmp_path / "rules.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"rules\.json"):
        read_rules(tmp_path / "rules.json")
    with pytest.raises(InputError, match="No such file"):
        read_rules(tmp_path / "absent.json")


def test_hindsight_gives_failures_what_they_did_instead(tmp_path):
    store = make_store(tmp_path / "store")
    rules = {"go left": "proprio[0] < 0", "go right": "proprio[0] > 0"}
    achieved = achieved_instructions(store, rules)
    # Each failure of this data went the other way.
    texts = [view.instruction for view in episode_views(store)]
    for label, text, index in zip(store.success, texts, achieved, strict=True):
        other = "go right" if text == "go left" else "go left"
        assert index == (store.instructions.index(other) if label == 0 else -1)
    relabel(store.path, store.success, achieved=achieved)
    np.testing.assert_array_equal(Store.open(store.path).achieved, achieved)
    with pytest.raises(InputError, match="no instruction 'fly'; it has 'go"):
        achieved_instructions(store, {"fly": "proprio[0] > 0"})
