"""Octo: who sees whom, and that whatever is missing is what it was in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from policies.networks.lanczos import lanczos3
from policies.networks.octo_heads import DiffusionHead
from policies.networks.octo_transformer import OctoTransformer, attention_rules
from policies.octo import OctoPolicy
from tests.policies import octo_checkpoints
from tests.policies.octo_checkpoints import CAMERAS, DIMS, T5, image_tokenizer, write
from tests.policies.seeded import observations, sampled


def test_the_bounds_are_those_of_the_clipping(octo):
    np.testing.assert_allclose(octo.action_spec.low, [0.1 - 5 * 0.5] * 4 + [-5], rtol=1e-6)
    np.testing.assert_allclose(octo.action_spec.high, [0.1 + 5 * 0.5] * 4 + [5], rtol=1e-6)
    assert octo.action_spec.control_hz == 5


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


def test_a_missing_camera_is_one_that_is_padding(octo):
    seen = observations(octo)
    without = {key: value for key, value in seen.items() if key != "image_wrist"}
    padding = {**seen, "pad_mask_dict": {"image_wrist": np.zeros(2, bool)}}
    torch.testing.assert_close(sampled(octo, without), sampled(octo, padding), atol=1e-5, rtol=0)
    assert not torch.allclose(sampled(octo, without), sampled(octo, seen), atol=1e-3)
    with pytest.raises(InputError, match="lacks 'image_primary'"):
        octo.encode({"instruction": ["go left"]})


def test_a_missing_goal_is_black_and_a_missing_instruction_masked(octo):
    seen = observations(octo)
    black = {f"goal_{key}": np.zeros_like(seen[key]) for key in CAMERAS}
    assert torch.equal(sampled(octo, seen), sampled(octo, {**seen, **black}))
    goals = {f"goal_{key}": 255 - seen[key] for key in CAMERAS}
    assert not torch.allclose(sampled(octo, seen), sampled(octo, {**seen, **goals}), atol=1e-3)
    silent = {key: value for key, value in seen.items() if key != "instruction"}
    assert torch.equal(sampled(octo, {**silent, **goals}), sampled(octo, {**seen, **goals, "instruction": ["", ""]}))
    inputs = octo.tensors({**seen, "instruction": ["", "go left"]})
    assert inputs.language_mask.any(1).tolist() == [False, True]


def test_the_trunk_runs_once_and_an_instruction_is_read_once(octo, monkeypatch):
    calls = {"trunk": 0, "text": 0}
    trunk, text = OctoTransformer.forward, octo.text.model.forward
    count = lambda name, call: lambda *a, **k: (calls.update({name: calls[name] + 1}), call(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(OctoTransformer, "forward", count("trunk", trunk))
    monkeypatch.setattr(octo.text.model, "forward", count("text", text))
    seen = {**observations(octo), "instruction": ["open the drawer", "open"]}
    sampled(octo, seen, 50)
    assert calls == {"trunk": 1, "text": 1}
    sampled(octo, seen, 50)
    assert calls == {"trunk": 2, "text": 1}


def test_pictures_of_any_size_are_resized(octo):
    seen = observations(octo)
    large = {**seen, "image_primary": np.random.default_rng(1).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)}
    assert octo.tensors(large).images["image_primary"].shape == (2, 3, 32, 32, 3)
    with pytest.raises(InputError, match="'image_primary' is float32"):
        octo.encode({**seen, "image_primary": seen["image_primary"].astype(np.float32)})


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
