"""OpenVLA and OpenVLA-OFT: what the originals computed on their checkpoints, and what their formats promise."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from data.errors import InputError
from data.language import LanguageEncoder
from data.normalizer import Normalizer
from policies.base import ActionSpec
from policies.checkpoint import save_checkpoint
from policies.config import OpenVLAConfig
from policies.contract import DataContract
from policies.formats.openvla import PictureProcessor, Prompter, Range
from policies.loading import load_policy
from policies.networks.prismatic import build, check_keys, is_unused, to_theirs
from policies.networks.shared_prefix import sample_tokens
from policies.openvla import OpenVLAPolicy
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig
from tests.policies.openvla_checkpoint import DINO, SIGLIP, openvla_config, statistics, write_oft, write_openvla

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
ORIGINAL = FIXTURES / "openvla_tiny"
OUTPUTS = FIXTURES / "openvla_tiny_outputs"
needs_fixtures = pytest.mark.skipif(not ORIGINAL.exists(), reason="the originals' checkpoints are not here (shared/fixtures)")
INSTRUCTIONS = {"spoon": "put the spoon on the towel", "drawer": "open the middle drawer"}

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(batch: int = 2, cameras: tuple[str, ...] = ("image_primary",), size: int = 28, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8) for camera in cameras}
    return {**images, "instruction": ["go left", "go to the right", "go"][:batch]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openvla") / "checkpoint"
    write_openvla(path)
    return path


@pytest.fixture(scope="module")
def policy(folder) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(folder)


@pytest.fixture(scope="module")
def oft_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("oft") / "checkpoint"
    write_oft(path)
    return path


def copy_with(folder: Path, to: Path, **changes) -> Path:
    """The folder again, its large files linked; config.json with changes."""
    to.mkdir()
    for file in folder.iterdir():
        os.link(file, to / file.name)
    if changes:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (to / "config.json").unlink()
        (to / "config.json").write_text(json.dumps(config))
    return to


# What the original computed.


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


# What the formats promise, on checkpoints written here.


@pytest.mark.parametrize("backbones", [(DINO,), (SIGLIP,), (DINO, SIGLIP)], ids=["dino", "siglip", "both"])
def test_one_backbone_or_two_in_one_file_or_shards(tmp_path, backbones):
    write_openvla(tmp_path / "one", openvla_config(backbones))
    write_openvla(tmp_path / "three", openvla_config(backbones), shards=3)
    one, three = (load_policy(tmp_path / name) for name in ("one", "three"))
    assert one.model.vision_backbone.featurizer.patch_embed.num_patches == 4
    assert torch.equal(one.sample(observations(), 3, generator()), three.sample(observations(), 3, generator()))
    assert all(parameter.device.type == "cpu" for parameter in one.parameters())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda weights: weights.pop("projector.fc2.bias"), r"lacks 'projector\.fc2\.bias'"),
        (
            lambda weights: weights.pop("vision_backbone.featurizer.norm.bias"),
            r"lacks 'vision_backbone\.featurizer\.norm\.bias'",
        ),
        (lambda weights: weights.update({"projector.fc4.bias": torch.ones(3)}), r"unknown 'projector\.fc4\.bias'"),
        (lambda weights: weights.update({"projector.fc1.bias": torch.ones(3)}), r"'projector\.fc1\.bias' has shape \(3,\)"),
        (
            lambda weights: weights["projector.fc1.bias"].fill_(float("nan")),
            r"'projector\.fc1\.bias' has values that are not finite",
        ),
        (lambda weights: weights["language_model.lm_head.weight"][7].fill_(float("inf")), r"lm_head\.weight' has values"),
    ],
)
def test_wrong_weights_are_one_line(folder, tmp_path, damage, says):
    path = copy_with(folder, tmp_path / "damaged")
    weights = {key: value.clone() for key, value in load_file(path / "model.safetensors").items()}
    damage(weights)
    (path / "model.safetensors").unlink()
    save_file(weights, path / "model.safetensors")
    with pytest.raises(InputError, match=says) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_frequencies_that_old_versions_saved_are_ignored(folder, tmp_path):
    path = copy_with(folder, tmp_path / "old")
    weights = load_file(path / "model.safetensors")
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    (path / "model.safetensors").unlink()
    save_file(weights, path / "model.safetensors")
    assert torch.equal(
        load_policy(path).sample(observations(), 1, generator()), load_policy(folder).sample(observations(), 1, generator())
    )


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors: is not there"),
        (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be read"),
        (lambda path: (path / "preprocessor_config.json").unlink(), r"preprocessor_config\.json: cannot be used"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}'),
            r"part-1\.safetensors: is not there",
        ),
        (lambda path: (path / "model.safetensors.index.json").write_text('{"weights": 1}'), r"index\.json: cannot be read"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "tokenizer.json"}}'),
            r"tokenizer\.json: cannot be read .*damaged",
        ),
    ],
)
def test_missing_and_broken_files_are_one_line(folder, tmp_path, break_it, says):
    path = copy_with(folder, tmp_path / "broken")
    break_it(path)
    with pytest.raises(InputError, match=says) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_config": {"model_type": "qwen2"}}, "only Llama"),
        ({"timm_model_ids": ["no_such_vit", SIGLIP]}, "describes no OpenVLA"),
        ({"norm_stats": {}}, "no statistics"),
        ({"norm_stats": {"a": {"action": {"q01": [0.0]}}}}, "'q99'"),
        ({"norm_stats": {"a": {"action": {"q01": [0.0], "q99": [float("nan")]}}}}, "not finite"),
        ({"n_action_bins": 40000}, "40000 action bins"),
    ],
)
def test_wrong_configs_are_one_line(folder, tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as caught:
        load_policy(copy_with(folder, tmp_path / "wrong", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("temperature=-1", "temperature"),
        ("top_k=0", "top_k"),
        ("prompt=v02", "default, v01"),
        ("dtype=int8", "bfloat16"),
        ("chunk=3", "OFT"),
        ("load_in_4bit=true&load_in_8bit=true", "exclude"),
        ("unnorm_key=kuka", "it has bridge_orig"),
    ],
)
def test_wrong_options_are_one_line(folder, option, says):
    with pytest.raises(InputError, match=says) as caught:
        load_policy(f"openvla:{folder}?{option}")
    assert "\n" not in str(caught.value)


def test_the_dataset_is_chosen_by_name_unless_there_is_one(folder, tmp_path):
    several = {"kuka": statistics(seed=1), "viola": statistics(5, seed=2)}
    path = copy_with(folder, tmp_path / "several", norm_stats=several)
    with pytest.raises(InputError, match="unnorm_key=NAME, one of kuka, viola"):
        load_policy(path)
    assert load_policy(f"{path}?unnorm_key=viola").action_spec.dim == 5
    spec = load_policy(f"{path}?unnorm_key=kuka").action_spec
    assert spec.control_hz == 10
    assert spec.low[:6] == pytest.approx(several["kuka"]["action"]["q01"][:6])
    assert (spec.low[6], spec.high[6]) == (-1, 1)
    # A fine-tuned checkpoint's own statistics, of one dataset, where nothing says what is not to be rescaled.
    own = {"mine": {"action": {key: value for key, value in statistics(seed=3)["action"].items() if key != "mask"}}}
    (path / "dataset_statistics.json").write_text(json.dumps(own))
    spec = load_policy(path).action_spec
    assert spec.high == pytest.approx(own["mine"]["action"]["q99"])


def test_prompts(folder, tmp_path):
    vocabulary = Prompter(folder, "default").tokenizer

    def text(ids):
        return "".join(vocabulary.id_to_token(i) for i in ids)

    default = Prompter(folder, None)("Pick up the CUP")
    assert default[0] == 1
    assert default[-1] == 29871
    assert text(default[1:-1]) == "In: What action should the robot take to pick up the cup?\nOut:"
    first = copy_with(folder, tmp_path / "openvla-v01-7b")
    assert text(Prompter(first, None)("go")[1:-1]).startswith("A chat between a curious user and an artificial")
    assert text(Prompter(first, None)("go")[1:-1]).endswith("USER: What action should the robot take to go? ASSISTANT:")
    assert Prompter(first, "default")("go") == Prompter(folder, None)("go")


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
@pytest.mark.parametrize("shape", [(28, 28), (41, 60), (60, 41), (17, 90)])
def test_pictures_are_prepared_as_torchvision_would(tmp_path, strategy, shape):
    from data.torchvision_repair import repair_torchvision

    repair_torchvision()
    import torchvision.transforms.functional as tvf
    from PIL import Image

    write_openvla(tmp_path / "c", openvla_config(image_resize_strategy=strategy))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    if strategy == "letterbox":
        longer = max(image.size)
        across, down = int((longer - image.size[0]) / 2), int((longer - image.size[1]) / 2)
        image = tvf.pad(image, (across, down, across, down), fill=(127, 127, 127))
    image = tvf.resize(image, (28, 28) if strategy == "resize-naive" else 28, interpolation=tvf.InterpolationMode.BICUBIC)
    tensor = tvf.to_tensor(tvf.center_crop(image, [28, 28]))
    expected = [
        tvf.normalize(tensor, mean, std)
        for mean, std in (([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5] * 3, [0.5] * 3))
    ]
    torch.testing.assert_close(PictureProcessor(tmp_path / "c")([picture])[0], torch.cat(expected), atol=1e-6, rtol=0)


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


def test_a_bin_is_its_own_action_and_the_edges_are_the_tokenizers(policy):
    dim = policy.action_spec.dim
    every = torch.arange(256)[:, None].expand(-1, dim)
    actions = policy.values[every, torch.arange(dim)]
    # The two tokens of the uppermost value: the original's tokenizer writes the lower one unless the value is 1 exactly.
    assert torch.equal(policy.bins(actions), every.clamp(min=1))
    assert torch.equal(actions[0], actions[1])
    spec = policy.action_spec
    rng = np.random.default_rng(0)
    normalized = np.concatenate([rng.uniform(-1.1, 1.1, (500, dim)), np.ones((1, dim)), -np.ones((1, dim))])
    digits = np.digitize(np.clip(normalized, -1, 1), np.linspace(-1, 1, 256))
    low, high = np.asarray(spec.low), np.asarray(spec.high)
    physical = torch.tensor(np.float32((normalized + 1) / 2 * (high - low) + low))
    tokens = policy.bins(physical) + policy.first
    assert (tokens[:500] == torch.from_numpy(32000 - digits)[:500]).float().mean() > 0.999  # roundings at the edges
    assert torch.equal(tokens[500:], torch.from_numpy(32000 - digits)[500:])


def test_only_action_tokens_count_for_log_prob(policy):
    """All actions of the first dimension, the others held: probabilities of the tokens that mean them sum to one."""
    seen = observations(1)
    with torch.no_grad():
        first = policy._head(policy.encode(seen).hidden)[0].softmax(-1)
        sampled = policy.sample(seen, 1, generator())
        every = sampled.expand(1, 256, 1, 7).clone()
        every[0, :, 0, 0] = policy.values[:, 0]
        whole = policy.log_prob(seen, every)[0]
        rest = whole - first.log()[policy.bins(every)[0, :, 0, 0]]
    # What is left is the likelihood of six tokens after each first one.
    assert first.sum().item() == pytest.approx(1, abs=1e-5)
    assert (rest <= 1e-4).all()


def test_the_loss_is_transformers_cross_entropy_of_action_and_stop(policy):
    seen = observations(2)
    actions = policy.sample(seen, 1, generator())[:, 0]
    weights = torch.tensor([0.5, 2.0])
    losses = policy.loss(seen, actions, weights)
    model = policy.model
    for i in range(2):
        prompt = policy.prompter(seen["instruction"][i])
        ids = torch.tensor([*prompt, *(policy.bins(actions[i, 0]) + policy.first).tolist(), 2])
        words = model.decoder.embed_tokens(ids)
        pixels = policy.pictures([seen["image_primary"][i]])[:, None]
        embeddings = torch.cat([words[:1], model.embed_images(pixels)[0], words[1:]])[None]
        labels = torch.full(embeddings.shape[:2], -100)
        labels[0, -8:] = ids[-8:]
        expected = model.language_model(inputs_embeds=embeddings, labels=labels, use_cache=False).loss
        assert losses[i].item() == pytest.approx(weights[i].item() * expected.item(), rel=1e-5)


def test_half_precision_and_transformers_loading(folder, policy):
    seen = observations()
    half = load_policy(f"{folder}?dtype=bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.model.decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert half.sample(seen, 2, generator()).dtype == torch.float32
    pytest.importorskip("accelerate")
    mapped = load_policy(f"{folder}?device_map=cpu")
    assert torch.equal(mapped.sample(seen, 2, generator()), policy.sample(seen, 2, generator()))


def test_quantised_loading_says_what_it_needs(folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    with pytest.raises(InputError, match="pip install"):
        load_policy(f"{folder}?load_in_4bit=true")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda seen: seen.pop("image_primary"), "lacks 'image_primary'"),
        (lambda seen: seen.pop("instruction"), "lacks 'instruction'"),
        (lambda seen: seen.update(image_primary=np.zeros((2, 28, 28, 3), np.float32)), "uint8"),
        (lambda seen: seen.update(image_primary=np.zeros((2, 3, 28, 28), np.uint8)), "uint8"),
    ],
)
def test_wrong_observations_are_one_line(policy, change, says):
    seen = observations()
    change(seen)
    with pytest.raises(InputError, match=says):
        policy.sample(seen, 1)


# LoRA.


def contract(chunk: int = 1) -> DataContract:
    names = ("x", "y", "gripper")
    spec = ActionSpec(names, ("m", "m", "open"), (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), "end_effector_delta_base", 5.0, chunk)
    unit = Normalizer(np.float32([0, 0.1, 0.5]), np.float32([0.5, 0.3, 0.5]))
    language = LanguageEncoder("dataset", {"go left": np.eye(4, dtype=np.float32)[0]})
    return DataContract(spec, unit, {}, {"image_primary": (32, 32)}, language, ("made",))


def test_only_adapters_are_trained_and_kept(folder, tmp_path, policy):
    torch.manual_seed(0)
    config = OpenVLAConfig(pretrained=folder, lora_rank=4, chunk=2)
    tuned = OpenVLAPolicy.create(config, contract())
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert set(trained) == set(tuned.checkpoint_tensors())
    assert all("lora_" in name for name in trained)
    for part in ("vision_backbone.featurizer.blocks.0.attn.qkv", "projector.fc1", "self_attn.q_proj", "mlp.down_proj"):
        assert any(part in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    seen = observations(2, size=32)
    with torch.no_grad():
        assert torch.equal(tuned.encode(seen).hidden, policy.encode(seen).hidden)
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
    assert sum(file.stat().st_size for file in step.iterdir()) < (folder / "model.safetensors").stat().st_size / 10
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
    greedy = load_policy(f"{tmp_path / 'run'}?pretrained={folder}&temperature=0").sample(seen, 2, generator())
    assert torch.equal(greedy[:, 0], greedy[:, 1])
    with pytest.raises(InputError, match="its options are"):
        load_policy(f"{tmp_path / 'run'}?pretrained={folder}&unnorm_key=bridge_orig")
    again = load_policy(f"{tmp_path / 'run'}?pretrained={folder}")
    assert torch.equal(loaded.sample(seen, 4, generator()), again.sample(seen, 4, generator()))


def test_fine_tuning_needs_a_token_checkpoint_and_one_camera(tmp_path, oft_folder):
    from policies.config import CameraConfig

    with pytest.raises(InputError, match="no such folder"):
        OpenVLAPolicy.create(OpenVLAConfig(pretrained=tmp_path / "nothing"), contract())
    with pytest.raises(InputError, match="is an OFT checkpoint"):
        OpenVLAPolicy.create(OpenVLAConfig(pretrained=oft_folder), contract())
    with pytest.raises(InputError, match="one camera"):
        CameraConfig(("image_primary", "proprio"))


# OFT.


def oft_by_transformers(policy, seen: dict, i: int, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The chunk [H,A], in physical units, of observation i by transformers' model with a mask that hides nothing."""
    model, spec = policy.model, policy.action_spec
    patches = [model.embed_images(policy.pictures([seen[camera][i]])[:, None])[0] for camera in policy.observation_spec.images]
    unit = statistics(spec.dim)
    low, high = (torch.tensor(unit["proprio"][end], dtype=torch.float64) for end in ("q01", "q99"))
    proprio = (2 * (torch.from_numpy(seen["proprio"][i]).double() - low) / (high - low + 1e-8) - 1).clamp(-1, 1).float()
    hidden = F.gelu(F.linear(proprio, weights["p.fc1.weight"], weights["p.fc1.bias"]))
    token = F.linear(hidden, weights["p.fc2.weight"], weights["p.fc2.bias"])[None]
    ids = policy.prompter(seen["instruction"][i])
    words = model.decoder.embed_tokens(torch.tensor(ids))
    count = spec.chunk * spec.dim
    stop = model.decoder.embed_tokens(torch.tensor([2]))
    sequence = torch.cat([words[:1], *patches, token, words[1:], torch.zeros(count, words.shape[1]), stop])[None]
    everything = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
    states = model.decoder(inputs_embeds=sequence, attention_mask=everything, use_cache=False).last_hidden_state[0]
    before = sum(len(patch) for patch in patches) + 1 + len(ids) - 1
    x = states[before : before + count].reshape(spec.chunk, -1)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.linear(norm(x, "layer_norm1"), weights["fc1.weight"], weights["fc1.bias"]).relu()
    for block in range(2):
        name = f"mlp_resnet_blocks.{block}.ffn"
        x = x + F.linear(norm(x, f"{name}.0"), weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]).relu()
    x = F.linear(norm(x, "layer_norm2"), weights["fc2.weight"], weights["fc2.bias"]).double()
    low, high = (torch.tensor(unit["action"][end], dtype=torch.float64) for end in ("q01", "q99"))
    mask = torch.tensor(unit["action"]["mask"])
    return torch.where(mask, 0.5 * (x + 1) * (high - low + 1e-8) + low, x).float()


