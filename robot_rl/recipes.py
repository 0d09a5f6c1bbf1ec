"""From a training store to a trained critic or policy: what the command line and the demo call, and what a Python user would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from data.store.sampler import ChunkSampler
from data.store.store import Store
from policies import FAMILIES
from policies.config import EncoderConfig
from policies.contract import DataContract
from policies.loading import family_class
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import CriticConfig, make_learner
from robot_rl.training import Progress, train


def train_critic(
    data: Path | str, out: Path | str, critic: CriticConfig, training: TrainingConfig, progress: Progress | None = None
) -> list[dict[str, float]]:
    """Train (or resume) a critic on a store in the folder `out`; returns its metrics."""
    store = Store.open(data)
    critic = replace(critic, encoder=_with_inputs(critic.encoder, store))
    contract = DataContract.from_store(store, critic.chunk, critic.encoder.inputs)
    torch.manual_seed(training.seed)
    learner = make_learner(critic, contract)
    sampler = ChunkSampler(store, critic.chunk, keys=critic.encoder.inputs)
    return train(learner, sampler.batch, contract, training, Path(out), progress)


def train_policy(
    data: Path | str,
    out: Path | str,
    config: Any,
    cloning: CloningConfig,
    training: TrainingConfig,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Clone (or resume cloning) the behaviour in a store with a policy in the folder `out`; returns its metrics.

    config: the settings of a family, its `config_type`, such as policies.config.DiffusionConfig.
    """
    policy_class = trainable_family(config.family)
    store = Store.open(data)
    config = replace(config, encoder=_with_inputs(config.encoder, store))
    contract = DataContract.from_store(store, config.chunk, config.encoder.inputs)
    torch.manual_seed(training.seed)
    policy = policy_class.create(config, contract)
    learner = CloningLearner(policy, cloning, training.steps)
    sampler = ChunkSampler(
        store, config.chunk, keys=config.encoder.inputs, every_start=True, window=policy.observation_spec.window
    )
    return train(learner, sampler.batch, contract, training, Path(out), progress)


def trainable_family(family: str) -> Any:
    """The class of a family that `robot-rl train policy` can train; InputError for others."""
    policy_class = family_class(family)
    if not hasattr(policy_class, "config_type"):
        able = [name for name in FAMILIES if hasattr(family_class(name), "config_type")]
        raise InputError(f"{family} policies cannot be trained here; choose one of {', '.join(able)}")
    return policy_class


def _with_inputs(encoder: EncoderConfig, store: Store) -> EncoderConfig:
    """The encoder's inputs as given, or what the store has: the simulator's state, else the main camera, and proprioception."""
    available = store.observation_keys
    missing = [key for key in encoder.inputs if key not in available]
    if missing:
        raise InputError(f"{store.path}: has no {missing[0]!r}; --inputs can be {', '.join(available)}")
    if encoder.inputs:
        return encoder
    first = "state" if "state" in available else next((key for key in available if key.startswith("image_")), None)
    return replace(encoder, inputs=tuple(key for key in (first, "proprio") if key in available))
