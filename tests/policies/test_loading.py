"""Spec strings: families, places and options, and what is said of wrong ones."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from policies import FAMILIES, abilities, load_policy, policy_digest
from policies.config import GaussianConfig
from policies.loading import _typed, family_class, family_options, parse_spec
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.recipes import train_policy
from tests.policies.families import VECTORS


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "policy"
    train_policy(store.path, folder, GaussianConfig(VECTORS, hidden=8), CloningConfig(), TrainingConfig(steps=1, batch_size=4))
    return folder


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("runs/policy", (None, "runs/policy", {})),
        ("gaussian:runs/policy", ("gaussian", "runs/policy", {})),
        ("gaussian:a?b=1&c=x%20y", ("gaussian", "a", {"b": "1", "c": "x y"})),
        ("ws://host:8000?map=libero", (None, "ws://host:8000", {"map": "libero"})),
        ("other:thing", (None, "other:thing", {})),
        ("x?empty=", (None, "x", {"empty": ""})),
    ],
)
def test_a_spec_is_a_family_a_place_and_options(spec, parsed):
    assert parse_spec(spec) == parsed


def test_a_run_a_step_and_a_prefix_are_the_same_policy(run):
    assert load_policy(run).family == load_policy(f"gaussian:{run}").family == "gaussian"
    assert policy_digest(run) == policy_digest(run / "step_00000001") == policy_digest(f"gaussian:{run}")


def test_a_folder_may_be_named_like_a_spec(run, tmp_path):
    odd = tmp_path / "a?b=c: d"
    run.rename(odd)
    try:
        assert load_policy(odd).family == "gaussian"
    finally:
        odd.rename(run)


def test_another_policy_has_another_digest(run, store, tmp_path):
    other = TrainingConfig(steps=1, batch_size=4, seed=1)
    train_policy(store.path, tmp_path / "other", GaussianConfig(VECTORS, hidden=8), CloningConfig(), other)
    digests = {policy_digest(run), policy_digest(tmp_path / "other"), policy_digest(f"{run}?x=1"), policy_digest("ws://a:1")}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere/at/all", "no such checkpoint"),
        ("{run}?colour=red", "'colour'.*no such option"),
        ("diffusion:{run}", "holds a policy of the family gaussian, not diffusion"),
        ("{empty}", "no checkpoint here that any family knows"),
        ("hf://not a name", "cannot be downloaded"),
        ("juggler:{run}", "'juggler': no such family"),
    ],
)
def test_a_wrong_spec_is_one_line(run, tmp_path, spec, says):
    with pytest.raises(InputError, match=says) as caught:
        load_policy(spec.format(run=run, empty=tmp_path))
    assert "\n" not in str(caught.value)


def test_options_have_types():
    class Family:
        @classmethod
        def load(cls, location, device, *, steps: int = 1, rate: float | None = None, fast: bool = False, name: str = ""):
            pass

    given = {"steps": "3", "rate": "0.5", "fast": "true", "name": "7"}
    assert _typed("made", Family, given) == {"steps": 3, "rate": 0.5, "fast": True, "name": "7"}
    for wrong, says in (({"steps": "many"}, "type int"), ({"fast": "perhaps"}, "true or false")):
        with pytest.raises(InputError, match=says):
            _typed("made", Family, wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_says_what_it_is(family):
    policy_class = family_class(family)
    assert "sample" in abilities(policy_class)
    assert policy_class.__doc__
    assert isinstance(dict(family_options(policy_class)), dict)


def test_a_checkpoint_with_damaged_weights_is_named(store, tmp_path):
    """By the tensor and what is wrong with it, before anything is served."""
    train_policy(
        store.path, tmp_path / "run", GaussianConfig(VECTORS, hidden=8), CloningConfig(), TrainingConfig(steps=1, batch_size=4)
    )
    path = tmp_path / "run" / "step_00000001" / "model.safetensors"
    whole = load_file(path)
    name = "head.0.weight"
    for change, says in (
        ({name: whole[name] * float("nan")}, "not finite"),
        ({name: whole[name][:-1]}, r"not torch.float32 \("),
        ({name: whole[name].int()}, "is torch.int32"),
        ({"more": torch.zeros(1)}, "has an unknown 'more'"),
    ):
        save_file({**whole, **change}, path)
        with pytest.raises(InputError, match=says):
            load_policy(tmp_path / "run")
    save_file({key: value for key, value in whole.items() if key != name}, path)
    with pytest.raises(InputError, match=r"lacks 'head\.0\.weight'"):
        load_policy(tmp_path / "run")
