"""The conformance suite of policies: every family, and a steered policy, keeps the promises of policies/base.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import FAMILIES, Policy, Trainable, load_policy
from policies.config import DiffusionConfig, EncoderConfig
from policies.contract import DataContract
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import Critic, CriticConfig
from robot_rl.recipes import train_policy
from robot_rl.steering import RandomChoice, SteeredPolicy, SteeringConfig

VECTORS = EncoderConfig(inputs=("state", "proprio"), vector_features=32)
CAMERAS = EncoderConfig(inputs=("image_primary", "proprio"))


def diffusion(store, encoder: EncoderConfig = VECTORS, **settings) -> Policy:
    from policies.diffusion import DiffusionPolicy

    torch.manual_seed(0)
    config = DiffusionConfig(encoder=encoder, hidden=64, **settings)
    return DiffusionPolicy(config, DataContract.from_store(store, config.chunk, encoder.inputs)).eval()


def critic(store) -> Critic:
    torch.manual_seed(0)
    config = CriticConfig(encoder=VECTORS, hidden=16, members=2)
    return Critic(config, DataContract.from_store(store, config.chunk, VECTORS.inputs)).eval()


MEMBERS: dict[str, Callable[..., Policy]] = {
    "diffusion": diffusion,
    "diffusion, images": lambda store: diffusion(store, CAMERAS),
    "diffusion, sample prediction": lambda store: diffusion(store, prediction="sample"),
    "steered": lambda store: SteeredPolicy(diffusion(store), critic(store), SteeringConfig(num_samples=4)),
    "ascended": lambda store: SteeredPolicy(
        diffusion(store), critic(store), SteeringConfig(num_samples=4, ascent_steps=2, aggregate="mean")
    ),
    "random choice": lambda store: RandomChoice(diffusion(store), critic(store), 4),
}
TRAINABLE = [name for name in MEMBERS if name.startswith(tuple(FAMILIES))]


@pytest.fixture(params=MEMBERS)
def policy(request, store) -> Policy:
    return MEMBERS[request.param](store)


def observations(store, batch: int) -> dict:
    rows = np.arange(batch)
    seen = {key: store.gather(key, rows) for key in ("state", "proprio", "image_primary")}
    return {**seen, "instruction": [("go left", "go right")[i % 2] for i in range(batch)]}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_family_is_a_member():
    assert {name for family in FAMILIES for name in MEMBERS if name.startswith(family)} == set(TRAINABLE)
    assert all(any(name.startswith(family) for name in MEMBERS) for family in FAMILIES)


@pytest.mark.parametrize(("batch", "samples"), [(1, 1), (3, 1), (2, 7)])
def test_shapes_and_units(policy, store, batch, samples):
    assert isinstance(policy, Policy)
    spec = policy.action_spec
    actions = policy.sample(observations(store, batch), samples, generator(0))
    assert actions.shape == (batch, samples, spec.chunk, spec.dim)
    assert actions.dtype == torch.float32
    assert not actions.requires_grad
    assert (actions >= torch.tensor(spec.low) - 1e-6).all()
    assert (actions <= torch.tensor(spec.high) + 1e-6).all()


def test_a_generator_decides_everything(policy, store):
    seen = observations(store, 2)
    first, again = (policy.sample(seen, 3, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, policy.sample(seen, 3, generator(6)))
    torch.manual_seed(1)
    policy.reset()
    assert torch.equal(first, policy.sample(seen, 3, generator(5)))


def test_samples_differ_and_so_do_observations(policy, store):
    actions = policy.sample(observations(store, 2), 4, generator(0))
    assert len(torch.unique(actions[0].flatten(1), dim=0)) == 4
    assert not torch.equal(actions[0], actions[1])


def test_observations_are_not_changed(policy, store):
    seen = observations(store, 2)
    before = {key: value.copy() if isinstance(value, np.ndarray) else list(value) for key, value in seen.items()}
    policy.sample(seen, 2, generator(0))
    for key, value in before.items():
        assert np.array_equal(seen[key], value)


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_loss_is_per_sample_and_falls(name, store):
    policy = MEMBERS[name](store)
    assert isinstance(policy, Trainable)
    seen, spec = observations(store, 4), policy.action_spec
    actions = torch.zeros(4, spec.chunk, spec.dim)
    assert policy.loss(seen, actions, generator=generator(0)).shape == (4,)
    learner = CloningLearner(policy, CloningConfig(learning_rate=3e-3), steps=60)
    batch = {"observations": seen, "actions": actions.numpy()}
    losses = [learner.update(batch, generator(step))["loss"].item() for step in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_instruction_matters(name, store):
    policy = MEMBERS[name](store)
    learner = CloningLearner(policy, CloningConfig(learning_rate=3e-3), steps=150)
    seen, spec = observations(store, 16), policy.action_spec
    for key in ("state", "proprio", "image_primary"):
        seen[key] = np.repeat(seen[key][:1], 16, axis=0)
    actions = torch.zeros(16, spec.chunk, spec.dim)
    actions[:, :, 0] = torch.tensor([-0.03, 0.03]).repeat(8)[:, None]
    for step in range(150):
        learner.update({"observations": seen, "actions": actions.numpy()}, generator(step))
    sampled = policy.sample({key: value[:2] for key, value in seen.items()}, 16, generator(0))[..., 0].mean((1, 2))
    assert sampled[0] < -0.01
    assert sampled[1] > 0.01


def test_a_checkpoint_is_the_policy(store, tmp_path: Path):
    config = DiffusionConfig(encoder=VECTORS, hidden=32)
    train_policy(
        store.path, tmp_path / "run", config, CloningConfig(), TrainingConfig(steps=3, batch_size=4, checkpoint_every=1)
    )
    loaded, again = load_policy(tmp_path / "run"), load_policy(tmp_path / "run" / "step_00000003")
    seen = observations(store, 2)
    assert torch.equal(loaded.sample(seen, 2, generator(0)), again.sample(seen, 2, generator(0)))
    assert loaded.action_spec.frame == "end_effector_delta_base"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda step: (step / "model.safetensors").write_bytes((step / "model.safetensors").read_bytes()[:-100]), "damaged"),
        (lambda step: (step / "model.safetensors").write_bytes(b"\x80\x04not a tensor"), "damaged"),
        (lambda step: (step / "config.json").write_text("{"), "damaged"),
        (lambda step: (step / "config.json").write_text('{"family": "gpt"}'), "known families"),
        (lambda step: (step / "config.json").write_text('{"family": "diffusion"}'), "not a diffusion policy"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(store, tmp_path, damage, says):
    config = DiffusionConfig(encoder=VECTORS, hidden=32)
    train_policy(store.path, tmp_path / "run", config, CloningConfig(), TrainingConfig(steps=1, batch_size=4))
    damage(tmp_path / "run" / "step_00000001")
    with pytest.raises(InputError, match=says) as caught:
        load_policy(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_policy(tmp_path / "nothing")
