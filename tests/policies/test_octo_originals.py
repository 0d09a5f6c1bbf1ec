"""Octo: the checkpoints of its authors give their outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.history import MASK
from policies.networks.octo_transformer import OctoInputs
from policies.octo import OctoPolicy
from tests.policies import octo_checkpoints
from tests.policies.octo_checkpoints import CAMERAS

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
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
