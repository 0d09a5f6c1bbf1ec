"""OpenVLA: checkpoints, their options, prompts and pictures, and what is wrong with one said in a line."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from policies.formats.openvla import PictureProcessor, Prompter
from policies.loading import load_policy
from tests.policies.openvla_checkpoint import (
    DINO,
    SIGLIP,
    copy_with,
    observations,
    openvla_config,
    statistics,
    write_openvla,
)
from tests.policies.seeded import generator


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
def test_wrong_weights_are_one_line(openvla_folder, tmp_path, damage, says):
    path = copy_with(openvla_folder, tmp_path / "damaged")
    weights = {key: value.clone() for key, value in load_file(path / "model.safetensors").items()}
    damage(weights)
    (path / "model.safetensors").unlink()
    save_file(weights, path / "model.safetensors")
    with pytest.raises(InputError, match=says) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_frequencies_that_old_versions_saved_are_ignored(openvla_folder, tmp_path):
    path = copy_with(openvla_folder, tmp_path / "old")
    weights = load_file(path / "model.safetensors")
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    (path / "model.safetensors").unlink()
    save_file(weights, path / "model.safetensors")
    assert torch.equal(
        load_policy(path).sample(observations(), 1, generator()),
        load_policy(openvla_folder).sample(observations(), 1, generator()),
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
def test_missing_and_broken_files_are_one_line(openvla_folder, tmp_path, break_it, says):
    path = copy_with(openvla_folder, tmp_path / "broken")
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
def test_wrong_configs_are_one_line(openvla_folder, tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as caught:
        load_policy(copy_with(openvla_folder, tmp_path / "wrong", **changes))
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
def test_wrong_options_are_one_line(openvla_folder, option, says):
    with pytest.raises(InputError, match=says) as caught:
        load_policy(f"openvla:{openvla_folder}?{option}")
    assert "\n" not in str(caught.value)


def test_the_dataset_is_chosen_by_name_unless_there_is_one(openvla_folder, tmp_path):
    several = {"kuka": statistics(seed=1), "viola": statistics(5, seed=2)}
    path = copy_with(openvla_folder, tmp_path / "several", norm_stats=several)
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


def test_prompts(openvla_folder, tmp_path):
    vocabulary = Prompter(openvla_folder, "default").tokenizer

    def text(ids):
        return "".join(vocabulary.id_to_token(i) for i in ids)

    default = Prompter(openvla_folder, None)("Pick up the CUP")
    assert default[0] == 1
    assert default[-1] == 29871
    assert text(default[1:-1]) == "In: What action should the robot take to pick up the cup?\nOut:"
    first = copy_with(openvla_folder, tmp_path / "openvla-v01-7b")
    assert text(Prompter(first, None)("go")[1:-1]).startswith("A chat between a curious user and an artificial")
    assert text(Prompter(first, None)("go")[1:-1]).endswith("USER: What action should the robot take to go? ASSISTANT:")
    assert Prompter(first, "default")("go") == Prompter(openvla_folder, None)("go")


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


def test_half_precision_and_transformers_loading(openvla_folder, openvla):
    seen = observations()
    half = load_policy(f"{openvla_folder}?dtype=bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.model.decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert half.sample(seen, 2, generator()).dtype == torch.float32
    pytest.importorskip("accelerate")
    mapped = load_policy(f"{openvla_folder}?device_map=cpu")
    assert torch.equal(mapped.sample(seen, 2, generator()), openvla.sample(seen, 2, generator()))


def test_quantised_loading_says_what_it_needs(openvla_folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    with pytest.raises(InputError, match="pip install"):
        load_policy(f"{openvla_folder}?load_in_4bit=true")


def test_products_of_options_keep_shapes(openvla_folder):
    for batch, samples in product((1, 3), (1, 4)):
        actions = load_policy(f"{openvla_folder}?top_k=3&control_hz=7").sample(observations(batch), samples, generator())
        assert actions.shape == (batch, samples, 1, 7)
