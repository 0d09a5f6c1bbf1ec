"""Camera networks taken over from another run: the same numbers as looking at every frame, and nothing of them is trained."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import load_policy
from policies.config import DiffusionConfig, EncoderConfig, GaussianConfig
from robot_rl.config import CloningConfig, TargetConfig, TrainingConfig
from robot_rl.critic import CriticConfig, load_critic
from robot_rl.recipes import train_critic, train_policy
from robot_rl.vision import features_of

INPUTS = ("image_primary", "proprio")
SMALL = TrainingConfig(steps=6, batch_size=8, log_every=2, checkpoint_every=3)


@pytest.fixture(scope="module")
def seeing(store, tmp_path_factory):
    """A run that has learned to see a little."""
    out = tmp_path_factory.mktemp("vision") / "seeing"
    config = GaussianConfig(encoder=EncoderConfig(inputs=INPUTS, vector_features=16), hidden=16, blocks=1)
    train_policy(store.path, out, config, CloningConfig(), SMALL)
    return out


def cameras(model) -> dict[str, torch.Tensor]:
    return model.encoder.cameras.state_dict()


def test_a_critic_and_a_policy_see_as_that_run_does_without_it_being_there(store, seeing, tmp_path):
    own = tmp_path / "seeing"
    shutil.copytree(seeing, own)
    encoder = EncoderConfig(inputs=INPUTS, vector_features=16, vision=str(own))
    looks: list[int] = []
    look = lambda done, total: looks.append(done / total)  # noqa: E731
    train_critic(store.path, tmp_path / "critic", CriticConfig(encoder=encoder, hidden=16), SMALL, look=look)
    train_policy(store.path, tmp_path / "policy", DiffusionConfig(encoder=encoder, hidden=16, blocks=1), CloningConfig(), SMALL)
    shutil.rmtree(own)
    expected = cameras(load_policy(seeing))
    for model in (load_critic(tmp_path / "critic"), load_policy(tmp_path / "policy")):
        assert all(torch.equal(value, expected[key]) for key, value in cameras(model).items())
    assert looks[-1] == 1.0


def test_features_are_what_the_networks_see_in_the_frames(store, seeing):
    policy = load_policy(seeing)
    derived = features_of(policy.encoder, store)
    rows = np.array([0, 3, store.rows - 1])
    index = store.gather("instruction_index", rows)
    text = [store.instructions[i] for i in index]
    proprio = store.gather("proprio", rows)
    seen = {name: values[rows] for name, values in derived["image_primary"].items()}
    with torch.no_grad():
        by_frames = policy.encode(
            {"image_primary": store.gather("image_primary", rows), "proprio": proprio, "instruction": text}
        )
        by_features = policy.encode({**seen, "proprio": proprio, "instruction": text})
    torch.testing.assert_close(by_features, by_frames, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("inputs", "network", "negatives", "message"),
    [
        (("proprio",), "resnet_small", 0.0, r"its image_primary is None, \(\d+, \d+\) is needed"),
        (INPUTS, "resnet34", 0.0, "its network is resnet_small, resnet34 is needed"),
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
