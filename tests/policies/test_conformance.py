"""The conformance suite of policies: every family, steered, mapped and remote ones too, keeps the promises of policies/base.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import FAMILIES, Encodes, HasLogProb, Policy, Trainable, load_policy, observation_spec
from policies.config import DiffusionConfig
from policies.history import MASK, has_window, windowed
from policies.loading import family_class
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.recipes import train_policy
from robot_rl.steering import SteeredPolicy, SteeringConfig
from tests.policies.families import CONFIGS, DETERMINISTIC, MEMBERS, VECTORS, critic_for
from tests.policies.seeded import generator, observations


@pytest.fixture(scope="module")
def made(store) -> dict[str, Policy]:
    """Members that were built already: some take a second, and sampling changes none."""
    return {}


@pytest.fixture(params=MEMBERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def policy(name, made, store) -> Policy:
    if name not in made:
        made[name] = MEMBERS[name](store)
    return made[name]


def rows(seen: dict, index) -> dict:
    return {key: [value[i] for i in index] if key == "instruction" else value[index] for key, value in seen.items()}


def test_every_family_is_a_member():
    for family in FAMILIES:
        assert any(name.partition(",")[0] == family for name in MEMBERS), family
    for name, config in CONFIGS.items():
        assert family_class(config.family).config_type is type(config), name


@pytest.mark.parametrize(("batch", "samples"), [(1, 1), (2, 5)])
def test_shapes_and_units(policy, batch, samples):
    assert isinstance(policy, Policy)
    spec = policy.action_spec
    actions = policy.sample(observations(policy, batch), samples, generator(0))
    assert actions.shape == (batch, samples, spec.chunk, spec.dim)
    assert actions.dtype == torch.float32
    assert not actions.requires_grad
    assert (actions >= torch.tensor(spec.low) - 1e-5).all()
    assert (actions <= torch.tensor(spec.high) + 1e-5).all()


def test_a_generator_decides_everything(name, policy):
    seen = observations(policy, 2)
    first, again = (policy.sample(seen, 3, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    if name not in DETERMINISTIC:
        assert not torch.equal(first, policy.sample(seen, 3, generator(6)))
    torch.manual_seed(1)
    policy.reset()
    assert torch.equal(first, policy.sample(seen, 3, generator(5)))


def test_samples_differ_and_so_do_observations(name, policy):
    actions = policy.sample(observations(policy, 2), 16, generator(0))
    different = len(torch.unique(actions[0].flatten(1), dim=0))
    assert different == 1 if name in DETERMINISTIC else different > 8  # tokens of a peaked distribution may well coincide
    assert not torch.equal(actions[0], actions[1])


def test_a_batch_is_its_observations_one_by_one(policy):
    """In distribution: the mean of many samples is that of each observation alone."""
    seen = observations(policy, 3)
    together = policy.sample(seen, 64, generator(0))
    alone = torch.cat([policy.sample(rows(seen, [i]), 64, generator(i)) for i in range(3)])
    spread = torch.maximum(together.std(1), alone.std(1)) + 1e-5
    assert ((together.mean(1) - alone.mean(1)).abs() / spread).max() < 6 * (2 / 64) ** 0.5


def test_k_samples_are_drawn_as_k_calls_draw(policy):
    """One call's samples have the spread and the mean of so many calls' single ones."""
    seen, g = observations(policy, 1), generator(0)
    together = policy.sample(seen, 48, g)[0]
    calls = torch.cat([policy.sample(seen, 1, g)[0] for _ in range(48)])
    spread = torch.maximum(together.std(0), calls.std(0)) + 1e-5
    assert ((together.mean(0) - calls.mean(0)).abs() / spread).max() < 6 * (2 / 48) ** 0.5
    assert float(together.std(0).mean()) == pytest.approx(float(calls.std(0).mean()), rel=0.35, abs=1e-5)


def test_observations_are_not_changed(policy):
    seen = observations(policy, 2)
    before = {key: value.copy() if isinstance(value, np.ndarray) else list(value) for key, value in seen.items()}
    policy.sample(seen, 2, generator(0))
    for key, value in before.items():
        assert np.array_equal(seen[key], value)


def test_history_is_the_callers(policy):
    """A window of observations, padded where the episode is younger, is understood; none at all is a window of one."""
    window = observation_spec(policy).window
    seen = observations(policy, 2)
    padded = windowed(seen, max(window, 2))
    assert torch.equal(policy.sample(padded, 2, generator(0)), policy.sample(seen, 2, generator(0)))
    if window > 1:
        earlier = observations(policy, 2, seed=1)
        full = {
            key: np.concatenate([np.asarray(earlier[key])[:, None]] * (window - 1) + [np.asarray(value)[:, None]], axis=1)
            if has_window(key)
            else value
            for key, value in seen.items()
        }
        full[MASK] = np.ones((2, window), bool)
        assert not torch.equal(policy.sample(full, 2, generator(0)), policy.sample(seen, 2, generator(0)))


def test_encoding_once_is_sampling(policy):
    if not isinstance(policy, Encodes):
        pytest.skip("has no trunk of its own")
    seen = observations(policy, 2)
    with torch.no_grad():
        encoding = policy.encode(seen)
    for samples in (1, 3):
        ours = policy.sample_encoded(encoding, samples, generator(0))
        assert torch.equal(ours, policy.sample(seen, samples, generator(0)))


def test_it_can_be_steered(name, policy):
    """With no special case for any family; the steered action is one of the policy's own candidates."""
    seen = observations(policy, 2)
    steered = SteeredPolicy(policy, critic_for(policy), SteeringConfig(num_samples=6))
    seen = {**{key: np.zeros((2, size), np.float32) for key, size in steered.observation_spec.vectors.items()}, **seen}
    chosen = steered.sample(seen, 1, generator(3))
    candidates = policy.sample(seen, 6, generator(3))[:, :, : steered.action_spec.chunk]
    assert all((candidates[i] == chosen[i]).flatten(1).all(1).any() for i in range(2))


