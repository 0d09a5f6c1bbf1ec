"""OpenVLA-OFT: one pass in both directions, names of steps and robots, and wrong files."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.errors import InputError
from policies.loading import load_policy
from tests.policies.openvla_checkpoint import (
    copy_with,
    observations,
    statistics,
    write_oft,
)


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
