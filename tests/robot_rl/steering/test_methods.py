"""Methods by name, and the peers among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies.base import ActionSpec
from policies.config import EncoderConfig
from policies.contract import DataContract
from robot_rl.critic import Critic, CriticConfig
from robot_rl.steering import MajorityVoting, SteeredPolicy, VotingConfig, parse_method

SPEC = ActionSpec(
    ("x", "y", "gripper"), ("m", "m", "1"), (-0.05, -0.05, 0.0), (0.05, 0.05, 1.0), "end_effector_delta_base", 5.0, 4
)


class Around:
    """Draws around one chunk, with the gripper open in `share` of the draws."""

    def __init__(self, share: float) -> None:
        self.action_spec, self.share, self.asked = SPEC, share, []

    def reset(self) -> None:
        pass

    def sample(self, observations, num_samples, generator=None):
        self.asked.append(num_samples)
        shape = (len(observations["instruction"]), num_samples, 4, 3)
        chunk = torch.tensor([0.02, -0.01, 0.0]) + 0.005 * torch.randn(shape, generator=generator)
        chunk[..., 2] = (torch.arange(num_samples) < round(self.share * num_samples)).float()[None, :, None]
        return chunk


@pytest.fixture
def critic(store) -> Critic:
    torch.manual_seed(0)
    config = CriticConfig(encoder=EncoderConfig(inputs=("state", "proprio")), hidden=16, members=3)
    return Critic(config, DataContract.from_store(store, 4, config.encoder.inputs)).eval()


SEEN = {"state": np.zeros((2, 4), np.float32), "proprio": np.zeros((2, 2), np.float32), "instruction": ["go left", "go right"]}


def test_names_and_options() -> None:
    assert parse_method("vgps?num_samples=50&temperature=0.1").config.temperature == 0.1
    assert parse_method("pa_rl").config.aggregate == "mean"
    assert parse_method("steered?aggregate=mean&normalized_step=true").config.normalized_step is True
    assert not parse_method("base").needs_critic
    for spec, text in [
        ("magic", "no such way of steering; there are base, steered"),
        ("vgps?k=3", "no option 'k'; it has num_samples"),
        ("vgps?num_samples=many", "must be of type int"),
        ("vgps?num_samples=0", "must be 1 or more"),
        ("vgps?aggregate=max", "must be one of min, mean"),
        ("base?num_samples=3", "no such way"),
    ]:
        with pytest.raises(InputError, match=text):
            parse_method(spec)


def test_every_method_makes_a_policy(critic) -> None:
    for spec in ("base", "steered", "random", "mode", "vgps?temperature=1", "pa_rl", "robomonkey"):
        policy = parse_method(spec)(Around(0.5), critic)
        chunk = policy.sample(SEEN, 2, torch.Generator().manual_seed(0))
        assert chunk.shape == (2, 2, 4, 3)
        assert torch.isfinite(chunk).all()
    assert isinstance(parse_method("vgps")(Around(0.5), critic), SteeredPolicy)


@pytest.mark.parametrize(("share", "open_"), [(0.8, 1.0), (0.2, 0.0)])
def test_majority_voting_proposes_around_few_samples(critic, share: float, open_: float) -> None:
    policy = Around(share)
    voting = MajorityVoting(policy, critic, VotingConfig(policy_samples=5, num_samples=400))
    chunk = voting.sample(SEEN, 1, torch.Generator().manual_seed(0))
    assert policy.asked == [5]
    assert (chunk[..., 2] == open_).all()  # the gripper does what most samples did
    assert voting.last_decision.candidates.shape == (2, 400)
    assert torch.equal(voting.last_decision.values, voting.last_decision.candidates.amax(-1))
    proposals = voting._propose(policy.sample(SEEN, 5, torch.Generator().manual_seed(1))[:, None], 4000, None)
    few = policy.sample(SEEN, 5, torch.Generator().manual_seed(1))
    assert torch.allclose(proposals[:, 0, :, :, :2].mean(1), few[..., :2].mean(1), atol=5e-4)
    assert torch.allclose(proposals[:, 0, :, :, :2].std(1), few[..., :2].std(1, correction=0), rtol=0.1)


def test_v_gps_and_pa_rl_by_hand(critic) -> None:
    """Their rules, written out: the best of K by the minimum of the members; the best of the ascended ten by their mean."""
    policy = Around(0.5)
    drawn = policy.sample(SEEN, 10, torch.Generator().manual_seed(0))
    z = critic.encode(SEEN)
    best = critic.values(z, drawn).min(dim=0).values.argmax(dim=-1)
    acted = parse_method("vgps")(policy, critic).sample(SEEN, 1, torch.Generator().manual_seed(0))
    assert torch.equal(acted[:, 0], drawn[torch.arange(2), best])

    drawn = policy.sample(SEEN, 32, torch.Generator().manual_seed(0))
    chunks = critic.normalize(drawn)
    score = lambda u: critic.decode(critic.outputs(z, u)).mean(dim=0)  # noqa: E731
    top = score(chunks).topk(10, dim=-1).indices
    iterates = [chunks[torch.arange(2)[:, None], top].detach()]
    low, high = critic.normalize(torch.tensor(SPEC.low)), critic.normalize(torch.tensor(SPEC.high))
    for _ in range(10):
        current = iterates[-1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(current).sum(), current)
        iterates.append((current + 3e-4 * gradient).clamp(low, high).detach())
    with torch.no_grad():
        every = torch.stack(iterates, dim=2).flatten(1, 2)
        best = score(every).argmax(dim=-1)
        expected = critic.unnormalize(every[torch.arange(2), best])
    acted = parse_method("pa_rl")(policy, critic).sample(SEEN, 1, torch.Generator().manual_seed(0))
    assert torch.allclose(acted[:, 0], expected, atol=1e-6)


def test_the_mode_is_where_most_candidates_lie(critic) -> None:
    class TwoPlaces(Around):
        def sample(self, observations, num_samples, generator=None):
            chunks = super().sample(observations, num_samples, generator)
            chunks[:, : num_samples // 4, :, 0] -= 0.06  # a quarter goes the other way
            return chunks

    chunk = parse_method("mode?num_samples=40")(TwoPlaces(0.0), critic).sample(SEEN, 1, torch.Generator().manual_seed(0))
    assert (chunk[..., 0] > 0).all()
