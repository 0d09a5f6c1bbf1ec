"""LeRobot's policies: parity with LeRobot 0.4.4's own outputs, and what they promise as policies of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.errors import InputError
from policies.base import Encodes, Policy, Trainable
from policies.history import MASK
from policies.lerobot import LeRobotPolicy
from tests.policies.seeded import generator, observations

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "lerobot_diffusion_tiny_v0_4_4"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"the originals' outputs are not here ({FIXTURE.name})")


@needs_fixture
def test_noise_predictions_and_seeded_actions_are_the_originals():
    policy: Any = LeRobotPolicy.load(FIXTURE)
    theirs = {key: torch.from_numpy(value) for key, value in np.load(FIXTURE / "recorded_outputs.npz").items()}
    inputs = policy._normalized({"observation.image": theirs["image"], "observation.state": theirs["state"]})
    with torch.no_grad():
        torch.testing.assert_close(policy.model.features(inputs), theirs["global_cond"], rtol=0, atol=1e-5)
        encoding = policy.model.encode(inputs)
        for timestep in (0, 50, 99):
            prediction = policy.model.unet.denoise(theirs["x0"], torch.tensor(timestep), encoding)
            torch.testing.assert_close(prediction, theirs[f"eps_t{timestep}"], rtol=0, atol=1e-5)
        # On a CPU the random streams are those of the original too.
        actions = policy.sample_encoded(encoding, 1, generator(123))[:, 0]
    torch.testing.assert_close(actions, theirs["seed123_actions"], rtol=1e-5, atol=1e-3)


@needs_fixture
def test_the_fixture_is_recognised_and_its_bounds_are_its_statistics():
    assert LeRobotPolicy.recognizes(FIXTURE)
    policy: Any = LeRobotPolicy.load(FIXTURE)
    statistics = load_file(FIXTURE / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    assert policy.action_spec.chunk == 8
    assert policy.observation_spec.window == 2
    np.testing.assert_allclose(policy.action_spec.low, statistics["action.min"], rtol=1e-6)
    np.testing.assert_allclose(policy.action_spec.high, statistics["action.max"], rtol=1e-6)


def test_both_are_policies(lerobot_diffusion, lerobot_act):
    for policy in (lerobot_diffusion, lerobot_act):
        assert isinstance(policy, Policy)
        assert isinstance(policy, Encodes)
        assert isinstance(policy, Trainable)
        actions = policy.sample(observations(policy), 3, generator())
        assert actions.shape == (2, 3, 4, 2)
        assert torch.equal(actions, policy.sample(observations(policy), 3, generator()))
        assert policy.loss(observations(policy), torch.zeros(2, 4, 2)).shape == (2,)


def test_samples_of_one_encoding_are_those_of_a_call_each(lerobot_diffusion):
    seen = observations(lerobot_diffusion)
    encoding = lerobot_diffusion.encode(seen)
    assert torch.equal(
        lerobot_diffusion.sample(seen, 4, generator(3)), lerobot_diffusion.sample_encoded(encoding, 4, generator(3))
    )
    assert len(torch.unique(lerobot_diffusion.sample_encoded(encoding, 4, generator(3))[0].flatten(1), dim=0)) == 4


def test_a_batch_is_its_rows(lerobot_act, lerobot_diffusion):
    for policy in (lerobot_act, lerobot_diffusion):
        seen = observations(policy, 3)
        encoding = policy.encode(seen)
        alone = policy.encode({key: value[1:2] for key, value in seen.items()})
        for whole, one in zip(_leaves(encoding), _leaves(alone), strict=True):
            if len(whole) == 3:
                torch.testing.assert_close(whole[1:2], one, rtol=1e-4, atol=1e-5)


def _leaves(value: Any) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def test_history_counts_and_is_repeated_where_there_is_none(lerobot_diffusion):
    seen = observations(lerobot_diffusion)
    twice = {key: value if key == "instruction" else np.stack([value, value], axis=1) for key, value in seen.items()}
    same = lerobot_diffusion.sample({**twice, MASK: np.ones((2, 2), bool)}, 1, generator())
    assert torch.equal(same, lerobot_diffusion.sample(seen, 1, generator()))
    twice["proprio"] = twice["proprio"] * np.array([[[3.0], [1.0]]], np.float32)
    assert not torch.equal(same, lerobot_diffusion.sample({**twice, MASK: np.ones((2, 2), bool)}, 1, generator()))


def test_pictures_of_another_size_are_resized(lerobot_act):
    seen = observations(lerobot_act)
    flat = {**seen, "image_primary": np.full_like(seen["image_primary"], 77)}
    larger = {**seen, "image_primary": np.full((2, 64, 80, 3), 77, np.uint8)}
    torch.testing.assert_close(lerobot_act.sample(flat, 1), lerobot_act.sample(larger, 1), rtol=0, atol=1e-5)


def test_act_samples_alike_unless_its_latent_is_drawn(lerobot_act, lerobot_act_folder):
    seen = observations(lerobot_act)
    actions = lerobot_act.sample(seen, 3, generator())
    assert torch.equal(actions[:, 0], actions[:, 2])
    drawn = LeRobotPolicy.load(lerobot_act_folder, latent="prior").sample(seen, 3, generator())
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


def test_the_chunk_may_be_all_that_is_predicted(lerobot_act_folder, lerobot_diffusion_folder):
    short: Any = LeRobotPolicy.load(lerobot_act_folder)
    whole: Any = LeRobotPolicy.load(lerobot_act_folder, chunk=6)
    seen = observations(short)
    assert torch.equal(whole.sample(seen, 1)[:, :, :4], short.sample(seen, 1))
    # The first of a diffusion policy's predictions is of the first observation's step.
    assert LeRobotPolicy.load(lerobot_diffusion_folder, chunk=7).action_spec.chunk == 7
    with pytest.raises(InputError, match="predicts 7 actions"):
        LeRobotPolicy.load(lerobot_diffusion_folder, chunk=8)


def test_inference_steps_switch_to_ddim(lerobot_diffusion_folder, lerobot_diffusion):
    fast: Any = LeRobotPolicy.load(lerobot_diffusion_folder, inference_steps=3)
    calls = []
    denoise = fast.model.unet.denoise
    fast.model.unet.denoise = lambda *given: calls.append(1) or denoise(*given)
    assert fast.sample(observations(fast), 2, generator()).shape == (2, 2, 4, 2)
    assert len(calls) == 3
    with pytest.raises(InputError, match="inference_steps=11: must be between 1 and 10"):
        LeRobotPolicy.load(lerobot_diffusion_folder, inference_steps=11)


def test_the_loss_is_weighted_and_ignores_what_it_was_not_given(lerobot_diffusion, lerobot_act):
    for policy in (lerobot_diffusion, lerobot_act):
        seen, actions = observations(policy), torch.randn(2, 3, 2, generator=generator())
        plain = policy.loss(seen, actions, generator=generator(1))
        weighted = policy.loss(seen, actions, torch.tensor([2.0, 0.0]), generator=generator(1))
        torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 0.0]))
        with pytest.raises(InputError, match="chunks of 20 actions"):
            policy.loss(seen, torch.zeros(2, 20, 2))


def test_act_does_not_count_padded_actions(lerobot_act):
    seen, actions = observations(lerobot_act), torch.randn(2, 6, 2, generator=generator())
    padded = np.zeros((2, 6), bool)
    padded[:, 4:] = True
    changed = actions.clone()
    changed[:, 4:] += 100
    losses = [
        lerobot_act.loss({**seen, "action_is_pad": padded}, chunk, generator=generator(1)) for chunk in (actions, changed)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_primary": None}, "lacks 'image_primary'.*'observation.images.top'"),
        ({"proprio": np.zeros((2, 7), np.float32)}, "'proprio' has shape"),
        ({"image_primary": np.zeros((2, 32, 40, 4), np.uint8)}, "'image_primary' has shape"),
    ],
)
def test_a_wrong_observation_is_one_line(lerobot_act, change, says):
    seen = {**observations(lerobot_act), **change}
    with pytest.raises(InputError, match=says):
        lerobot_act.sample({key: value for key, value in seen.items() if value is not None}, 1)
