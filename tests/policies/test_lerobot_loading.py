"""LeRobot checkpoints: the layouts it and its predecessors write, damaged ones, and those that need its package."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data.errors import InputError
from policies.base import Policy, observation_spec
from policies.formats.lerobot import Normalization
from policies.lerobot import LeRobotPolicy
from tests.policies import foreign_checkpoints as made
from tests.policies.seeded import generator, observations


def test_old_checkpoints_keep_their_normalisation(tmp_path, lerobot_diffusion):
    old: Any = LeRobotPolicy.load(made.lerobot(tmp_path / "old", made.DIFFUSION, old=True))
    seen = observations(old)
    torch.testing.assert_close(
        old.sample(seen, 2, generator()), lerobot_diffusion.sample(seen, 2, generator()), rtol=1e-4, atol=1e-4
    )


def test_normalisation_that_would_be_dropped_is_refused(tmp_path, lerobot_diffusion_folder):
    folder = _copy(lerobot_diffusion_folder, tmp_path)
    for path in folder.glob("policy_*"):
        path.unlink()
    with pytest.raises(InputError, match=r"'observation.images.top', so its MEAN_STD normalisation would be dropped"):
        LeRobotPolicy.load(folder)


def _copy(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def _edit(name: str, change: Any) -> Any:
    def damage(folder: Path) -> None:
        path = folder / name
        if name.endswith(".json"):
            values = json.loads(path.read_text())
            change(values)
            path.write_text(json.dumps(values))
        else:
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)

    return damage


BIAS = "diffusion.unet.final_conv.1.bias"
STATISTICS = "policy_preprocessor_step_1_normalizer_processor.safetensors"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_edit("model.safetensors", lambda t: t.pop(BIAS)), f"lacks '{BIAS}'"),
        (_edit("model.safetensors", lambda t: t.update({"extra.weight": torch.zeros(1)})), "unknown 'extra.weight'"),
        (
            _edit("model.safetensors", lambda t: t.update({BIAS: torch.full((2,), torch.nan)})),
            f"'{BIAS}' has values that are not finite",
        ),
        (_edit("model.safetensors", lambda t: t.update({BIAS: torch.zeros(3)})), f"'{BIAS}' has shape"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be read"),
        (lambda folder: (folder / STATISTICS).unlink(), "cannot be read"),
        (_edit(STATISTICS, lambda t: t.pop("observation.state.max")), "has no max of 'observation.state'"),
        (_edit(STATISTICS, lambda t: t.update({"observation.state.max": torch.full((3,), torch.inf)})), "not finite"),
        (
            _edit("policy_preprocessor.json", lambda v: v["steps"][1].update(state_file="../x.safetensors")),
            "not a file beside it",
        ),
        (_edit("policy_preprocessor.json", lambda v: v["steps"].append({"registry_name": "delta_actions"})), "'delta_actions'"),
        (lambda folder: (folder / "policy_postprocessor.json").write_text("{}"), "damaged"),
        (_edit("config.json", lambda v: v.update(vision_backbone="vit")), "vision backbone 'vit'"),
        (_edit("config.json", lambda v: v.update(noise_scheduler_type="PNDM")), "noise scheduler 'PNDM'"),
        (_edit("config.json", lambda v: v.update(down_dims=[15, 30])), "not a LeRobot diffusion policy"),
        (_edit("config.json", lambda v: v.pop("type")), "has no 'type'"),
        (_edit("config.json", lambda v: v.update(output_features={})), "has no 'action'"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(lerobot_diffusion_folder, tmp_path, damage, says):
    folder = _copy(lerobot_diffusion_folder, tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        LeRobotPolicy.load(folder)
    assert "\n" not in str(caught.value)


def test_cameras_are_named_by_where_they_are(tmp_path):
    sizes = dict.fromkeys((made.WRIST, made.CAMERA, "observation.images.left"), (32, 32))
    policy = LeRobotPolicy.load(made.lerobot(tmp_path, {**made.ACT, "chunk_size": 4}, sizes))
    assert list(observation_spec(policy).images) == ["image_wrist", "image_primary", "image_left"]


def test_training_folders_are_found(tmp_path):
    made.lerobot(tmp_path / "checkpoints" / "last" / "pretrained_model", made.ACT)
    assert LeRobotPolicy.recognizes(tmp_path)
    assert LeRobotPolicy.load(tmp_path).action_spec.chunk == 4
    assert not LeRobotPolicy.recognizes(tmp_path / "checkpoints")


def test_acts_keys_are_the_originals(lerobot_act_folder):
    """As LeRobot 0.4.4 writes them; the ResNet's are torchvision's (test_networks.py)."""
    layer = [f"self_attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
    layer += [f"{name}.{part}" for name in ("linear1", "linear2", "norm1", "norm2") for part in ("weight", "bias")]
    cross = [name.replace("self_attn", "multihead_attn") for name in layer if "attn" in name] + ["norm3.weight", "norm3.bias"]
    names = [f"{stack}.layers.0.{name}" for stack in ("encoder", "vae_encoder") for name in layer]
    names += [f"decoder.layers.0.{name}" for name in layer + cross] + ["decoder.norm.weight", "decoder.norm.bias"]
    linear = ("vae_encoder_robot_state_input_proj", "vae_encoder_action_input_proj", "vae_encoder_latent_output_proj")
    linear += ("encoder_robot_state_input_proj", "encoder_env_state_input_proj", "encoder_latent_input_proj")
    names += [
        f"{name}.{part}" for name in (*linear, "encoder_img_feat_input_proj", "action_head") for part in ("weight", "bias")
    ]
    embeddings = ("vae_encoder_cls_embed", "encoder_1d_feature_pos_embed", "decoder_pos_embed")
    names += [f"{name}.weight" for name in embeddings] + ["vae_encoder_pos_enc"]
    written = {key.removeprefix("model.") for key in load_file(lerobot_act_folder / "model.safetensors")}
    assert {key for key in written if not key.startswith("backbone.")} == set(names)
    assert "backbone.layer2.0.downsample.1.running_var" in written


finite = st.floats(-100, 100, width=32)


@given(
    st.sampled_from(["MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY"]),
    finite,
    st.floats(0.125, 100, width=32),
    finite,
    st.booleans(),
)
def test_normalising_is_undone(mode, low, width, x, old):
    one = width if mode == "MEAN_STD" else low + width
    normalization = Normalization(mode, torch.tensor([low]), torch.tensor([one]), old=old)
    value = torch.tensor([x])
    torch.testing.assert_close(normalization.unnormalize(normalization.normalize(value)), value, rtol=1e-3, atol=1e-2)
    if mode in ("MIN_MAX", "QUANTILES"):
        torch.testing.assert_close(
            normalization.normalize(torch.tensor([low, one])), torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4
        )


def test_a_feature_that_never_moved_comes_back_as_its_constant():
    normalization = Normalization("MIN_MAX", torch.tensor([2.0]), torch.tensor([2.0]))
    assert normalization.normalize(torch.tensor([2.0])).item() == -1
    torch.testing.assert_close(normalization.unnormalize(torch.tensor([0.7])), torch.tensor([2.0]))


def test_other_types_need_the_package(lerobot_act_folder, tmp_path, monkeypatch):
    folder = _copy(lerobot_act_folder, tmp_path)
    _edit("config.json", lambda v: v.update(type="smolvla"))(folder)
    monkeypatch.setitem(sys.modules, "lerobot.policies.factory", None)
    with pytest.raises(InputError, match=r"'smolvla'.*pip install lerobot==0.4.4") as caught:
        LeRobotPolicy.load(folder)
    assert "\n" not in str(caught.value)


class Package:
    """The part of lerobot 0.4 that other policies are run through, with a policy that adds noise to its state."""

    config = types.SimpleNamespace()

    @classmethod
    def from_pretrained(cls, _: str) -> Package:
        return cls()

    def to(self, _: str) -> Package:
        return self

    eval = reset = lambda self: self

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        assert batch[made.CAMERA].shape[1:] == (3, 32, 40)
        assert batch[made.CAMERA].max() <= 1
        assert batch["task"] == ["a", "a", "a", "b", "b", "b"]
        return batch[made.STATE][:, None, :2] + torch.randn(len(batch["task"]), 6, 2)


def test_other_types_run_through_the_package(lerobot_act_folder, tmp_path, monkeypatch):
    folder = _copy(lerobot_act_folder, tmp_path)
    _edit("config.json", lambda v: v.update(type="smolvla"))(folder)
    factory = types.ModuleType("lerobot.policies.factory")
    factory.get_policy_class = {"smolvla": Package}.__getitem__  # type: ignore[attr-defined]
    factory.make_pre_post_processors = lambda *_, **__: (lambda batch: batch, lambda chunk: 10 * chunk)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lerobot.policies.factory", factory)
    policy = LeRobotPolicy.load(folder)
    assert isinstance(policy, Policy)
    seen = {**observations(policy), "instruction": ["a", "b"]}
    torch.manual_seed(4)
    state = torch.random.get_rng_state()
    actions = policy.sample(seen, 3, generator(1))
    assert actions.shape == (2, 3, 4, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(actions, policy.sample(seen, 3, generator(1)))
    assert not torch.equal(actions, policy.sample(seen, 3, generator(2)))