def oft_observations(policy, batch: int = 2) -> dict:
    seen = observations(batch, tuple(policy.observation_spec.images))
    size = policy.observation_spec.vectors["proprio"]
    return {**seen, "proprio": np.random.default_rng(1).normal(size=(batch, size)).astype(np.float32)}


@torch.no_grad()
def test_oft_is_one_pass_in_both_directions(oft_folder):
    policy = load_policy(oft_folder)
    assert list(policy.observation_spec.images) == ["image_primary", "image_wrist"]
    assert (policy.action_spec.chunk, policy.action_spec.dim, policy.action_spec.control_hz) == (8, 7, 20)
    seen = oft_observations(policy)
    head = torch.load(oft_folder / "action_head--100_checkpoint.pt", weights_only=True)
    projector = torch.load(oft_folder / "proprio_projector--100_checkpoint.pt", weights_only=True)
    weights = {key.removeprefix("model."): value for key, value in head.items()}
    weights |= {f"p.{key}": value for key, value in projector.items()}
    actions = policy.sample(seen, 3)
    assert actions.shape == (2, 3, 8, 7)
    assert torch.equal(actions, actions[:, :1].expand_as(actions))
    for i in range(2):
        torch.testing.assert_close(actions[i, 0], oft_by_transformers(policy, seen, i, weights), atol=1e-4, rtol=1e-4)
    # Every input matters to every action of the chunk, the first included.
    for key in ("image_primary", "image_wrist", "proprio"):
        other = {**seen, key: seen[key][::-1].copy()}
        assert ((policy.sample(other, 1) - actions[:, :1]).abs().amax(-1) > 1e-6).all()
    swapped = {**seen, "image_primary": seen["image_wrist"], "image_wrist": seen["image_primary"]}
    assert not torch.allclose(policy.sample(swapped, 1), actions[:, :1], atol=1e-6)


