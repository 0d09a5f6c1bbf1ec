"""OpenVLA: what the original computed on its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies.loading import load_policy
from policies.networks.prismatic import build, check_keys, is_unused, to_theirs
from policies.networks.shared_prefix import sample_tokens
from tests.policies.openvla_checkpoint import (
    openvla_config,
)
from tests.policies.seeded import generator

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
ORIGINAL = FIXTURES / "openvla_tiny"
OUTPUTS = FIXTURES / "openvla_tiny_outputs"
needs_fixtures = pytest.mark.skipif(not ORIGINAL.exists(), reason="the originals' checkpoints are not here (shared/fixtures)")
INSTRUCTIONS = {"spoon": "put the spoon on the towel", "drawer": "open the middle drawer"}


@needs_fixtures
@torch.no_grad()
def test_parity_with_the_original():
    recorded = np.load(OUTPUTS / "outputs.npz")
    results = json.loads((OUTPUTS / "outputs.json").read_text())["results"]
    policies = {
        key: load_policy(f"openvla:{ORIGINAL}?unnorm_key={key}&temperature=0")
        for key in ("bridge_orig", "fractal20220817_data")
    }
    policy = policies["bridge_orig"]
    model = policy.model
    for name, result in results.items():
        picture, text = name.split("/")
        seen = {"image_primary": recorded[f"image/{picture}"][None], "instruction": [INSTRUCTIONS[text]]}
        pixels = policy.pictures(list(seen["image_primary"]))
        assert np.array_equal(pixels.numpy(), recorded[f"pixel_values/{picture}"])
        assert policy.prompter(INSTRUCTIONS[text]) == [*result["input_ids"], 29871]
        features, prefix = model.vision_backbone(pixels), policy.encode(seen)
        logits = model.language_model.lm_head(prefix.hidden)[0]
        tokens = sample_tokens(model.decoder, policy._head, policy._embed, prefix, 2, 7, temperature=0) + policy.first
        np.testing.assert_allclose(features, recorded[f"patch_features/{picture}"], atol=1e-4)
        np.testing.assert_allclose(model.embed_images(pixels[:, None]), recorded[f"projector/{picture}"], atol=1e-4)
        np.testing.assert_allclose(logits, recorded[f"prefill_last_logits/{name}"], atol=1e-4)
        assert tokens[0].tolist() == [result["action_tokens"]] * 2
        for key, other in policies.items():
            expected = np.asarray(result[f"action/{key}"], np.float32)
            np.testing.assert_allclose(other.sample(seen, 2)[0, :, 0], np.stack([expected] * 2), atol=1e-7)


@needs_fixtures
def test_parity_holds_for_a_batch_of_prompts_of_different_lengths():
    recorded = np.load(OUTPUTS / "outputs.npz")
    results = json.loads((OUTPUTS / "outputs.json").read_text())["results"]
    names = [name for name in results if not name.startswith("grad")]
    pictures = [recorded[f"image/{name.split('/')[0]}"][:224, :224] for name in names]
    seen = {"image_primary": np.stack(pictures), "instruction": [INSTRUCTIONS[name.split("/")[1]] for name in names]}
    whole = [i for i, name in enumerate(names) if recorded[f"image/{name.split('/')[0]}"].shape[0] == 224]
    actions = load_policy(f"{ORIGINAL}?unnorm_key=bridge_orig&temperature=0").sample(seen, 1)
    for i in whole:
        np.testing.assert_allclose(actions[i, 0, 0], np.float32(results[names[i]]["action/bridge_orig"]), atol=1e-7)
    assert len(whole) == 4


@needs_fixtures
def test_the_first_tokens_distribution_is_the_originals():
    recorded = np.load(OUTPUTS / "outputs.npz")
    table = json.loads((OUTPUTS / "first_token_sampling_dist_topk50.json").read_text())
    seen = {"image_primary": recorded["image/noise_256"][None], "instruction": [INSTRUCTIONS["spoon"]]}
    draws = 20_000
    for temperature, exact in table.items():
        policy = load_policy(f"{ORIGINAL}?unnorm_key=bridge_orig&temperature={temperature}&top_k=50")
        with torch.no_grad():
            prefix = policy.encode(seen)
            likeliest = policy._head(prefix.hidden)[0].double().topk(50)
            probabilities = (likeliest.values / float(temperature)).softmax(-1)
            ours = dict(zip((likeliest.indices + policy.first).tolist(), probabilities.tolist(), strict=True))
            drawn = sample_tokens(
                policy.model.decoder, policy._head, policy._embed, prefix, draws, 1, float(temperature), 50, generator()
            )
        counts = torch.bincount(drawn.flatten() + policy.first, minlength=32000)
        for token, probability in exact.items():
            assert abs(ours[int(token)] - probability) < 1e-4
            spread = (probability * (1 - probability) / draws) ** 0.5
            assert abs(counts[int(token)].item() / draws - probability) < 5 * spread


@pytest.mark.skipif(not (FIXTURES / "openvla_7b_keys_shapes.json").exists(), reason="shared/fixtures is not here")
def test_every_key_of_the_7b_checkpoint_is_loaded_or_known_to_be_unused():
    shapes = json.loads((FIXTURES / "openvla_7b_keys_shapes.json").read_text())
    config = openvla_config(size=224, timm_model_kwargs=None, text_config={"model_type": "llama", "vocab_size": 32064})
    model = build(config)
    check_keys(shapes, model, Path("7b"))
    unused = {key for key in shapes if is_unused(key, model)}
    model.vision_backbone.drop_unused()
    loaded = {to_theirs(key): list(value.shape) for key, value in model.state_dict().items()}
    assert loaded == {key: shape for key, shape in shapes.items() if key not in unused}
    assert len(shapes) == 982
    assert {key.split(".")[2] for key in unused} == {"blocks", "norm", "attn_pool"}
    assert sum(np.prod(shape) for shape in shapes.values()) == 7_541_237_184
    surplus = {**shapes, "language_model.model.layers.32.mlp.up_proj.weight": [11008, 4096]}
    with pytest.raises(InputError, match=r"layers\.32\.mlp"):
        check_keys(surplus, build(config), Path("7b"))
