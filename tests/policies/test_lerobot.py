"""LeRobot checkpoints: parity with LeRobot 0.4.4's own outputs, the layouts it and its predecessors write, and damaged ones."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data.errors import InputError
from data.torchvision_repair import repair_torchvision
from policies.base import Encodes, Policy, Trainable, observation_spec
from policies.formats.lerobot import Normalization
from policies.history import MASK
from policies.lerobot import LeRobotPolicy
from policies.networks.act import ACTConfig, Layer, map_positions
from policies.networks.denoising_transformer import TransformerForDiffusion
from policies.networks.unet1d import ConditionalUnet1D
from policies.networks.visual import ResNet, cropped
from tests.policies import foreign_checkpoints as made

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "lerobot_diffusion_tiny_v0_4_4"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"the originals' outputs are not here ({FIXTURE.name})")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(policy: Any, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    rng, spec = np.random.default_rng(seed), observation_spec(policy)
    images = {key: rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8) for key, size in spec.images.items()}
    vectors = {key: rng.normal(size=(batch, size)).astype(np.float32) for key, size in spec.vectors.items()}
    return {**images, **vectors, "instruction": ["x"] * batch}


@pytest.fixture(scope="module")
def diffusion_folder(tmp_path_factory) -> Path:
    return made.lerobot(tmp_path_factory.mktemp("lerobot") / "diffusion", made.DIFFUSION)


@pytest.fixture(scope="module")
def act_folder(tmp_path_factory) -> Path:
    return made.lerobot(tmp_path_factory.mktemp("lerobot") / "act", made.ACT, environment=2)


@pytest.fixture(scope="module")
def diffusion(diffusion_folder) -> Any:
    return LeRobotPolicy.load(diffusion_folder)


@pytest.fixture(scope="module")
def act(act_folder) -> Any:
    return LeRobotPolicy.load(act_folder)


@needs_fixture
def test_noise_predictions_and_seeded_actions_are_the_originals():
    policy: Any = LeRobotPolicy.load(FIXTURE)
    theirs = {key: torch.from_numpy(value) for key, value in np.load(FIXTURE / "recorded_outputs.npz").items()}
    inputs = policy._normalized({"observation.image": theirs["image"], "observation.state": theirs["state"]})
    with torch.no_grad():
        torch.testing.assert_close(policy.model.features(inputs), theirs["global_cond"], rtol=0, atol=1e-5)
        encoding = policy.model.encode(inputs)
        for timestep in (0, 50, 99):
            prediction = policy.model.unet.denoise(theirs["x0"], torch.tensor(timestep), encoding)
            torch.testing.assert_close(prediction, theirs[f"eps_t{timestep}"], rtol=0, atol=1e-5)
        # On a CPU the random streams are those of the original too.
        actions = policy.sample_encoded(encoding, 1, generator(123))[:, 0]
    torch.testing.assert_close(actions, theirs["seed123_actions"], rtol=1e-5, atol=1e-3)


@needs_fixture
def test_the_fixture_is_recognised_and_its_bounds_are_its_statistics():
    assert LeRobotPolicy.recognizes(FIXTURE)
    policy: Any = LeRobotPolicy.load(FIXTURE)
    statistics = load_file(FIXTURE / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    assert policy.action_spec.chunk == 8
    assert policy.observation_spec.window == 2
    np.testing.assert_allclose(policy.action_spec.low, statistics["action.min"], rtol=1e-6)
    np.testing.assert_allclose(policy.action_spec.high, statistics["action.max"], rtol=1e-6)


def test_both_are_policies(diffusion, act):
    for policy in (diffusion, act):
        assert isinstance(policy, Policy)
        assert isinstance(policy, Encodes)
        assert isinstance(policy, Trainable)
        actions = policy.sample(observations(policy), 3, generator())
        assert actions.shape == (2, 3, 4, 2)
        assert torch.equal(actions, policy.sample(observations(policy), 3, generator()))
        assert policy.loss(observations(policy), torch.zeros(2, 4, 2)).shape == (2,)


def test_samples_of_one_encoding_are_those_of_a_call_each(diffusion):
    seen = observations(diffusion)
    encoding = diffusion.encode(seen)
    assert torch.equal(diffusion.sample(seen, 4, generator(3)), diffusion.sample_encoded(encoding, 4, generator(3)))
    assert len(torch.unique(diffusion.sample_encoded(encoding, 4, generator(3))[0].flatten(1), dim=0)) == 4


def test_a_batch_is_its_rows(act, diffusion):
    for policy in (act, diffusion):
        seen = observations(policy, 3)
        encoding = policy.encode(seen)
        alone = policy.encode({key: value[1:2] for key, value in seen.items()})
        for whole, one in zip(_leaves(encoding), _leaves(alone), strict=True):
            if len(whole) == 3:
                torch.testing.assert_close(whole[1:2], one, rtol=1e-4, atol=1e-5)


def _leaves(value: Any) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def test_history_counts_and_is_repeated_where_there_is_none(diffusion):
    seen = observations(diffusion)
    twice = {key: value if key == "instruction" else np.stack([value, value], axis=1) for key, value in seen.items()}
    same = diffusion.sample({**twice, MASK: np.ones((2, 2), bool)}, 1, generator())
    assert torch.equal(same, diffusion.sample(seen, 1, generator()))
    twice["proprio"] = twice["proprio"] * np.array([[[3.0], [1.0]]], np.float32)
    assert not torch.equal(same, diffusion.sample({**twice, MASK: np.ones((2, 2), bool)}, 1, generator()))


def test_pictures_of_another_size_are_resized(act):
    seen = observations(act)
    flat = {**seen, "image_primary": np.full_like(seen["image_primary"], 77)}
    larger = {**seen, "image_primary": np.full((2, 64, 80, 3), 77, np.uint8)}
    torch.testing.assert_close(act.sample(flat, 1), act.sample(larger, 1), rtol=0, atol=1e-5)


def test_act_samples_alike_unless_its_latent_is_drawn(act, act_folder):
    seen = observations(act)
    actions = act.sample(seen, 3, generator())
    assert torch.equal(actions[:, 0], actions[:, 2])
    drawn = LeRobotPolicy.load(act_folder, latent="prior").sample(seen, 3, generator())
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


def test_the_chunk_may_be_all_that_is_predicted(act_folder, diffusion_folder):
    short: Any = LeRobotPolicy.load(act_folder)
    whole: Any = LeRobotPolicy.load(act_folder, chunk=6)
    seen = observations(short)
    assert torch.equal(whole.sample(seen, 1)[:, :, :4], short.sample(seen, 1))
    # The first of a diffusion policy's predictions is of the first observation's step.
    assert LeRobotPolicy.load(diffusion_folder, chunk=7).action_spec.chunk == 7
    with pytest.raises(InputError, match="predicts 7 actions"):
        LeRobotPolicy.load(diffusion_folder, chunk=8)


def test_inference_steps_switch_to_ddim(diffusion_folder, diffusion):
    fast: Any = LeRobotPolicy.load(diffusion_folder, inference_steps=3)
    calls = []
    denoise = fast.model.unet.denoise
    fast.model.unet.denoise = lambda *given: calls.append(1) or denoise(*given)
    assert fast.sample(observations(fast), 2, generator()).shape == (2, 2, 4, 2)
    assert len(calls) == 3
    with pytest.raises(InputError, match="inference_steps=11: must be between 1 and 10"):
        LeRobotPolicy.load(diffusion_folder, inference_steps=11)


def test_the_loss_is_weighted_and_ignores_what_it_was_not_given(diffusion, act):
    for policy in (diffusion, act):
        seen, actions = observations(policy), torch.randn(2, 3, 2, generator=generator())
        plain = policy.loss(seen, actions, generator=generator(1))
        weighted = policy.loss(seen, actions, torch.tensor([2.0, 0.0]), generator=generator(1))
        torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 0.0]))
        with pytest.raises(InputError, match="chunks of 20 actions"):
            policy.loss(seen, torch.zeros(2, 20, 2))


def test_act_does_not_count_padded_actions(act):
    seen, actions = observations(act), torch.randn(2, 6, 2, generator=generator())
    padded = np.zeros((2, 6), bool)
    padded[:, 4:] = True
    changed = actions.clone()
    changed[:, 4:] += 100
    losses = [act.loss({**seen, "action_is_pad": padded}, chunk, generator=generator(1)) for chunk in (actions, changed)]
    torch.testing.assert_close(*losses)


def test_old_checkpoints_keep_their_normalisation(tmp_path, diffusion):
    old: Any = LeRobotPolicy.load(made.lerobot(tmp_path / "old", made.DIFFUSION, old=True))
    seen = observations(old)
    torch.testing.assert_close(old.sample(seen, 2, generator()), diffusion.sample(seen, 2, generator()), rtol=1e-4, atol=1e-4)


def test_normalisation_that_would_be_dropped_is_refused(tmp_path, diffusion_folder):
    folder = _copy(diffusion_folder, tmp_path)
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
def test_a_damaged_checkpoint_is_one_line(diffusion_folder, tmp_path, damage, says):
    folder = _copy(diffusion_folder, tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        LeRobotPolicy.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_primary": None}, "lacks 'image_primary'.*'observation.images.top'"),
        ({"proprio": np.zeros((2, 7), np.float32)}, "'proprio' has shape"),
        ({"image_primary": np.zeros((2, 32, 40, 4), np.uint8)}, "'image_primary' has shape"),
    ],
)
def test_a_wrong_observation_is_one_line(act, change, says):
    seen = {**observations(act), **change}
    with pytest.raises(InputError, match=says):
        act.sample({key: value for key, value in seen.items() if value is not None}, 1)


def test_cameras_are_named_by_where_they_are(tmp_path):
    sizes = dict.fromkeys((made.WRIST, made.CAMERA, "observation.images.left"), (32, 32))
    policy = LeRobotPolicy.load(made.lerobot(tmp_path, {**made.ACT, "chunk_size": 4}, sizes))
    assert list(observation_spec(policy).images) == ["image_wrist", "image_primary", "image_left"]


def test_training_folders_are_found(tmp_path):
    made.lerobot(tmp_path / "checkpoints" / "last" / "pretrained_model", made.ACT)
    assert LeRobotPolicy.recognizes(tmp_path)
    assert LeRobotPolicy.load(tmp_path).action_spec.chunk == 4
    assert not LeRobotPolicy.recognizes(tmp_path / "checkpoints")


def test_acts_keys_are_the_originals(act_folder):
    """As LeRobot 0.4.4 writes them; the ResNet's are torchvision's (see below)."""
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
    written = {key.removeprefix("model.") for key in load_file(act_folder / "model.safetensors")}
    assert {key for key in written if not key.startswith("backbone.")} == set(names)
    assert "backbone.layer2.0.downsample.1.running_var" in written


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_act_layer_without_positions_is_torchs(cross, pre_norm):
    config = ACTConfig(
        action=2, state=1, environment=0, cameras=0, dim_model=16, n_heads=2, dim_feedforward=8, pre_norm=pre_norm
    )
    ours = Layer(config, cross).eval()
    kind = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    theirs = kind(16, 2, 8, batch_first=True, norm_first=pre_norm).eval()
    theirs.load_state_dict(ours.state_dict())
    x, memory, zero = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.zeros(1, 1, 16)
    wanted = theirs(x, memory) if cross else theirs(x)
    torch.testing.assert_close(ours(x, zero, memory=memory, memory_positions=zero), wanted, rtol=1e-4, atol=1e-5)


def test_positions_of_a_map_tell_rows_and_columns_apart():
    positions = map_positions(3, 4, 16, torch.device("cpu")).reshape(3, 4, 16)
    assert torch.equal(positions[1, 0, :8], positions[1, 3, :8])
    assert torch.equal(positions[0, 2, 8:], positions[2, 2, 8:])
    assert len(torch.unique(positions.flatten(0, 1), dim=0)) == 12


@pytest.mark.parametrize(("name", "dilate"), [("resnet18", False), ("resnet34", False), ("resnet50", True)])
def test_resnets_are_torchvisions(name, dilate):
    repair_torchvision()
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, name)(replace_stride_with_dilation=[False, False, dilate]).eval()
    ours = ResNet(name, dilate=dilate).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.rand(1, 3, 48, 70, generator=generator())
    features = torch.nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(ours(images), features, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_the_middle_of_a_picture_is_cropped(height, width, more, wide):
    images = torch.rand(1, 1, height + more, width + wide)
    crop = cropped(images, (height, width), random=False)
    assert crop.shape == (1, 1, height, width)
    top, left = round(more / 2), round(wide / 2)
    assert torch.equal(crop, images[:, :, top : top + height, left : left + width])
    assert cropped(images, (height, width), random=True).shape == crop.shape


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


@pytest.mark.parametrize("kind", ["unet", "transformer", "encoding transformer"])
def test_a_denoiser_gives_each_chunk_its_own_observation(kind):
    torch.manual_seed(0)
    network: Any = ConditionalUnet1D(3, 5, (16, 32), time_embedding=16)
    if kind != "unet":
        network = TransformerForDiffusion(3, 8, 5, 2, 1, 2, 16, condition_layers=int(kind.startswith("encoding"))).eval()
    z = torch.randn(2, 5) if kind == "unet" else torch.randn(2, 2, 5)
    noisy, timestep = torch.randn(6, 8, 3), torch.tensor([1, 2, 3, 4, 5, 6])
    together = network(noisy, timestep, z)
    each = [network(noisy[i : i + 1], timestep[i], z[i // 3 : i // 3 + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-4, atol=1e-5)
    alike = network(noisy, torch.tensor(3), z)
    torch.testing.assert_close(alike, network(noisy, torch.full((6,), 3), z), rtol=1e-4, atol=1e-5)


def test_an_action_is_not_denoised_by_later_ones_or_later_observations():
    torch.manual_seed(0)
    network = TransformerForDiffusion(3, 6, 5, 3, 2, 2, 16).eval()
    noisy, z = torch.randn(1, 6, 3), torch.randn(1, 3, 5)
    later, unseen = noisy.clone(), z.clone()
    later[:, 3:] += 1
    unseen[:, 2:] += 1
    before = network(noisy, torch.tensor(1), z)
    torch.testing.assert_close(network(later, torch.tensor(1), z)[:, :3], before[:, :3])
    # Action t sees observations up to t: the third changes the third action, not the second.
    changed = network(noisy, torch.tensor(1), unseen)
    torch.testing.assert_close(changed[:, :2], before[:, :2])
    assert not torch.allclose(changed[:, 2], before[:, 2])


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_a_unet_takes_chunks_of_any_length(length):
    network = ConditionalUnet1D(2, 4, (8, 16, 16), time_embedding=16)
    assert network(torch.randn(3, length, 2), torch.tensor(5), torch.randn(3, 4)).shape == (3, length, 2)


def test_other_types_need_the_package(act_folder, tmp_path, monkeypatch):
    folder = _copy(act_folder, tmp_path)
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


def test_other_types_run_through_the_package(act_folder, tmp_path, monkeypatch):
    folder = _copy(act_folder, tmp_path)
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
