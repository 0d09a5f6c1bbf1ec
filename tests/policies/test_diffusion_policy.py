"""Stanford's diffusion_policy checkpoints: parity with its own outputs, converting a pickle without running it, and bad input."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from policies.base import Encodes, Policy, Trainable
from policies.diffusion_policy import StanfordPolicy
from policies.formats.stanford_checkpoint import convert_checkpoint
from policies.history import MASK
from robot_rl.commands.convert_policy import ConvertPolicy
from tests.policies import foreign_checkpoints as made
from tests.policies.seeded import generator, observations

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "dp_stanford_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"the originals' outputs are not here ({FIXTURE.name})")
CONFIGS = {
    "global": made.stanford_lowdim(),
    "local": made.stanford_lowdim(obs_as_global_cond=False, obs_as_local_cond=True),
    "inpainting": made.stanford_lowdim(obs_as_global_cond=False),
    "steps only": made.stanford_lowdim(pred_action_steps_only=True),
    "transformer": made.stanford_transformer(),
    "hybrid": made.stanford_hybrid(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stanford")
    for name, cfg in CONFIGS.items():
        convert_checkpoint(made.stanford_ckpt(root / f"{name}.ckpt", cfg), root / name)
    return {name: root / name for name in CONFIGS}


@needs_fixture
def test_noise_predictions_and_seeded_actions_are_the_originals(tmp_path):
    converted = convert_checkpoint(FIXTURE / "checkpoints" / "latest.ckpt", tmp_path / "policy")
    assert converted.source == "ema_model"
    policy = StanfordPolicy.load(tmp_path / "policy")
    theirs = {key: torch.from_numpy(value) for key, value in np.load(FIXTURE / "outputs.npz").items()}
    seen = {"state": theirs["obs"].numpy(), MASK: np.ones((3, 2), bool), "instruction": ["x"] * 3}
    torch.testing.assert_close(policy.model.denoising.scheduler.alphas_cumprod, theirs["alphas_cumprod"])
    with torch.no_grad():
        encoding = policy.encode(seen)
        for timestep in (0, 50, 99):
            prediction = policy.model.predict(theirs["x"], torch.tensor(timestep), encoding.condition)
            torch.testing.assert_close(prediction, theirs[f"eps_t{timestep}"], rtol=0, atol=1e-5)
    # On a CPU the random streams are those of the original too.
    actions = policy.sample(seen, 1, generator(123))[:, 0]
    torch.testing.assert_close(actions, theirs["seed123_action"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_kind_is_a_policy(folders, name):
    policy = StanfordPolicy.load(folders[name])
    assert isinstance(policy, Policy)
    assert isinstance(policy, Encodes)
    assert isinstance(policy, Trainable)
    seen = observations(policy)
    actions = policy.sample(seen, 3, generator())
    assert actions.shape == (2, 3, 4, 3)
    assert torch.equal(actions, policy.sample_encoded(policy.encode(seen), 3, generator()))
    assert len(torch.unique(actions[0].flatten(1), dim=0)) == 3
    assert (actions >= torch.tensor(policy.action_spec.low) - 1e-5).all()
    assert (actions <= torch.tensor(policy.action_spec.high) + 1e-5).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_newest_observation_and_the_one_before_matter(folders, name):
    policy = StanfordPolicy.load(folders[name])
    seen = observations(policy)
    windows = {key: value if key == "instruction" else np.stack([value, value], 1) for key, value in seen.items()}
    windows[MASK] = np.ones((2, 2), bool)
    first = policy.sample(windows, 1, generator())
    assert torch.equal(first, policy.sample(seen, 1, generator()))
    for step in (0, 1):
        key = policy.vector
        other = {**windows, key: windows[key].copy()}
        other[key][:, step] += 2
        assert not torch.equal(first, policy.sample(other, 1, generator()))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "inpainting"])
def test_the_loss_is_per_sample_and_falls(folders, name):
    policy = StanfordPolicy.load(folders[name])
    seen, actions = observations(policy), torch.zeros(2, 4, 3)

    def evaluate() -> float:
        with torch.no_grad():
            return float(np.mean([policy.loss(seen, actions, generator=generator(seed)).mean() for seed in range(8)]))

    plain = policy.loss(seen, actions, generator=generator(1))
    torch.testing.assert_close(
        policy.loss(seen, actions, torch.tensor([3.0, 0.0]), generator(1)), plain * torch.tensor([3.0, 0.0])
    )
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    before = evaluate()
    for step in range(10 if name == "hybrid" else 60):
        loss = policy.loss(seen, actions, generator=generator(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert evaluate() < 0.9 * before


def test_inpainting_puts_the_observations_back(folders):
    policy = StanfordPolicy.load(folders["inpainting"])
    encoding = policy.encode(observations(policy))
    assert encoding.known is not None
    seen = []
    predict = policy.model.predict

    def spy(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x)
        return predict(x, *rest)

    policy.model.predict = spy  # type: ignore[method-assign]
    policy.sample_encoded(encoding, 2, generator())
    for x in seen:
        assert torch.equal(x[0, :2, 3:], encoding.known[0, :2, 3:])
    with pytest.raises(InputError, match="inpaints"):
        policy.loss(observations(policy), torch.zeros(2, 4, 3))


def test_cameras_and_vectors_have_our_names(folders):
    spec = StanfordPolicy.load(folders["hybrid"]).observation_spec
    assert dict(spec.images) == {"image_primary": (36, 44), "image_wrist": (36, 44)}
    assert dict(spec.vectors) == {"proprio": 5}
    assert spec.window == 2


def test_the_averaged_weights_are_taken_where_training_used_them(tmp_path):
    for average in (True, False):
        cfg = {**CONFIGS["global"], "training": {"use_ema": average}}
        payload = made.stanford_payload(cfg)
        converted = convert_checkpoint(made.stanford_ckpt(tmp_path / f"{average}.ckpt", cfg), tmp_path / str(average))
        assert converted.source == ("ema_model" if average else "model")
        written = load_file(tmp_path / str(average) / "model.safetensors")
        assert all(torch.equal(value, payload["state_dicts"][converted.source][key]) for key, value in written.items())


def test_steps_and_chunk_are_options(folders):
    fast = StanfordPolicy.load(folders["global"], inference_steps=2, chunk=7)
    assert fast.sample(observations(fast), 2, generator()).shape == (2, 2, 7, 3)
    with pytest.raises(InputError, match="predicts 7 actions"):
        StanfordPolicy.load(folders["global"], chunk=8)


class Marks:
    """Unpickled, makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_nothing_in_the_pickle_is_run(tmp_path):
    payload = {**made.stanford_payload(CONFIGS["global"]), "evil": Marks(str(tmp_path / "ran"))}
    torch.save(payload, tmp_path / "evil.ckpt")
    converted = convert_checkpoint(tmp_path / "evil.ckpt", tmp_path / "policy")
    assert not (tmp_path / "ran").exists()
    assert converted.replaced == (f"{os.mkdir.__module__}.mkdir",)
    assert StanfordPolicy.load(tmp_path / "policy").action_spec.dim == 3
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the test's pickle does no harm, so it proves nothing"