def test_its_own_samples_are_likely(name, policy):
    if not isinstance(policy, HasLogProb):
        pytest.skip("has no likelihood")
    seen, spec = observations(policy, 2), policy.action_spec
    samples = policy.sample(seen, 8, generator(0))
    with torch.no_grad():
        own = policy.log_prob(seen, samples)
        others = policy.log_prob(seen, samples.flip(0))
    assert own.shape == (2, 8)
    assert own.isfinite().all()
    assert own.mean() > others.mean() or spec.dim == 0


def test_the_loss_is_per_sample_weighted_and_falls(name, policy, store):
    if not isinstance(policy, Trainable):
        pytest.skip("is not trainable")
    policy = MEMBERS[name](store)
    seen, spec = observations(policy, 4), policy.action_spec
    actions = ((torch.tensor(spec.low) + torch.tensor(spec.high)) / 2).expand(4, spec.chunk, spec.dim).clone()
    losses = policy.loss(seen, actions, generator=generator(0))
    assert losses.shape == (4,)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5])
    torch.testing.assert_close(policy.loss(seen, actions, weights, generator(0)), losses * weights)
    learner = CloningLearner(policy, CloningConfig(learning_rate=3e-3), steps=40)
    batch = {"observations": seen, "actions": actions.numpy()}
    values = [learner.update(batch, generator(step))["loss"].item() for step in range(40)]
    assert np.mean(values[-8:]) < 0.8 * np.mean(values[:8])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_instruction_matters(name, store):
    policy = MEMBERS[name](store)
    learner = CloningLearner(policy, CloningConfig(learning_rate=3e-3), steps=150)
    seen, spec = observations(policy, 16), policy.action_spec
    seen = {key: value if key == "instruction" else np.repeat(value[:1], 16, axis=0) for key, value in seen.items()}
    actions = torch.zeros(16, spec.chunk, spec.dim)
    actions[:, :, 0] = torch.tensor([-0.03, 0.03]).repeat(8)[:, None]
    for step in range(150):
        learner.update({"observations": seen, "actions": actions.numpy()}, generator(step))
    sampled = policy.eval().sample(rows(seen, [0, 1]), 16, generator(0))[..., 0].mean((1, 2))
    assert sampled[0] < -0.01
    assert sampled[1] > 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_is_the_policy(name, store, tmp_path: Path):
    training = TrainingConfig(steps=3, batch_size=4, checkpoint_every=1)
    train_policy(store.path, tmp_path / "run", CONFIGS[name], CloningConfig(), training)
    loaded, again = load_policy(tmp_path / "run"), load_policy(tmp_path / "run" / "step_00000003")
    seen = observations(loaded, 2)
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