def test_oft_names_steps_and_robots(tmp_path):
    write_oft(tmp_path / "aloha", action=14, proprio=14, prefix="module.", step="latest")
    policy = load_policy(tmp_path / "aloha")
    assert (policy.action_spec.chunk, policy.action_spec.dim) == (25, 14)
    assert list(policy.observation_spec.images) == ["image_primary", "image_left_wrist", "image_right_wrist"]
    assert policy.unit.low.tolist() == pytest.approx(statistics(14, 14)["action"]["min"])
    write_oft(tmp_path / "bare", proprio=None)
    bare = load_policy(f"{tmp_path / 'bare'}?cameras=image_primary&chunk=5")
    assert (bare.observation_spec.vectors, list(bare.observation_spec.images)) == ({}, ["image_primary"])
    seen = observations()
    low, high = (torch.tensor(statistics()["action"][end]) for end in ("q01", "q99"))
    target = torch.cat([(low + high)[:6] / 2, torch.zeros(1)]).expand(2, 5, 7)
    size = torch.cat([(high - low)[:6] / 2, torch.ones(1)])
    expected = ((bare.sample(seen, 1)[:, 0] - target) / size).abs().mean((1, 2)) * torch.tensor([1.0, 3.0])
    torch.testing.assert_close(bare.loss(seen, target, torch.tensor([1.0, 3.0])), expected, atol=1e-4, rtol=0)


