"""MappedPolicy: a policy of another convention is one of ours."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import ActionSpec, Encodes, HasLogProb, ObservationSpec, Policy, Trainable, load_policy
from policies.config import GaussianConfig
from policies.mapped import MappedPolicy
from policies.maps import PolicyMap, load_map
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.recipes import train_policy
from tests.policies.families import VECTORS, make
from tests.policies.map_examples import position_map


class Theirs:
    """A policy of LIBERO's convention: half of full scale forward, closing the gripper; it moves as far as its proprio says."""

    action_spec = ActionSpec(tuple("abcdefg"), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "unknown", 0.0, 3)
    observation_spec = ObservationSpec(vectors={"proprio": 8})

    def sample(self, observations, num_samples, generator=None):
        return torch.tensor([0.5, 2.0, 0, 0, 0, 0, 1]).expand(len(observations["instruction"]), num_samples, 3, 7)

    def reset(self):
        pass


def test_a_mapped_policy_is_one_of_ours():
    mapped = MappedPolicy(Theirs(), load_map("libero"))
    assert isinstance(mapped, Policy)
    assert not isinstance(mapped, Encodes)
    assert not isinstance(mapped, Trainable)
    assert mapped.action_spec == load_map("libero").action_spec(3)
    actions = mapped.sample(mapped.observation_spec.example(2), 4)
    assert actions.shape == (2, 4, 3, 7)
    torch.testing.assert_close(actions[1, 3, 2], torch.tensor([0.025, 0.05, 0, 0, 0, 0, 0]))
    for wrong, says in (("droid", "have 8 numbers, the policy's 7"), ("simpler_google_robot", "remembers")):
        with pytest.raises(InputError, match=says):
            MappedPolicy(Theirs(), load_map(wrong))
    assert MappedPolicy(Theirs(), load_map("lerobot")).action_spec == Theirs.action_spec


def affine(store: Any, scale: float = 2.0) -> PolicyMap:
    """For the actions of the store: ours are `scale` times theirs, its gripper turned round."""
    names, size = store.action["names"], len(store.action["names"])
    low, high = np.array(store.action["low"]), np.array(store.action["high"])
    scales, offsets = [scale] * (size - 1) + [-1.0], [0.0] * (size - 1) + [1.0]
    ends = np.sort([low * scales + offsets, high * scales + offsets], axis=0)
    segment = {"theirs": [0, size], "names": names, "unit": "m", "low": ends[0].tolist(), "high": ends[1].tolist()}
    actions = {"frame": "renamed", "control_hz": 5, "segments": [{**segment, "scale": scales, "offset": offsets}]}
    return PolicyMap.from_json({"observation": {}, "actions": actions})


def test_what_a_policy_can_do_its_mapped_one_can(store):
    policy = make(store, GaussianConfig(VECTORS, hidden=16))
    policy_map = affine(store)
    mapped = MappedPolicy(policy, policy_map)
    assert all(isinstance(mapped, ability) for ability in (Policy, Encodes, Trainable, HasLogProb))
    assert list(mapped.parameters()) == list(policy.parameters())
    seen = {**mapped.observation_spec.example(3), "instruction": ["go left", "go right", "go left"]}
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    ours, theirs = mapped.sample(seen, 4, generators[0]), policy.sample(seen, 4, generators[1])
    expected = torch.from_numpy(policy_map.actions_from_theirs(theirs.numpy()))
    torch.testing.assert_close(ours, expected)
    assert torch.equal(mapped.sample_encoded(mapped.encode(seen), 4, generators[2]), ours)
    weights = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(mapped.loss(seen, ours[:, 0], weights), policy.loss(seen, theirs[:, 0], weights))
    # Twice as large in every dimension but the gripper is half as dense.
    dimensions = ours.shape[2] * (ours.shape[3] - 1)
    torch.testing.assert_close(
        mapped.log_prob(seen, ours), policy.log_prob(seen, theirs) - dimensions * math.log(2), rtol=1e-4, atol=1e-3
    )


def test_no_density_where_turns_are_converted():
    class Likely(Theirs):
        def log_prob(self, observations, actions):
            return actions.sum((-1, -2))

    assert not isinstance(MappedPolicy(Likely(), load_map("libero")), HasLogProb)
    assert isinstance(MappedPolicy(Likely(), load_map("bridge")), HasLogProb)


def test_a_mapped_policy_starts_from_its_proprio():
    class Poses(Theirs):
        action_spec = ActionSpec(tuple("abcdefg"), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "unknown", 0.0, 2)

        def sample(self, observations, num_samples, generator=None):
            pose = torch.tensor([[0.1, 0, 0, 1, 0, 0, 0], [0.3, 0, 0, 1, 0, 0, 0]])
            return pose.expand(len(observations["instruction"]), num_samples, 2, 7)

    mapped = MappedPolicy(Poses(), position_map("theirs", "previous", "base"))
    proprio = np.zeros((2, 6), np.float32)
    proprio[1, 0] = 0.5
    actions = mapped.sample({"proprio": proprio, "instruction": ["a", "b"]}, 3)
    torch.testing.assert_close(actions[:, 2, :, 0], torch.tensor([[0.1, 0.2], [-0.4, 0.2]]))
    windowed = {"proprio": proprio[:, None], "instruction": ["a", "b"], "timestep_pad_mask": np.ones((2, 1), bool)}
    torch.testing.assert_close(mapped.sample(windowed, 3), actions)


def test_a_spec_names_its_map(store, tmp_path):
    training = TrainingConfig(steps=1, batch_size=4)
    train_policy(store.path, tmp_path / "run", GaussianConfig(VECTORS, hidden=8), CloningConfig(), training)
    (tmp_path / "mine.json").write_text(json.dumps(affine(store, 1.0).to_json()))
    policy = load_policy(f"{tmp_path / 'run'}?map={tmp_path / 'mine.json'}")
    assert policy.action_spec.frame == "renamed"
    with pytest.raises(InputError, match="neither a map file nor a preset"):
        load_policy(f"{tmp_path / 'run'}?map=liberty")
