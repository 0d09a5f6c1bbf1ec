"""The networks of other people's policies: ACT's layers, ResNets, crops and denoisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.torchvision_repair import repair_torchvision
from policies.networks.act import ACTConfig, Layer, map_positions
from policies.networks.denoising_transformer import TransformerForDiffusion
from policies.networks.unet1d import ConditionalUnet1D
from policies.networks.visual import ResNet, cropped
from tests.policies.seeded import generator


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
