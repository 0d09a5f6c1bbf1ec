"""Octo: its authors' checkpoints give their outputs; whatever is missing is what it was in training; ours train and come back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from policies.config import OctoConfig, OctoTokensConfig
from policies.contract import DataContract
from policies.history import MASK
from policies.networks.lanczos import lanczos3
from policies.networks.octo_heads import DiffusionHead
from policies.networks.octo_transformer import OctoInputs, OctoTransformer, attention_rules
from policies.octo import OctoPolicy
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig
from tests.policies import octo_checkpoints
from tests.policies.octo_checkpoints import T5, image_tokenizer, write

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
CAMERAS = ("image_primary", "image_wrist")
originals = pytest.mark.skipif(not FIXTURES.exists(), reason="the originals' outputs are not here")


@pytest.fixture(scope="module")
def original() -> OctoPolicy:
    return OctoPolicy.load(FIXTURES / "octo_tiny_small", unnorm_key="bridge_dataset")


@pytest.fixture(scope="module")
def outputs() -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / "octo_tiny_small_outputs" / "outputs.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads((FIXTURES / "octo_tiny_small_outputs" / "outputs.json").read_text())["texts"]


def recorded(policy: OctoPolicy, outputs: dict, texts: list[str], observed: str, task: str) -> OctoInputs:
    """The recorded observations and tasks."""
    seen = {key.split("/", 1)[1]: value for key, value in outputs.items() if key.startswith(f"obs_{observed}/")}
    told = {key.split("/", 1)[1]: value for key, value in outputs.items() if key.startswith(f"task_{task}/")}
    language, language_mask = policy.text(texts if told["pad_mask_dict/language_instruction"].all() else ["", ""])
    return OctoInputs(
        images={key: seen[key] for key in CAMERAS if key in seen},
        steps=seen["timestep_pad_mask"],
        language=language,
        language_mask=language_mask,
        goals={key: told[key] for key in CAMERAS},
        present={key: seen[f"pad_mask_dict/{key}"] for key in CAMERAS if f"pad_mask_dict/{key}" in seen},
    )


@originals
@torch.no_grad()
@pytest.mark.parametrize("task", ["lang", "goal", "both"])
@pytest.mark.parametrize("observed", ["full", "primary_only", "both_nopadmask", "one"])
def test_readouts_and_actions_are_the_originals(original, outputs, texts, observed, task):
    """With the recorded noise replayed: one sample, and five in one pass."""
    readout = original.transformer(recorded(original, outputs, texts, observed, task), "readout_action")
    torch.testing.assert_close(readout, outputs[f"out/{observed}__{task}/readout_action"], atol=2e-5, rtol=0)
    z, head = original.head.pool(readout[:, -1]), original.head
    for name in ("single", "5"):
        start, noises = outputs[f"noise/{observed}/{name}/x0"], outputs[f"noise/{observed}/{name}/z"]
        expected = [outputs[f"act/{observed}__{task}/{name}/{kind}"] for kind in ("normalized", "unnorm_bridge")]
        if name == "single":
            start, noises, expected = start[None], noises[:, None], [value[None] for value in expected]
        # They denoise every step of the window, of which the last is kept.
        x = head.denoise(z, start[:, :, -1].transpose(0, 1), noises[:, :, :, -1].transpose(1, 2), 7).unflatten(-1, (4, 7))
        torch.testing.assert_close(x.transpose(0, 1), expected[0], atol=2e-5, rtol=0)
        torch.testing.assert_close(original._physical(x).transpose(0, 1), expected[1], atol=2e-5, rtol=0)


@originals
@torch.no_grad()
def test_mask_tokens_and_noise_predictions_are_the_originals(original, outputs, texts):
    ids, used = original.text.ids(texts)
    assert torch.equal(ids, outputs["task_lang/language_instruction/input_ids"])
    assert torch.equal(used, outputs["task_lang/language_instruction/attention_mask"])
    inputs = recorded(original, outputs, texts, "full", "lang")
    _, mask, _ = original.transformer.assemble(inputs)
    assert torch.equal(mask == 0, outputs["attention_mask/octo_transformer/BlockTransformer_0/attention_mask"])
    of_z, of_time = original.head.condition(outputs["out/full__lang/readout_action"].mean(2).flatten(0, 1))
    for timestep in (0, 7, 19):
        predicted = original.head.predict(outputs["eps/x"].flatten(0, 1)[:, None], of_z[:, None], of_time[timestep])
        torch.testing.assert_close(predicted[:, 0], outputs[f"eps/t{timestep}"].flatten(0, 1), atol=2e-5, rtol=0)


@originals
@torch.no_grad()
def test_observations_become_the_recorded_inputs(original, outputs, texts):
    """Through the public door: history, goals, cameras that are padding."""
    observations = {key: outputs[f"obs_full/{key}"].numpy() for key in CAMERAS}
    observations |= {f"goal_{key}": outputs[f"task_both/{key}"].numpy() for key in CAMERAS}
    observations |= {"instruction": texts, MASK: outputs["obs_full/timestep_pad_mask"].numpy()}
    observations["pad_mask_dict"] = {key: outputs[f"obs_full/pad_mask_dict/{key}"].numpy() for key in CAMERAS}
    expected = outputs["out/full__both/readout_action"][:, -1].mean(1)
    torch.testing.assert_close(original.encode(observations), expected, atol=2e-5, rtol=0)


@originals
def test_bounds_are_the_originals(outputs):
    policy = OctoPolicy.load(FIXTURES / "octo_tiny_small", unnorm_key="bridge_dataset", normalization="bounds")
    normalized = outputs["act/full__lang/single/normalized"][:, None]
    physical = policy._physical(normalized)[:, 0]
    torch.testing.assert_close(physical, outputs["act/full__lang/single/unnorm_bounds_bridge"], atol=1e-5, rtol=0)


@originals
def test_the_tests_own_checkpoints_have_the_originals_names_and_shapes():
    model = json.loads((FIXTURES / "octo_tiny_small" / "config.json").read_text())["model"]
    t5 = json.loads((FIXTURES / "t5_tiny" / "config.json").read_text())
    expected = json.loads((FIXTURES / "octo_tiny_small_param_shapes.json").read_text())
    ours = octo_checkpoints.shapes(model, dict.fromkeys(CAMERAS, 64), t5=t5)
    assert ours == {key: tuple(shape) for key, shape in expected.items()}


DIMS = {"action_horizon": 3, "action_dim": 5}
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


def observations(policy: OctoPolicy, batch: int = 2, seed: int = 0) -> dict:
    rng, spec = np.random.default_rng(seed), policy.observation_spec
    images = {key: rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8) for key, size in spec.images.items()}
    vectors = {key: rng.normal(size=(batch, size)).astype(np.float32) for key, size in spec.vectors.items()}
    return {**images, **vectors, "instruction": (["go left", "pick up the spoon"] * batch)[:batch]}


def sampled(policy: OctoPolicy, seen: dict, count: int = 3) -> torch.Tensor:
    return policy.sample(seen, count, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("octo") / "checkpoint")


@pytest.fixture(scope="module")
def policy(small) -> OctoPolicy:
    return OctoPolicy.load(small)


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
    loss = policy.loss(observations(policy), actions[:, 0], torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0))
    assert loss[0] == 0
    assert loss[1] > 0
    loss.sum().backward()


def test_the_bounds_are_those_of_the_clipping(policy):
    np.testing.assert_allclose(policy.action_spec.low, [0.1 - 5 * 0.5] * 4 + [-5], rtol=1e-6)
    np.testing.assert_allclose(policy.action_spec.high, [0.1 + 5 * 0.5] * 4 + [5], rtol=1e-6)
    assert policy.action_spec.control_hz == 5


@pytest.mark.parametrize("exact", [True, False])
def test_who_sees_whom(exact):
    """Token by token, from the rules of the paper; in 1.0 the first token of a group is taken for the group before it."""
    groups, steps, task = (("obs_a", 2), ("obs_b", 1), ("readout_action", 1), ("readout_value", 2)), 2, 3
    tokens = [("task_language", -1)] * task
    for step in range(steps):
        line = [name for name, count in groups for _ in range(count)]
        if not exact:
            first = {sum(count for _, count in groups[:i]): groups[i - 1][0] for i in range(1, len(groups))}
            line = [first.get(i, name) for i, name in enumerate(line)]
        tokens += [(name, step) for name in line]
    for i, (name, step) in enumerate(tokens):
        for j, (other, when) in enumerate(tokens):
            sees = when <= step and (not other.startswith("readout") or other == name)
            assert attention_rules(groups, steps, task, exact)[i, j] == sees, (i, j)


def test_the_attention_of_1_0_differs(tmp_path):
    """The slip makes the single readout an observation, which is not without effect."""
    old = OctoPolicy.load(write(tmp_path / "old", old=True))
    new = OctoPolicy.load(write(tmp_path / "new", use_correct_attention=True, repeat_task_tokens=False))
    assert not old.transformer.exact
    seen = observations(old)
    assert not torch.allclose(old.encode(seen), new.encode(seen), atol=1e-4)


def test_a_missing_camera_is_one_that_is_padding(policy):
    seen = observations(policy)
    without = {key: value for key, value in seen.items() if key != "image_wrist"}
    padding = {**seen, "pad_mask_dict": {"image_wrist": np.zeros(2, bool)}}
    torch.testing.assert_close(sampled(policy, without), sampled(policy, padding), atol=1e-5, rtol=0)
    assert not torch.allclose(sampled(policy, without), sampled(policy, seen), atol=1e-3)
    with pytest.raises(InputError, match="lacks 'image_primary'"):
        policy.encode({"instruction": ["go left"]})


def test_a_missing_goal_is_black_and_a_missing_instruction_masked(policy):
    seen = observations(policy)
    black = {f"goal_{key}": np.zeros_like(seen[key]) for key in CAMERAS}
    assert torch.equal(sampled(policy, seen), sampled(policy, {**seen, **black}))
    goals = {f"goal_{key}": 255 - seen[key] for key in CAMERAS}
    assert not torch.allclose(sampled(policy, seen), sampled(policy, {**seen, **goals}), atol=1e-3)
    silent = {key: value for key, value in seen.items() if key != "instruction"}
    assert torch.equal(sampled(policy, {**silent, **goals}), sampled(policy, {**seen, **goals, "instruction": ["", ""]}))
    inputs = policy.tensors({**seen, "instruction": ["", "go left"]})
    assert inputs.language_mask.any(1).tolist() == [False, True]


def test_the_trunk_runs_once_and_an_instruction_is_read_once(policy, monkeypatch):
    calls = {"trunk": 0, "text": 0}
    trunk, text = OctoTransformer.forward, policy.text.model.forward
    count = lambda name, call: lambda *a, **k: (calls.update({name: calls[name] + 1}), call(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(OctoTransformer, "forward", count("trunk", trunk))
    monkeypatch.setattr(policy.text.model, "forward", count("text", text))
    seen = {**observations(policy), "instruction": ["open the drawer", "open"]}
    sampled(policy, seen, 50)
    assert calls == {"trunk": 1, "text": 1}
    sampled(policy, seen, 50)
    assert calls == {"trunk": 2, "text": 1}


def test_pictures_of_any_size_are_resized(policy):
    seen = observations(policy)
    large = {**seen, "image_primary": np.random.default_rng(1).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)}
    assert policy.tensors(large).images["image_primary"].shape == (2, 3, 32, 32, 3)
    with pytest.raises(InputError, match="'image_primary' is float32"):
        policy.encode({**seen, "image_primary": seen["image_primary"].astype(np.float32)})


def test_lanczos_is_tensorflows():
    image = torch.arange(20, dtype=torch.uint8).reshape(5, 4, 1) * 12
    # tf.image.resize(image, (3, 7), "lanczos3", antialias=True), rounded.
    expected = [[14, 18, 26, 33, 41, 49, 52], [95, 99, 107, 114, 121, 129, 133], [176, 179, 187, 195, 202, 210, 214]]
    assert lanczos3(image, (3, 7))[..., 0].tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_lanczos_keeps_a_plain_picture_plain(height, width, rows, columns, level):
    plain = torch.full((2, height, width, 3), level, dtype=torch.uint8)
    assert (lanczos3(plain, (rows, columns)) == level).all()


def test_octos_own_sizes():
    """27 and 93 million parameters, as its authors count them without the T5."""
    for width, layers, heads, millions in ((384, 12, 6, 27), (768, 12, 12, 93)):
        model = {
            "observation_tokenizers": {
                "primary": image_tokenizer("image_primary", features=[32, 96, 192, 384], num_features=512),
                "wrist": image_tokenizer("image_wrist", features=[32, 96, 192, 384], num_features=512),
            },
            "heads": {"action": {"name": "DiffusionActionHead", "kwargs": {"action_horizon": 4, "action_dim": 7}}},
            "readouts": {"action": 1},
            "transformer_kwargs": {"num_layers": layers, "mlp_dim": 4 * width, "num_attention_heads": heads},
            "token_embedding_size": width,
            "max_horizon": 10,
        }
        arrays = octo_checkpoints.shapes(model, {"image_primary": 256, "image_wrist": 128}, t5={**T5, "d_model": 768})
        count = sum(np.prod(shape) for key, shape in arrays.items() if "hf_model" not in key)
        assert round(count / 1e6) == millions


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
def test_bad_input_is_one_line(small, tmp_path, spoil, options, says):
    folder = tmp_path / "checkpoint"
    shutil.copytree(small, folder)
    shutil.copytree(small.parent / "t5_test", tmp_path / "t5_test")
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


@torch.no_grad()
def test_dimensions_that_a_robot_lacks_are_noise_as_in_training():
    torch.manual_seed(0)
    head = DiffusionHead({"readout_key": "readout_action", **DIMS, "diffusion_steps": 4, "hidden_dim": 32}, 8)
    z, noises = torch.randn(1, 8), torch.randn(5, 1, 2, 15)
    x = head.denoise(z, noises[0], noises[1:], 3).unflatten(-1, (3, 5))
    expected = (1 - head.alpha_bars[0]).sqrt() * noises[-1].unflatten(-1, (3, 5))
    torch.testing.assert_close(x[..., 3:], expected[..., 3:])
    assert (x[..., :3] - expected[..., :3]).abs().min() > 0


@torch.no_grad()
@pytest.mark.parametrize(("clip", "wild"), [(False, True), (True, False)])
def test_a_prediction_that_errs_is_no_wild_step_where_trained_here(clip, wild):
    """Off by a tenth at pure noise, where the noise is all there is: the second step should still see something like noise."""
    torch.manual_seed(0)
    head, seen = DiffusionHead({"readout_key": "readout_action", **DIMS, "clip_clean": clip}, 8), []
    head.predict = lambda x, *_: (seen.append(x), x + 0.1 * torch.randn_like(x))[1]
    noises = torch.randn(21, 64, 1, 15)
    head.denoise(torch.zeros(64, 8), noises[0], noises[1:], 5)
    assert (seen[1].std() > 2) == wild


TOKENS = {
    "vectors": OctoTokensConfig(("state", "proprio"), language="sentence"),
    "images and history": OctoTokensConfig(("image_primary", "proprio"), window=2),
}


def learned(store, config: OctoConfig, folder: Path, steps: int = 30) -> tuple[OctoPolicy, list[float]]:
    """A policy after some training, saved and loaded."""
    from policies.checkpoint import save_checkpoint

    torch.manual_seed(0)
    contract = DataContract.from_store(store, config.chunk, config.encoder.inputs)
    policy = OctoPolicy.create(config, contract)
    learner = CloningLearner(policy, CloningConfig(learning_rate=3e-3), steps=steps)
    seen = {**observations(policy, 8), "instruction": ["go left", "go right"] * 4}
    actions = torch.zeros(8, config.chunk, 3)
    actions[:, :, 0] = torch.tensor([-0.03, 0.03]).repeat(4)[:, None]
    batch = {"observations": seen, "actions": actions.numpy()}
    losses = [learner.update(batch, torch.Generator().manual_seed(i))["loss"].item() for i in range(steps)]
    table = {"language_table": torch.from_numpy(contract.embeddings())}
    save_checkpoint(folder, steps, learner.to_json(), {"model": {**learner.checkpoint_tensors(), **table}})
    with learner.acting():
        loaded = OctoPolicy.load(folder / f"step_{steps:08d}")
        assert torch.equal(sampled(loaded, seen), sampled(policy.eval(), seen))
    return loaded, losses


@pytest.mark.parametrize("name", TOKENS)
def test_it_learns_from_nothing_and_comes_back(store, tmp_path, name):
    config = OctoConfig(TOKENS[name], width=32, layers=2, chunk=2)
    policy, losses = learned(store, config, tmp_path / "run")
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert policy.inputs == TOKENS[name].inputs
    spec = policy.observation_spec
    assert (spec.window, set(spec.images) | set(spec.vectors)) == (TOKENS[name].window, set(policy.inputs))
    with pytest.raises(InputError, match="lacks 'proprio'"):
        policy.encode({key: value for key, value in observations(policy).items() if key != "proprio"})
    with pytest.raises(InputError, match="takes no options"):
        OctoPolicy.load(tmp_path / "run" / "step_00000030", chunk=2)
    assert not any("text" in key or "bert" in key for key in policy.checkpoint_tensors())


def test_an_original_is_fine_tuned_and_needs_its_files_no_more(store, small, tmp_path):
    shutil.copytree(small, tmp_path / "octo")
    shutil.copytree(small.parent / "t5_test", tmp_path / "t5_test")
    config = OctoConfig(OctoTokensConfig(("image_primary", "proprio")), chunk=3, pretrained=tmp_path / "octo")
    contract = DataContract.from_store(store, 3, config.encoder.inputs)
    base, new = OctoPolicy.load(small), OctoPolicy.create(config, contract)
    kept = {key for key, value in base.state_dict().items() if torch.equal(value, new.state_dict().get(key, torch.zeros(0)))}
    assert {key for key in base.state_dict() if key.startswith("transformer.blocks.")} <= kept
    assert "transformer.tokenizers.obs_wrist.encoder.embedding.weight" not in new.state_dict()
    assert not any(parameter.requires_grad for parameter in new.text.model.parameters())
    policy, losses = learned(store, config, tmp_path / "run")
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    before = sampled(policy, observations(policy))
    shutil.rmtree(tmp_path / "octo")
    shutil.rmtree(tmp_path / "t5_test")
    again = OctoPolicy.load(tmp_path / "run" / "step_00000030")
    assert torch.equal(sampled(again, observations(again)), before)
    assert again.action_spec.chunk == 3
    further = OctoConfig(OctoTokensConfig(("image_primary",)), chunk=3, pretrained=tmp_path / "run")
    contract = DataContract.from_store(store, 3, further.encoder.inputs)
    assert sampled(OctoPolicy.create(further, contract), observations(again)).shape == (2, 3, 3, 3)


def test_what_cannot_be_fine_tuned_is_one_line(store, small):
    contract = DataContract.from_store(store, 3, ("image_primary",))
    with pytest.raises(InputError, match="look back on 6 steps"):
        OctoPolicy.create(OctoConfig(OctoTokensConfig(window=7), pretrained=small), contract)
    strange = DataContract.from_store(store, 3, ("image_primary",))
    strange.images["image_side"] = (16, 16)
    with pytest.raises(InputError, match="knows no 'image_side'"):
        OctoPolicy.create(OctoConfig(pretrained=small), strange)
