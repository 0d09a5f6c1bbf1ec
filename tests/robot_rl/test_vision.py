"""Camera networks that are trained by themselves: they learn, and who takes them over sees the same and leaves them as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import load_policy
from policies.checkpoint import read_tensors, resolve_checkpoint
from policies.config import DiffusionConfig, EncoderConfig, GaussianConfig, OctoConfig, OctoTokensConfig
from policies.history import MASK
from policies.octo import OctoPolicy
from robot_rl.config import CloningConfig, TargetConfig, TrainingConfig, VisionConfig
from robot_rl.critic import CriticConfig, load_critic
from robot_rl.recipes import train_critic, train_policy, train_vision
from robot_rl.steering import SteeredPolicy, SteeringConfig
from robot_rl.vision import features_of, vision_targets

INPUTS = ("image_primary", "proprio")
SMALL = TrainingConfig(steps=6, batch_size=8, log_every=2, checkpoint_every=3)


@pytest.fixture(scope="module")
def seeing(store, tmp_path_factory):
    """A run that has learned to see a little."""
    out = tmp_path_factory.mktemp("vision") / "seeing"
    train_vision(store.path, out, VisionConfig(EncoderConfig(inputs=INPUTS, vector_features=16)), SMALL)
    return out


def test_it_learns_and_resumes_to_the_same_bits(store, tmp_path):
    config = VisionConfig(EncoderConfig(inputs=INPUTS, vector_features=16))
    longer = replace(SMALL, steps=60, batch_size=32, log_every=20)
    whole = train_vision(store.path, tmp_path / "whole", config, longer)
    assert whole[-1]["loss"] < 0.7 * whole[0]["loss"]

    class StoppedError(Exception):
        pass

    def stop(step: int, steps: int, row: object) -> None:
        if step == 40:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_vision(store.path, tmp_path / "parts", config, longer, stop)
    train_vision(store.path, tmp_path / "parts", config, longer)
    one, other = (read_tensors(resolve_checkpoint(tmp_path / name), "model") for name in ("whole", "parts"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_targets_are_of_the_robots_future_and_the_state(store):
    targets = vision_targets(store)
    assert targets.shape == (store.rows, 4 * store.shape("proprio")[0] + store.shape("state")[0])
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-4)
    last = store.episode_ends - 1  # where nothing is ahead, no motion is
    moved = targets[:, : store.shape("proprio")[0]]
    np.testing.assert_allclose(moved[last], np.broadcast_to(moved[last[0]], moved[last].shape), atol=1e-5)


def test_a_critic_and_a_policy_see_as_that_run_does_without_it_being_there(store, seeing, tmp_path):
    own = tmp_path / "seeing"
    shutil.copytree(seeing, own)
    encoder = EncoderConfig(inputs=INPUTS, vector_features=16, vision=str(own))
    looks: list[int] = []
    look = lambda done, total: looks.append(done / total)  # noqa: E731
    train_critic(store.path, tmp_path / "critic", CriticConfig(encoder=encoder, hidden=16), SMALL, look=look)
    train_policy(store.path, tmp_path / "policy", DiffusionConfig(encoder=encoder, hidden=16, blocks=1), CloningConfig(), SMALL)
    shutil.rmtree(own)
    expected = read_tensors(resolve_checkpoint(seeing), "model")
    for model in (load_critic(tmp_path / "critic"), load_policy(tmp_path / "policy")):
        cameras = model.encoder.cameras.state_dict()
        assert all(torch.equal(value, expected[f"encoder.cameras.{key}"]) for key, value in cameras.items())
    assert looks[-1] == 1.0


def test_octo_sees_a_token_a_camera_with_or_without_history(store, seeing, tmp_path):
    encoder = OctoTokensConfig(inputs=INPUTS, language="sentence", vision=str(seeing), window=2)
    config = OctoConfig(encoder=encoder, width=32, layers=1, heads=2, noise_draws=1)
    train_policy(store.path, tmp_path / "octo", config, CloningConfig(), SMALL)
    policy, expected = load_policy(tmp_path / "octo"), read_tensors(resolve_checkpoint(seeing), "model")
    assert all(torch.equal(value, expected[f"encoder.cameras.{key}"]) for key, value in policy.cameras.state_dict().items())
    assert policy.transformer.observed == {"obs_primary": 1, "obs_vectors": 1}
    derived, rows = features_of(policy.cameras, store), np.array([[0, 1], [4, 5]])
    others = {
        "proprio": store.gather("proprio", rows.ravel()).reshape(2, 2, -1),
        "instruction": [store.instructions[i] for i in store.gather("instruction_index", rows[:, 0])],
        MASK: np.ones((2, 2), bool),
    }
    frames = store.gather("image_primary", rows.ravel())
    with torch.no_grad():
        by_frames = policy.encode({"image_primary": frames.reshape(2, 2, *frames.shape[1:]), **others})
        by_features = policy.encode({name: values[rows] for name, values in derived.items()} | others)
    torch.testing.assert_close(by_features, by_frames, atol=2e-3, rtol=2e-3)
    # What is fine-tuned keeps these eyes.
    tuned = OctoPolicy.create(
        replace(config, encoder=replace(encoder, vision=None), pretrained=tmp_path / "octo"), policy.contract
    )
    assert all(torch.equal(value, policy.cameras.state_dict()[key]) for key, value in tuned.cameras.state_dict().items())


def test_features_are_what_the_networks_see_in_the_frames(store, seeing, tmp_path):
    encoder = EncoderConfig(inputs=INPUTS, vector_features=16, vision=str(seeing))
    train_policy(store.path, tmp_path / "policy", GaussianConfig(encoder=encoder, hidden=16), CloningConfig(), SMALL)
    policy = load_policy(tmp_path / "policy")
    derived = features_of(policy.cameras, store)
    rows = np.array([0, 3, store.rows - 1])
    index = store.gather("instruction_index", rows)
    text = [store.instructions[i] for i in index]
    proprio = store.gather("proprio", rows)
    seen = {name: values[rows] for name, values in derived.items()}
    with torch.no_grad():
        by_frames = policy.encode(
            {"image_primary": store.gather("image_primary", rows), "proprio": proprio, "instruction": text}
        )
        by_features = policy.encode({**seen, "proprio": proprio, "instruction": text})
    torch.testing.assert_close(by_features, by_frames, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("inputs", "network", "negatives", "message"),
    [
        (("proprio",), "resnet_small", 0.0, "looks at no camera; leave image_primary out of --inputs"),
        (INPUTS, "resnet34", 0.0, "its network is resnet_small, not resnet34; say --image-encoder resnet_small"),
        (INPUTS, "resnet_small", 0.5, "leave out --hindsight and --negatives"),
    ],
)
def test_a_run_that_does_not_fit_is_told(store, tmp_path, inputs, network, negatives, message):
    run = tmp_path / "run"
    train_policy(store.path, run, GaussianConfig(encoder=EncoderConfig(inputs=inputs), hidden=16), CloningConfig(), SMALL)
    encoder = EncoderConfig(inputs=INPUTS, image_encoder=network, vision=str(run))
    critic, target = CriticConfig(encoder=encoder, hidden=16), TargetConfig(negatives=negatives)
    with pytest.raises(InputError, match=message):
        train_critic(store.path, tmp_path / "critic", critic, SMALL, target=target)


def test_steered_by_a_critic_with_the_same_eyes_it_looks_once(store, seeing, tmp_path):
    encoder = EncoderConfig(inputs=INPUTS, vector_features=16, vision=str(seeing))
    own = EncoderConfig(inputs=INPUTS, vector_features=16)
    octo = OctoConfig(encoder=OctoTokensConfig(INPUTS, language="sentence", vision=str(seeing)), width=32, layers=1, heads=2)
    train_critic(store.path, tmp_path / "critic", CriticConfig(encoder=encoder, hidden=16), SMALL)
    critic = load_critic(tmp_path / "critic")
    rows = np.array([0, 3, 9])
    seen = {key: store.gather(key, rows) for key in INPUTS}
    seen["instruction"] = [store.instructions[i] for i in store.gather("instruction_index", rows)]
    for name, config, looks in (
        ("diffusion", DiffusionConfig(encoder=encoder, hidden=16, blocks=1), 1),
        ("octo", octo, 1),
        ("stranger", GaussianConfig(encoder=own, hidden=16), 2),
    ):
        train_policy(store.path, tmp_path / name, config, CloningConfig(), SMALL)
        policy = load_policy(tmp_path / name)
        counted: list[int] = []
        note = partial(lambda looks, _, frames, seen: looks.append(len(frames[0])), counted)
        for model in (policy, critic):
            model.cameras["image_primary"].register_forward_hook(note)
        steered = SteeredPolicy(policy, critic, SteeringConfig(num_samples=8))
        chosen = steered.sample(seen, 1, torch.Generator().manual_seed(0))
        assert counted == [3] * looks
        # What it chooses is what it would choose if each looked for itself.
        steered._shared = ()
        torch.testing.assert_close(steered.sample(seen, 1, torch.Generator().manual_seed(0)), chosen, atol=1e-4, rtol=1e-4)
        critic.cameras["image_primary"]._forward_hooks.clear()


def test_what_takes_over_cameras_looks_through_them_if_nothing_else_is_said(store, seeing, tmp_path):
    assert "state" in store.observation_keys  # which would come first otherwise
    train_policy(
        store.path, tmp_path / "policy", GaussianConfig(EncoderConfig(vision=str(seeing)), hidden=16), CloningConfig(), SMALL
    )
    seen = load_policy(tmp_path / "policy").observation_spec
    assert (set(seen.images), set(seen.vectors)) == ({"image_primary"}, {"proprio"})
    nowhere = EncoderConfig(vision=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"--vision .*no checkpoint here"):
        train_policy(store.path, tmp_path / "other", GaussianConfig(nowhere), CloningConfig(), SMALL)


@pytest.mark.parametrize(
    "config",
    [
        GaussianConfig(encoder=EncoderConfig(inputs=("proprio",), vision="runs/vision")),
        OctoConfig(encoder=OctoTokensConfig(inputs=("proprio",), language="sentence", vision="runs/vision"), width=32, heads=2),
    ],
)
def test_without_a_camera_there_is_nothing_to_take_over(store, tmp_path, config):
    with pytest.raises(InputError, match="no camera among --inputs"):
        train_policy(store.path, tmp_path / "policy", config, CloningConfig(), SMALL)


def test_octo_that_is_fine_tuned_takes_no_other_eyes(seeing):
    with pytest.raises(InputError, match="leave one of them out"):
        OctoConfig(encoder=OctoTokensConfig(vision=str(seeing)), pretrained=seeing)


def test_camera_networks_that_are_trained_are_not_taken_over():
    with pytest.raises(InputError, match="leave it out"):
        VisionConfig(EncoderConfig(inputs=INPUTS, vision="runs/other"))
