"""Octo: every variant of a checkpoint opens, and what is wrong with one is said in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies.octo import OctoPolicy
from tests.policies import octo_checkpoints
from tests.policies.octo_checkpoints import DIMS, image_tokenizer, write
from tests.policies.seeded import generator, observations, sampled

PROPRIO = {"name": "LowdimObsTokenizer", "kwargs": {"obs_keys": ["proprio"]}}
BINNED = {"name": "LowdimObsTokenizer", "kwargs": {**PROPRIO["kwargs"], "discretize": True, "n_bins": 6, "bin_type": "normal"}}
VARIANTS = {
    "1.5": {},
    "1.0": {"old": True, "head": {"name": "DiffusionActionHead", "kwargs": {"pred_horizon": 3, "action_dim": 5}}},
    "attention pooling": {"head": {"name": "DiffusionActionHead", "kwargs": {**DIMS, "use_map": True, "num_blocks": 1}}},
    "two readouts": {"readouts": {"value": 2, "action": 3}},
    "patches": {
        "tokenizers": {"primary": image_tokenizer("image_primary", "PatchEncoder", patch_size=8, img_norm_type="imagenet")}
    },
    "no goals": {"tokenizers": {"primary": image_tokenizer("image_primary", goal=False)}},
    "proprio": {"tokenizers": {"primary": image_tokenizer("image_primary"), "proprio": PROPRIO}, "proprio": 4},
    "binned proprio": {"tokenizers": {"primary": image_tokenizer("image_primary"), "proprio": BINNED}, "proprio": 4},
    "L1": {"head": {"name": "L1ActionHead", "kwargs": DIMS}},
    "MSE": {"head": {"name": "MSEActionHead", "kwargs": {**DIMS, "use_map": False}}},
    "discrete": {"head": {"name": "DiscreteActionHead", "kwargs": {**DIMS, "vocab_size": 8, "use_map": True}}},
    "one dataset": {"statistics": {"action": {"mean": [0.0] * 5, "std": [1.0] * 5}, "num_transitions": 3}},
    "fewer actions": {"statistics": {"libero": {"action": {"mean": [0.0] * 4, "std": [1.0] * 4}}}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_opens_and_acts(tmp_path, name):
    assert OctoPolicy.recognizes(write(tmp_path / "checkpoint", **VARIANTS[name]))
    policy = OctoPolicy.load(tmp_path / "checkpoint")
    spec, actions = policy.action_spec, sampled(policy, observations(policy))
    assert actions.shape == (2, 3, spec.chunk, spec.dim)
    assert (spec.chunk, spec.dim) == (3, 4 if name == "fewer actions" else 5)
    assert (actions >= torch.tensor(spec.low)).all()
    assert (actions <= torch.tensor(spec.high)).all()
    assert not torch.equal(actions[0], actions[1])
    assert torch.equal(actions[:, 0], actions[:, 1]) == (name in ("L1", "MSE"))
    assert policy.observation_spec.window == 3
    others = actions[:, 0] + 0.1  # its own are where L1 and MSE err by nothing
    loss = policy.loss(observations(policy), others, torch.tensor([0.0, 1.0]), generator())
    assert loss[0] == 0
    assert loss[1] > 0
    loss.sum().backward()


def without(name: str):
    return lambda flat: {key: value for key, value in flat.items() if key != name}


NORM = "octo_transformer/BlockTransformer_0/Transformer_0/encoder_norm/scale"
QUERY = "octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"
SHARED = "octo_transformer/task_tokenizers_language/hf_model/shared/embedding"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(NORM), "lacks 'octo_transformer/.*encoder_norm/scale'"),
        (without(SHARED), "lacks 'octo_transformer/task_tokenizers_language/hf_model/shared/embedding'"),
        (lambda flat: {**flat, "octo_transformer/extra": np.zeros(1, np.float32)}, "unknown 'octo_transformer/extra'"),
        (lambda flat: {**flat, NORM: np.ones(5, np.float32)}, r"encoder_norm/scale' has shape \(5,\)"),
        (lambda flat: {**flat, QUERY: flat[QUERY].reshape(32, 4, 8)}, r"query/kernel' has shape \(32, 4, 8\)"),
        (lambda flat: {**flat, NORM: np.full_like(flat[NORM], np.nan)}, "not finite"),
    ],
)
def test_every_array_is_accounted_for(tmp_path, change, says):
    folder = write(tmp_path / "checkpoint", change=change)
    with pytest.raises(InputError, match=says) as caught:
        OctoPolicy.load(folder)
    assert "\n" not in str(caught.value)


def test_other_heads_are_known_to_be_unused(tmp_path):
    change = lambda flat: {**flat, "heads_value/mean_proj/bias": np.zeros(1, np.float32)}  # noqa: E731
    action = {"name": "DiffusionActionHead", "kwargs": {**DIMS, "readout_key": "readout_action"}}
    value = {"name": "MSEActionHead", "kwargs": {"readout_key": "readout_action"}}
    OctoPolicy.load(write(tmp_path / "checkpoint", change=change, heads={"action": action, "value": value}))


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (lambda f: damage(f, "70/default/checkpoint", (f / "70/default/checkpoint").read_bytes()[:-99]), {}, "cannot be read"),
        (lambda f: damage(f, "70/default/checkpoint", b"\x80\x04K\x01."), {}, "cannot be read"),
        (lambda f: damage(f, "example_batch.msgpack", b"\x93"), {}, "cannot be read"),
        (lambda f: damage(f, "config.json", b"{"), {}, "cannot be read"),
        (lambda f: damage(f, "config.json", b'{"model": {}}'), {}, "not the config of an Octo policy"),
        (lambda f: (f / "dataset_statistics.json").unlink(), {}, "cannot be read"),
        (lambda f: shutil.rmtree(f / "70"), {}, "no STEP/default/checkpoint"),
        (lambda f: shutil.rmtree(f.parent / "t5_test"), {}, r"text encoder 't5_test' .*\?text_encoder=FOLDER"),
        (lambda f: None, {"step": 71}, "no step 71; there are 70"),
        (lambda f: None, {"unnorm_key": "fractal"}, "no dataset 'fractal'.*bridge_dataset"),
        (lambda f: None, {"text_encoder": "nowhere"}, "nowhere"),
        (lambda f: None, {"chunk": 4}, "predicts 3 actions"),
        (lambda f: None, {"normalization": "minmax"}, "must be normal or bounds"),
    ],
)
def test_bad_input_is_one_line(octo_folder, tmp_path, spoil, options, says):
    folder = tmp_path / "checkpoint"
    shutil.copytree(octo_folder, folder)
    shutil.copytree(octo_folder.parent / "t5_test", tmp_path / "t5_test")
    spoil(folder)
    with pytest.raises(InputError, match=says) as caught:
        OctoPolicy.load(folder, **options)
    assert "\n" not in str(caught.value)


def test_several_datasets_need_a_choice(tmp_path):
    one = {"action": {"mean": [0.0] * 5, "std": [1.0] * 5}}
    folder = write(tmp_path / "checkpoint", statistics={"bridge_dataset": one, "kuka": one})
    with pytest.raises(InputError, match=r"\?unnorm_key=NAME of bridge_dataset, kuka"):
        OctoPolicy.load(folder)
    policy = OctoPolicy.load(folder, unnorm_key="kuka", chunk=2)
    assert (policy.action_spec.control_hz, policy.action_spec.chunk) == (10, 2)


@pytest.mark.parametrize(
    "model",
    [
        {"head": {"name": "UNetDDPMActionHead", "kwargs": DIMS}},
        {"tokenizers": {"primary": {**image_tokenizer("image_primary"), "name": "AudioTokenizer"}}},
        {"tokenizers": {"primary": image_tokenizer("image_primary", "ResNet26FILM")}},
    ],
)
def test_networks_that_are_not_known_are_named(tmp_path, monkeypatch, model):
    monkeypatch.setattr(octo_checkpoints, "shapes", lambda *_, **__: {})
    with pytest.raises(InputError, match="can be read"):
        OctoPolicy.load(write(tmp_path / "checkpoint", **model))
