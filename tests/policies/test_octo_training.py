"""Octo: it is trained from nothing or fine-tuned, and comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies.config import OctoConfig, OctoTokensConfig
from policies.contract import DataContract
from policies.octo import OctoPolicy
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig
from tests.policies.seeded import observations, sampled

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


def test_an_original_is_fine_tuned_and_needs_its_files_no_more(store, octo_folder, tmp_path):
    shutil.copytree(octo_folder, tmp_path / "octo")
    shutil.copytree(octo_folder.parent / "t5_test", tmp_path / "t5_test")
    config = OctoConfig(OctoTokensConfig(("image_primary", "proprio")), chunk=3, pretrained=tmp_path / "octo")
    contract = DataContract.from_store(store, 3, config.encoder.inputs)
    base, new = OctoPolicy.load(octo_folder), OctoPolicy.create(config, contract)
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


def test_what_cannot_be_fine_tuned_is_one_line(store, octo_folder):
    contract = DataContract.from_store(store, 3, ("image_primary",))
    with pytest.raises(InputError, match="look back on 6 steps"):
        OctoPolicy.create(OctoConfig(OctoTokensConfig(window=7), pretrained=octo_folder), contract)
    strange = DataContract.from_store(store, 3, ("image_primary",))
    strange.images["image_side"] = (16, 16)
    with pytest.raises(InputError, match="knows no 'image_side'"):
        OctoPolicy.create(OctoConfig(pretrained=octo_folder), strange)
