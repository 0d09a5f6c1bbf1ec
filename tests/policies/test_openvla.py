"""OpenVLA: actions as tokens, their likelihood and loss, and fine-tuning by LoRA."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.language import LanguageEncoder
from data.normalizer import Normalizer
from policies.base import ActionSpec
from policies.checkpoint import save_checkpoint
from policies.config import OpenVLAConfig
from policies.contract import DataContract
from policies.formats.openvla import Range
from policies.loading import load_policy
from policies.openvla import OpenVLAPolicy
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig
from tests.policies.openvla_checkpoint import (
    observations,
)
from tests.policies.seeded import generator


@settings(max_examples=30, deadline=None)
@given(
    low=st.lists(st.floats(-5, 5), min_size=7, max_size=7),
    span=st.lists(st.floats(0.01, 4), min_size=7, max_size=7),
    mask=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_normalising_inverts_unnormalising(low, span, mask):
    unit = Range(np.asarray(low), np.asarray(low) + np.asarray(span), np.asarray(mask))
    values = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None].expand(-1, 7)
    torch.testing.assert_close(unit.normalize(unit.unnormalize(values)), values, atol=1e-5, rtol=0)


def test_a_bin_is_its_own_action_and_the_edges_are_the_tokenizers(openvla):
    dim = openvla.action_spec.dim
    every = torch.arange(256)[:, None].expand(-1, dim)
    actions = openvla.values[every, torch.arange(dim)]
    # The two tokens of the uppermost value: the original's tokenizer writes the lower one unless the value is 1 exactly.
    assert torch.equal(openvla.bins(actions), every.clamp(min=1))
    assert torch.equal(actions[0], actions[1])
    spec = openvla.action_spec
    rng = np.random.default_rng(0)
    normalized = np.concatenate([rng.uniform(-1.1, 1.1, (500, dim)), np.ones((1, dim)), -np.ones((1, dim))])
    digits = np.digitize(np.clip(normalized, -1, 1), np.linspace(-1, 1, 256))
    low, high = np.asarray(spec.low), np.asarray(spec.high)
    physical = torch.tensor(np.float32((normalized + 1) / 2 * (high - low) + low))
    tokens = openvla.bins(physical) + openvla.first
    assert (tokens[:500] == torch.from_numpy(32000 - digits)[:500]).float().mean() > 0.999  # roundings at the edges
    assert torch.equal(tokens[500:], torch.from_numpy(32000 - digits)[500:])


def test_only_action_tokens_count_for_log_prob(openvla):
    """All actions of the first dimension, the others held: probabilities of the tokens that mean them sum to one."""
    seen = observations(1)
    with torch.no_grad():
        first = openvla._head(openvla.encode(seen).hidden)[0].softmax(-1)
        sampled = openvla.sample(seen, 1, generator())
        every = sampled.expand(1, 256, 1, 7).clone()
        every[0, :, 0, 0] = openvla.values[:, 0]
        whole = openvla.log_prob(seen, every)[0]
        rest = whole - first.log()[openvla.bins(every)[0, :, 0, 0]]
    # What is left is the likelihood of six tokens after each first one.
    assert first.sum().item() == pytest.approx(1, abs=1e-5)
    assert (rest <= 1e-4).all()


def test_the_loss_is_transformers_cross_entropy_of_action_and_stop(openvla):
    seen = observations(2)
    actions = openvla.sample(seen, 1, generator())[:, 0]
    weights = torch.tensor([0.5, 2.0])
    losses = openvla.loss(seen, actions, weights)
    model = openvla.model
    for i in range(2):
        prompt = openvla.prompter(seen["instruction"][i])
        ids = torch.tensor([*prompt, *(openvla.bins(actions[i, 0]) + openvla.first).tolist(), 2])
        words = model.decoder.embed_tokens(ids)
        pixels = openvla.pictures([seen["image_primary"][i]])[:, None]
        embeddings = torch.cat([words[:1], model.embed_images(pixels)[0], words[1:]])[None]
        labels = torch.full(embeddings.shape[:2], -100)
        labels[0, -8:] = ids[-8:]
        expected = model.language_model(inputs_embeds=embeddings, labels=labels, use_cache=False).loss
        assert losses[i].item() == pytest.approx(weights[i].item() * expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda seen: seen.pop("image_primary"), "lacks 'image_primary'"),
        (lambda seen: seen.pop("instruction"), "lacks 'instruction'"),
        (lambda seen: seen.update(image_primary=np.zeros((2, 28, 28, 3), np.float32)), "uint8"),
        (lambda seen: seen.update(image_primary=np.zeros((2, 3, 28, 28), np.uint8)), "uint8"),
    ],
)
def test_wrong_observations_are_one_line(openvla, change, says):
    seen = observations()
    change(seen)
    with pytest.raises(InputError, match=says):
        openvla.sample(seen, 1)


def contract(chunk: int = 1) -> DataContract:
    names = ("x", "y", "gripper")
    spec = ActionSpec(names, ("m", "m", "open"), (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), "end_effector_delta_base", 5.0, chunk)
    unit = Normalizer(np.float32([0, 0.1, 0.5]), np.float32([0.5, 0.3, 0.5]))
    language = LanguageEncoder("dataset", {"go left": np.eye(4, dtype=np.float32)[0]})
    return DataContract(spec, unit, {}, {"image_primary": (32, 32)}, language, ("made",))


def test_only_adapters_are_trained_and_kept(openvla_folder, tmp_path, openvla):
    torch.manual_seed(0)
    config = OpenVLAConfig(pretrained=openvla_folder, lora_rank=4, chunk=2)
    tuned = OpenVLAPolicy.create(config, contract())
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert set(trained) == set(tuned.checkpoint_tensors())
    assert all("lora_" in name for name in trained)
    for part in ("vision_backbone.featurizer.blocks.0.attn.qkv", "projector.fc1", "self_attn.q_proj", "mlp.down_proj"):
        assert any(part in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    seen = observations(2, size=32)
    with torch.no_grad():
        assert torch.equal(tuned.encode(seen).hidden, openvla.encode(seen).hidden)
    actions = torch.tensor([[-0.4, 0.0, 1.0], [0.4, 0.2, 0.0]])[:, None].expand(2, 2, 3)
    learner = CloningLearner(tuned, CloningConfig(learning_rate=1e-2, average=0.5), steps=60)
    batch = {"observations": seen, "actions": actions.numpy()}
    losses = [learner.update(batch, generator(step))["loss"].item() for step in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    with learner.acting():
        assert (tuned.sample(seen, 8, generator()) - actions[:, None]).abs().mean() < 0.15
    step = save_checkpoint(
        tmp_path / "run",
        60,
        learner.to_json(),
        {"model": {**learner.checkpoint_tensors(), "language_table": torch.from_numpy(tuned.adapted[1].embeddings())}},
    )
    assert sum(file.stat().st_size for file in step.iterdir()) < (openvla_folder / "model.safetensors").stat().st_size / 10
    loaded = load_policy(tmp_path / "run")
    with learner.acting():
        assert torch.equal(loaded.sample(seen, 4, generator()), tuned.sample(seen, 4, generator()))
    assert loaded.action_spec == tuned.action_spec
    assert loaded.action_spec.chunk == 2
    values = json.loads((step / "config.json").read_text())
    values["config"]["pretrained"] = str(tmp_path / "moved")
    (step / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="pretrained=FOLDER"):
        load_policy(tmp_path / "run")
    greedy = load_policy(f"{tmp_path / 'run'}?pretrained={openvla_folder}&temperature=0").sample(seen, 2, generator())
    assert torch.equal(greedy[:, 0], greedy[:, 1])
    with pytest.raises(InputError, match="its options are"):
        load_policy(f"{tmp_path / 'run'}?pretrained={openvla_folder}&unnorm_key=bridge_orig")
    again = load_policy(f"{tmp_path / 'run'}?pretrained={openvla_folder}")
    assert torch.equal(loaded.sample(seen, 4, generator()), again.sample(seen, 4, generator()))


def test_fine_tuning_needs_a_token_checkpoint_and_one_camera(tmp_path, oft_folder):
    from policies.config import CameraConfig

    with pytest.raises(InputError, match="no such folder"):
        OpenVLAPolicy.create(OpenVLAConfig(pretrained=tmp_path / "nothing"), contract())
    with pytest.raises(InputError, match="is an OFT checkpoint"):
        OpenVLAPolicy.create(OpenVLAConfig(pretrained=oft_folder), contract())
    with pytest.raises(InputError, match="one camera"):
        CameraConfig(("image_primary", "proprio"))