def test_settings_are_read_without_the_package_that_made_them(tmp_path, monkeypatch):
    kinds = {}
    for name in ("DictConfig", "ListConfig", "AnyNode"):
        kinds[name] = type(name, (), {"__module__": "omegaconf"})
    module = types.ModuleType("omegaconf")
    vars(module).update(kinds)

    def node(value: Any) -> Any:
        name, key, held = "AnyNode", "_val", value
        if isinstance(value, dict):
            name, key, held = "DictConfig", "_content", {key: node(item) for key, item in value.items()}
        elif isinstance(value, list):
            name, key, held = "ListConfig", "_content", [node(item) for item in value]
        made_of = kinds[name]()
        vars(made_of).update({key: held, "_parent": None, "_metadata": kinds["AnyNode"]()})
        return made_of

    monkeypatch.setitem(sys.modules, "omegaconf", module)
    payload = made.stanford_payload(CONFIGS["hybrid"])
    torch.save({**payload, "cfg": node(CONFIGS["hybrid"])}, tmp_path / "latest.ckpt")
    monkeypatch.delitem(sys.modules, "omegaconf")
    assert convert_checkpoint(tmp_path / "latest.ckpt", tmp_path / "policy").replaced == ()
    policy = json.loads((tmp_path / "policy" / "config.json").read_text())["policy"]
    assert policy == {**json.loads(json.dumps(CONFIGS["hybrid"]["policy"])), "horizon": 8}
    assert StanfordPolicy.load(tmp_path / "policy").action_spec.chunk == 4


