"""Observation encoders: both ResNets, the instruction's influence, other image sizes, and millimetres that can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.config import EncoderConfig
from policies.contract import DataContract
from policies.networks.encoder import FiLM, ObservationEncoder


def make(store, *inputs: str, **settings) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(EncoderConfig(inputs=inputs, **settings), DataContract.from_store(store, 4, inputs)).eval()


def seen(store, batch: int = 2) -> dict:
    rows = np.arange(batch)
    return {key: store.gather(key, rows) for key in store.observation_keys} | {"instruction": ["go left", "go right"][:batch]}


def blocks(name: str, store) -> int:
    return len(make(store, "image_primary", image_encoder=name).cameras["image_primary"].blocks)


@pytest.mark.parametrize("name", ["resnet_small", "resnet34"])
def test_images_become_features(store, name):
    encoder = make(store, "image_primary", "proprio", image_encoder=name)
    z = encoder(encoder.tensors(seen(store)))
    assert z.shape == (2, encoder.output)
    z.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_large_one_is_a_resnet34_with_film_after_every_block(store):
    assert blocks("resnet34", store) == 16
    assert blocks("resnet_small", store) == 4
    encoder = make(store, "image_primary", image_encoder="resnet34")
    assert sum(isinstance(module, FiLM) for module in encoder.modules()) == 16


def test_film_starts_as_the_identity_and_then_conditions(store):
    encoder = make(store, "image_primary")
    same = {"image_primary": np.repeat(seen(store)["image_primary"][:1], 2, axis=0), "instruction": ["go left", "go right"]}
    camera, tensors = encoder.cameras["image_primary"], encoder.tensors(same)
    with torch.no_grad():
        before = camera(tensors["image_primary"], tensors["instruction"])
        assert torch.allclose(before[0], before[1], atol=1e-6)
        for module in camera.modules():
            if isinstance(module, FiLM):
                module.linear.weight.normal_()
        after = camera(tensors["image_primary"], tensors["instruction"])
    assert not torch.allclose(after[0], after[1], atol=1e-3)


def test_another_image_size_is_resized_to_the_trained_one(store):
    encoder = make(store, "image_primary")
    large = {
        "image_primary": np.kron(seen(store)["image_primary"], np.ones((1, 2, 2, 1), np.uint8)),
        "instruction": ["go left"] * 2,
    }
    small = {**seen(store), "instruction": ["go left"] * 2}
    for one, other in zip(encoder.tensors(large).values(), encoder.tensors(small).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_millimetres_near_zero_can_be_told_apart(store):
    encoder = make(store, "proprio")
    scale = encoder.contract.vectors["proprio"].scale
    near = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]], np.float32) * scale
    features = encoder.tensors({"proprio": near, "instruction": ["go left"] * 4})["proprio"]
    assert (features[1] - features[0]).norm() > 3 * (features[3] - features[2]).norm()
