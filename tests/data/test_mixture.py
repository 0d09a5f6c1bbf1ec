"""Mixtures of datasets: who is drawn how often, each by its own normalisation, and one model that acts on either robot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import ChunkSampler, EpisodeList, InputError, LanguageEncoder, MixtureSampler, Normalizer, Store, convert
from policies.config import EncoderConfig, GaussianConfig
from policies.contract import ACTION_NORMALIZATION
from policies.loading import load_policy
from robot_rl.config import CloningConfig, MixtureConfig, TargetConfig, TrainingConfig
from robot_rl.critic import CriticConfig, load_critic
from robot_rl.recipes import train_critic, train_policy
from tests.conftest import ACTION, make_episodes

SCALE = 10.0
"""The other robot's actions and proprioception are ten times as large."""


def other_episodes(count: int) -> list:
    return [
        replace(
            episode,
            actions=episode.actions * np.float32([SCALE, SCALE, 1]),
            observations={**episode.observations, "proprio": episode.observations["proprio"] * np.float32(SCALE) + 1},
            instruction=episode.instruction + " please",
        )
        for episode in make_episodes(count)
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    action = {**ACTION, "high": [0.5, 0.5, 1.0], "low": [-0.5, -0.5, 0.0]}
    convert(EpisodeList("first", ACTION, make_episodes(24)), folder / "first", language=LanguageEncoder("dataset"))
    convert(EpisodeList("second", action, other_episodes(24)), folder / "second", language=LanguageEncoder("dataset"))
    return folder


def samplers(stores: Path, **options: object) -> list[ChunkSampler]:
    return [ChunkSampler(Store.open(stores / name), 3, **options) for name in ("first", "second")]  # type: ignore[arg-type]


def test_each_dataset_is_seen_through_its_own_normalisation(stores: Path) -> None:
    first, second = samplers(stores)
    batch = MixtureSampler.weighted([first, second], [1, 1], ACTION_NORMALIZATION).batch(np.random.default_rng(0), 400)
    source = np.array([text.endswith("please") for text in batch["observations"]["instruction"]]).astype(int)
    assert set(source) == {0, 1}
    for index, sampler in enumerate((first, second)):
        rows = batch["rows"][source == index]
        plain = sampler.batch(rows)
        own = Normalizer.from_statistics(sampler.store.statistics["action"], ACTION_NORMALIZATION)
        reference = Normalizer.from_statistics(first.store.statistics["action"], ACTION_NORMALIZATION)
        np.testing.assert_allclose(
            reference.normalize(batch["actions"][source == index]), own.normalize(plain["actions"]), rtol=1e-3, atol=1e-4
        )
        # The episodes are the same but for their scale, so what a model sees of them is too.
        np.testing.assert_allclose(batch["actions"][source == index], first.batch(rows)["actions"], rtol=1e-3, atol=1e-4)
        for part in ("observations", "next_observations"):
            np.testing.assert_allclose(batch[part]["proprio"][source == index], first.batch(rows)[part]["proprio"], atol=1e-4)
        texts = [text for text, at in zip(batch["observations"]["instruction"], source, strict=True) if at == index]
        assert texts == plain["observations"]["instruction"]


def test_draws_are_in_proportion_to_weight_times_size(stores: Path) -> None:
    first, second = samplers(stores)
    second.starts = second.starts[: len(first) // 2]
    mixture = MixtureSampler.weighted([first, second], [1, 3], ACTION_NORMALIZATION)
    np.testing.assert_allclose(mixture.probabilities, [0.4, 0.6], atol=0.01)


def test_one_model_acts_on_either_robot(stores: Path, tmp_path: Path) -> None:
    """Trained on both, loaded for the second, its actions are the first's in the second's units, and its critic judges them alike."""
    encoder = EncoderConfig(inputs=("proprio",), vector_features=16)
    training, mixture = TrainingConfig(steps=20, batch_size=32), MixtureConfig("first:1,second:0.5")
    target = TargetConfig(n_step=2, negatives=0.2)
    train_critic(
        stores, tmp_path / "critic", CriticConfig(encoder=encoder, hidden=16, members=2), training, None, mixture, target
    )
    train_policy(
        stores, tmp_path / "policy", GaussianConfig(encoder=encoder, hidden=16), CloningConfig(), training, None, mixture
    )
    contract = load_critic(tmp_path / "critic").contract
    assert contract.datasets == ("first", "second")
    assert set(contract.language.table) == {
        *Store.open(stores / "first").instructions,
        *Store.open(stores / "second").instructions,
    }
    policies = [load_policy(f"{tmp_path / 'policy'}?dataset={name}") for name in ("first", "second")]
    critics = [load_critic(f"{tmp_path / 'critic'}?dataset={name}") for name in ("first", "second")]
    assert [policy.action_spec.high[0] for policy in policies] == [np.float32(0.05), 0.5]
    here = {"proprio": np.float32([[0.1, -0.02]]), "instruction": ["go left"]}
    there = {**here, "proprio": here["proprio"] * SCALE + 1}
    ours, theirs = (
        policy.sample(observations, 4, torch.Generator().manual_seed(0))
        for policy, observations in zip(policies, (here, there), strict=True)
    )
    torch.testing.assert_close(theirs[..., :2], ours[..., :2] * SCALE, rtol=1e-3, atol=1e-3)
    values = [
        critic.values(critic.encode(observations), actions)
        for critic, observations, actions in zip(critics, (here, there), (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="trained on first, second, not on 'third'"):
        load_policy(f"{tmp_path / 'policy'}?dataset=third")
    with pytest.raises(InputError, match="one option, dataset"):
        load_critic(f"{tmp_path / 'critic'}?robot=third")


def test_a_resumed_run_must_draw_alike(stores: Path, tmp_path: Path) -> None:
    config = CriticConfig(encoder=EncoderConfig(inputs=("proprio",), vector_features=16), hidden=16, members=2)
    train_critic(stores, tmp_path / "run", config, TrainingConfig(steps=4), None, MixtureConfig("first,second"))
    with pytest.raises(InputError, match=r"drawing.mixture.mix was .first,second., is .first:2,second."):
        train_critic(stores, tmp_path / "run", config, TrainingConfig(steps=4), None, MixtureConfig("first:2,second"))


def test_mistakes(stores: Path, tmp_path: Path) -> None:
    config, training = CriticConfig(hidden=16, members=2), TrainingConfig(steps=2)
    with pytest.raises(InputError, match=r"has no store of fractal20220817_data \(there are first, second\)"):
        train_critic(stores, tmp_path / "run", config, training, None, MixtureConfig("first:1.0,fractal:0.54"))
    with pytest.raises(InputError, match="--mix needs the folder that holds a store of each"):
        train_critic(stores / "first", tmp_path / "run", config, training, None, MixtureConfig("first"))
    with pytest.raises(InputError, match=r"has no store of \w+(, \w+){5} and \d+ more \(there are first, second\); convert"):
        train_critic(stores, tmp_path / "run", config, training, None, MixtureConfig("oxe_magic_soup"))
    with pytest.raises(InputError, match=r"folder of stores \(first, second\); give --mix first:1.0,second:1.0"):
        train_critic(stores, tmp_path / "run", config, training)
    first, second = samplers(stores)
    with pytest.raises(InputError, match="needs as many weights"):
        MixtureSampler([first, second], [1.0])
    with pytest.raises(InputError, match="choose common ones with --inputs"):
        MixtureSampler([first, ChunkSampler(second.store, 3, keys=("state",))], [1, 1])