def test_the_pickle_itself_is_recognised_and_refused(tmp_path):
    path = made.stanford_ckpt(tmp_path / "latest.ckpt", CONFIGS["global"])
    assert StanfordPolicy.recognizes(path)
    assert not StanfordPolicy.recognizes(tmp_path)
    with pytest.raises(InputError, match=r"robot-rl convert-policy .*latest.ckpt --out FOLDER") as caught:
        StanfordPolicy.load(path)
    assert "\n" not in str(caught.value)


def test_the_command_asks(tmp_path, monkeypatch, capsys):
    path = made.stanford_ckpt(tmp_path / "latest.ckpt", CONFIGS["global"])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(InputError, match=r"no terminal to ask.*--yes"):
        ConvertPolicy(path, tmp_path / "out").run()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    with pytest.raises(InputError, match="not opened, nothing written"):
        ConvertPolicy(path, tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    ConvertPolicy(path, tmp_path / "out").run()
    assert "can run any code" in capsys.readouterr().err
    with pytest.raises(InputError, match="--overwrite"):
        ConvertPolicy(path, tmp_path / "out", yes=True).run()
    ConvertPolicy(path, tmp_path / "out", yes=True, overwrite=True).run()
    assert StanfordPolicy.load(tmp_path / "out").action_spec.dim == 3


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")


def _unresolved(path: Path) -> None:
    cfg = made.stanford_lowdim(n_obs_steps="${eval:'1+1'}")
    torch.save({**made.stanford_payload(CONFIGS["global"]), "cfg": cfg}, path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"cfg": 1})), "not a checkpoint that torch.save"),
        (_script, "not a checkpoint that torch.save"),
        (lambda path: torch.save({"weights": torch.zeros(1)}, path), "has no 'cfg'"),
        (lambda path: torch.save({"cfg": {}, "state_dicts": {}}, path), "has no 'policy'"),
        (lambda path: torch.save({"cfg": CONFIGS["global"], "state_dicts": {"model": {}}}, path), "has no 'ema_model'"),
        (_unresolved, "is not resolved"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, write, says):
    write(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=says) as caught:
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


BIAS = "model.final_conv.1.bias"


@pytest.mark.parametrize(
    ("tensors", "policy", "says"),
    [
        ({BIAS: None}, {}, f"lacks '{BIAS}'"),
        ({"surplus": torch.zeros(1)}, {}, "unknown 'surplus'"),
        ({BIAS: torch.full((3,), torch.nan)}, {}, f"'{BIAS}' has values that are not finite"),
        ({"normalizer.params_dict.obs.scale": None}, {}, "'obs' would not be normalised"),
        ({}, {"_target_": "x.IbcDfoLowdimPolicy"}, "IbcDfoLowdimPolicy: not one of Stanford's"),
        ({}, {"horizon": None}, "not a policy of Stanford's"),
        ({}, {"obs_dim": 6}, "has shape"),
    ],
)
def test_a_damaged_folder_is_one_line(folders, tmp_path, tensors, policy, says):
    values = json.loads((folders["global"] / "config.json").read_text())
    values["policy"].update(policy)
    (tmp_path / "config.json").write_text(json.dumps(values))
    weights = {**load_file(folders["global"] / "model.safetensors"), **tensors}
    save_file({key: value for key, value in weights.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=says) as caught:
        StanfordPolicy.load(tmp_path)
    assert "\n" not in str(caught.value)