class Evil:
    def __reduce__(self):
        return (os.system, ("echo unpickled",))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: torch.save({"a": Evil()}, path / "action_head--100_checkpoint.pt"), "plain tensors"),
        (
            lambda path: torch.save({"model.fc1.weight": torch.ones(3, 4)}, path / "action_head--100_checkpoint.pt"),
            "no L1 action head",
        ),
        (lambda path: torch.save({}, path / "vision_backbone--100_checkpoint.pt"), "FiLM"),
        (
            lambda path: torch.save({"fc1.weight": torch.ones(3, 4)}, path / "proprio_projector--100_checkpoint.pt"),
            "lacks 'fc1.bias'",
        ),
    ],
)
def test_wrong_oft_files_are_one_line(oft_folder, tmp_path, break_it, says):
    path = copy_with(oft_folder, tmp_path / "oft")
    for name in ("action_head", "proprio_projector"):
        file = path / f"{name}--100_checkpoint.pt"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    break_it(path)
    with pytest.raises(InputError, match=says) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_products_of_options_keep_shapes(folder):
    for batch, samples in product((1, 3), (1, 4)):
        actions = load_policy(f"{folder}?top_k=3&control_hz=7").sample(observations(batch), samples, generator())
        assert actions.shape == (batch, samples, 1, 7)
