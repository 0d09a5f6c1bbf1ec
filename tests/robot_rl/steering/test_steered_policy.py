"""Steering: which candidate is chosen, at what cost, in which units, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.normalizer import Normalizer
from policies.base import ActionSpec
from policies.config import EncoderConfig
from policies.contract import DataContract
from robot_rl.critic import Critic, CriticConfig
from robot_rl.steering import RandomChoice, RandomConfig, SteeredPolicy, SteeringConfig, steered_spec

SPEC = ActionSpec(
    ("x", "y", "gripper"), ("m", "m", "1"), (-0.05, -0.05, 0.0), (0.05, 0.05, 1.0), "end_effector_delta_base", 5.0, 4
)


class UniformPolicy:
    """Candidates anywhere within the bounds; counts its calls."""

    def __init__(self, spec: ActionSpec = SPEC) -> None:
        self.action_spec, self.calls = spec, []

    def reset(self) -> None:
        pass

    def sample(self, observations, num_samples, generator=None):
        self.calls.append(num_samples)
        low, high = torch.tensor(self.action_spec.low), torch.tensor(self.action_spec.high)
        shape = (len(observations["instruction"]), num_samples, self.action_spec.chunk, self.action_spec.dim)
        return low + (high - low) * torch.rand(shape, generator=generator)


@pytest.fixture
def critic(store) -> Critic:
    torch.manual_seed(0)
    config = CriticConfig(encoder=EncoderConfig(inputs=("state", "proprio")), hidden=16, members=3)
    return Critic(config, DataContract.from_store(store, 4, config.encoder.inputs)).eval()


def observations(batch: int) -> dict:
    rng = np.random.default_rng(0)
    return {
        "state": rng.normal(size=(batch, 4)).astype(np.float32),
        "proprio": rng.normal(size=(batch, 2)).astype(np.float32),
        "instruction": ["go left", "go right"] * (batch // 2) + ["go left"] * (batch % 2),
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("aggregate", ["min", "mean"])
def test_the_best_of_one_call_is_chosen(critic, aggregate):
    policy, seen = UniformPolicy(), observations(3)
    steered = SteeredPolicy(policy, critic, SteeringConfig(num_samples=16, aggregate=aggregate, smoothing=0, temperature=0))
    actions = steered.sample(seen, 1, generator())
    assert actions.shape == (3, 1, 4, 3)
    assert policy.calls == [16]
    candidates = UniformPolicy().sample(seen, 16, generator())
    values = critic.values(critic.encode(seen), candidates)
    values = values.min(0).values if aggregate == "min" else values.mean(0)
    assert torch.equal(actions[:, 0], candidates[torch.arange(3), values.argmax(-1)])
    assert torch.allclose(steered.last_decision.values, values.max(-1).values)


def test_the_observation_is_encoded_once(critic, monkeypatch):
    batches = []
    encode = critic.encoder.forward
    monkeypatch.setattr(
        critic.encoder, "forward", lambda tensors: batches.append(len(tensors["instruction"])) or encode(tensors)
    )
    SteeredPolicy(UniformPolicy(), critic, SteeringConfig(num_samples=50, ascent_steps=10)).sample(
        observations(2), 1, generator()
    )
    assert batches == [2]


def test_draws_are_independent_choices_among_candidates_of_their_own(critic):
    steered = SteeredPolicy(UniformPolicy(), critic, SteeringConfig(num_samples=8))
    several = steered.sample(observations(2), 5, generator())
    assert several.shape == (2, 5, 4, 3)
    assert len(torch.unique(several[0].flatten(1), dim=0)) == 5


def test_temperature_interpolates_between_the_best_and_chance(critic):
    seen = observations(2)

    def mean_value(config):
        steered = SteeredPolicy(UniformPolicy(), critic, config)
        steered.sample(seen, 1, generator())
        values = [steered.last_decision.values]
        for seed in range(60):
            steered.sample(seen, 1, generator(seed))
            values.append(steered.last_decision.values)
        return torch.stack(values).mean()

    cold, warm, hot = (mean_value(SteeringConfig(num_samples=8, smoothing=0, temperature=t)) for t in (0.0, 0.05, 1e6))
    assert cold >= warm > hot


@pytest.mark.parametrize("normalized", [False, True])
def test_ascent_never_lowers_the_value_and_stays_near_a_candidate(critic, normalized):
    seen, region = observations(3), 0.05
    plain = SteeredPolicy(UniformPolicy(), critic, SteeringConfig(num_samples=16, smoothing=0, temperature=0))
    config = replace(plain.config, ascent_steps=10, keep=4, step_size=0.02, normalized_step=normalized, trust_region=region)
    ascended = SteeredPolicy(UniformPolicy(), critic, config)
    plain.sample(seen, 1, generator())
    actions = ascended.sample(seen, 1, generator())
    assert (ascended.last_decision.values >= plain.last_decision.values - 1e-5).all()
    candidates = critic.normalize(UniformPolicy().sample(seen, 16, generator()))
    distance = (critic.normalize(actions) - candidates).abs().amax((-1, -2)).min(-1).values
    assert (distance <= region + 1e-4).all()
    assert (actions >= torch.tensor(SPEC.low) - 1e-6).all()
    assert (actions <= torch.tensor(SPEC.high) + 1e-6).all()


def test_what_is_scored_is_what_is_done_when_the_policy_plans_farther(critic):
    steered = SteeredPolicy(UniformPolicy(replace(SPEC, chunk=9)), critic)
    assert steered.action_spec.chunk == 4
    assert steered.sample(observations(1), 1, generator()).shape == (1, 1, 4, 3)


def test_the_normaliser_is_the_critics_own(critic):
    """The same chunk in metres has one value, whatever units the critic works in inside."""
    seen, actions = observations(2), UniformPolicy().sample(observations(2), 3, generator())
    before = critic.values(critic.encode(seen), actions)
    scaled = critic.contract.action_normalizer
    critic.contract = replace(critic.contract, action_normalizer=Normalizer(scaled.offset * 10, scaled.scale * 10))
    assert torch.allclose(critic.values(critic.encode(seen), actions * 10), before, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": ("x", "y")}, "names"),
        ({"frame": "joint_position"}, "frame"),
        ({"control_hz": 15.0}, "control_hz"),
        ({"units": ("m", "m", "rad")}, "units"),
        ({"chunk": 2}, "--chunk 2"),
    ],
)
def test_a_mismatch_is_refused_with_what_to_do(critic, change, says):
    with pytest.raises(InputError, match=says) as caught:
        SteeredPolicy(UniformPolicy(replace(SPEC, **change)), critic)
    assert "train" in str(caught.value)


def test_random_choice_draws_uniformly_from_as_many_candidates(critic):
    policy = UniformPolicy()
    control = RandomChoice(policy, critic, RandomConfig(16))
    assert control.sample(observations(2), 3, generator()).shape == (2, 3, 4, 3)
    assert policy.calls == [48]
    assert control.action_spec == steered_spec(SPEC, critic.action_spec)


def test_an_observation_without_what_the_critic_needs_is_named(critic):
    seen = observations(2)
    del seen["proprio"]
    with pytest.raises(InputError, match="lacks 'proprio'"):
        SteeredPolicy(UniformPolicy(), critic).sample(seen, 1, generator())
