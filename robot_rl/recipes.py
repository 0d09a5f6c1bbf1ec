"""From a training store to a trained critic or policy: what the command line and the demo call, and what a Python user would."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from data.labels.relabelling import Relabelling
from data.open_x.mix import parse_mix, resolve
from data.store.mixture import MixtureSampler
from data.store.sampler import ChunkSampler
from data.store.store import Store, is_store
from policies import FAMILIES
from policies.config import EncoderConfig
from policies.contract import ACTION_NORMALIZATION, DataContract
from policies.loading import family_class
from policies.networks.encoder import FEATURES, Cameras
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig, MixtureConfig, TargetConfig, TrainingConfig, VisionConfig
from robot_rl.critic import CriticConfig, make_learner
from robot_rl.training import Progress, train
from robot_rl.vision import (
    TARGETS,
    Derived,
    LookProgress,
    VisionLearner,
    cameras_of_run,
    features_of,
    take_cameras,
    vision_targets,
)


def train_critic(
    data: Path | str,
    out: Path | str,
    critic: CriticConfig,
    training: TrainingConfig,
    progress: Progress | None = None,
    mixture: MixtureConfig | None = None,
    target: TargetConfig | None = None,
    look: LookProgress | None = None,
) -> list[dict[str, float]]:
    """Train (or resume) a critic on a store, or a mixture of stores, in the folder `out`; returns its metrics.

    look: called with (frames done, frames in all) where another run's camera networks look at them first (`encoder.vision`).
    """
    mixture, target = mixture or MixtureConfig(), target or TargetConfig()
    stores = _open_stores(Path(data), mixture.mix)
    critic = replace(critic, encoder=_with_inputs(critic.encoder, [store for store, _ in stores]))
    if critic.head != "scalar" and any(store.reward["kind"] == "given" for store, _ in stores):
        raise InputError(
            f"{data}: keeps given rewards; the {critic.head} head covers returns of -1 and 0 a step, use --head scalar"
        )
    contract = DataContract.from_stores([store for store, _ in stores], critic.chunk, critic.encoder.inputs)
    torch.manual_seed(training.seed)
    learner = make_learner(critic, contract)
    relabelling = Relabelling(target.hindsight, target.negatives)
    derived = None
    if critic.encoder.vision:
        if relabelling.active:
            raise InputError("--vision's features are of each episode's own instruction; leave out --hindsight and --negatives")
        derived = _look(learner.online.cameras, critic.encoder.vision, stores, look)
        learner.target.encoder.load_state_dict(learner.online.encoder.state_dict())
    options: dict[str, Any] = {"n_step": target.n_step, "relabelling": relabelling}
    sampler = _sampler(stores, mixture, critic.chunk, critic.encoder.inputs, derived, **options)
    drawing = {"mixture": asdict(mixture), "target": asdict(target)}
    return train(learner, sampler.batch, contract, training, Path(out), progress, drawing)


def train_policy(
    data: Path | str,
    out: Path | str,
    config: Any,
    cloning: CloningConfig,
    training: TrainingConfig,
    progress: Progress | None = None,
    mixture: MixtureConfig | None = None,
    look: LookProgress | None = None,
) -> list[dict[str, float]]:
    """Clone (or resume cloning) the behaviour in a store or a mixture with a policy in the folder `out`; returns its metrics.

    config: the settings of a family, its `config_type`, such as policies.config.DiffusionConfig. look: as for `train_critic`.
    """
    policy_class, mixture = trainable_family(config.family), mixture or MixtureConfig()
    stores = _open_stores(Path(data), mixture.mix)
    config = replace(config, encoder=_with_inputs(config.encoder, [store for store, _ in stores]))
    contract = DataContract.from_stores([store for store, _ in stores], config.chunk, config.encoder.inputs)
    torch.manual_seed(training.seed)
    policy = policy_class.create(config, contract)
    vision = getattr(config.encoder, "vision", None)
    derived = _look(policy.cameras, vision, stores, look) if vision else None
    learner = CloningLearner(policy, cloning, training.steps)
    options: dict[str, Any] = {"every_start": True, "window": policy.observation_spec.window}
    sampler = _sampler(stores, mixture, config.chunk, config.encoder.inputs, derived, **options)
    return train(learner, sampler.batch, contract, training, Path(out), progress, {"mixture": asdict(mixture)})


def train_vision(
    data: Path | str, out: Path | str, config: VisionConfig, training: TrainingConfig, progress: Progress | None = None
) -> list[dict[str, float]]:
    """Train (or resume) camera networks on a store in the folder `out`, for others' `encoder.vision`; returns its metrics."""
    store = Store.open(data)
    inputs = config.encoder.inputs or tuple(key for key in store.observation_keys if key.startswith("image_"))
    config = replace(config, encoder=_with_inputs(replace(config.encoder, inputs=inputs), [store]))
    cameras = tuple(key for key in config.encoder.inputs if key.startswith("image_"))
    if not cameras:
        raise InputError(
            f"{store.path}: there is no camera to train, it has {', '.join(store.observation_keys)}; name one as --inputs, or "
            "record with cameras"
        )
    contract, targets = DataContract.from_store(store, 1, config.encoder.inputs), vision_targets(store)
    torch.manual_seed(training.seed)
    learner = VisionLearner(config, contract, targets.shape[1], training.steps)
    sampler = ChunkSampler(store, 1, keys=config.encoder.inputs, every_start=True, derived={TARGETS: targets})
    return train(learner, sampler.batch, contract, training, Path(out), progress)


def _open_stores(data: Path, mix: str | None) -> list[tuple[Store, float]]:
    """(store, weight) of each dataset: the store `data`, or those of a mixture in the folder `data`, under any name of theirs."""
    folders = sorted(path for path in data.iterdir() if is_store(path)) if data.is_dir() and not is_store(data) else []
    if mix is None:
        if folders:
            example = ",".join(f"{folder.name}:1.0" for folder in folders[:3])
            raise InputError(
                f"--data {data}: is a folder of stores ({_some([path.name for path in folders])}); give --mix {example}"
            )
        return [(Store.open(data), 1.0)]
    if not data.is_dir() or is_store(data):
        raise InputError(f"--data {data}: --mix needs the folder that holds a store of each dataset")
    # By the folder's name, the alias's meaning or the dataset's own name.
    found: dict[str, Path] = {}
    for folder in folders:
        found |= {folder.name: folder, resolve(folder.name): folder}
        with suppress(InputError):  # a neighbour that cannot be opened matters only if it is wanted
            found.setdefault(Store.open(folder).name, folder)
    wanted = parse_mix(mix)
    missing = [name for name, _ in wanted if name not in found]
    if missing:
        there = _some([path.name for path in folders]) or "none"
        raise InputError(
            f"--data {data}: has no store of {_some(missing)} (there are {there}); convert what is missing into a folder of that "
            "name there, or leave it out of --mix"
        )
    return [(Store.open(found[name]), weight) for name, weight in wanted]


def _some(names: list[str]) -> str:
    """The first few of the names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _look(cameras: Cameras | None, run: str, stores: list[tuple[Store, float]], look: LookProgress | None) -> list[Derived]:
    """Take over a run's camera networks, and what they see in each of the stores."""
    if not cameras:
        raise InputError(f"--vision {run}: there is no camera among --inputs; name one, or leave it out")
    take_cameras(cameras, run)
    return [features_of(cameras, store, look) for store, _ in stores]


def _sampler(
    stores: list[tuple[Store, float]],
    mixture: MixtureConfig,
    chunk: int,
    inputs: tuple[str, ...],
    derived: list[Derived] | None,
    **options: Any,
) -> ChunkSampler | MixtureSampler:
    """derived: of each store, the features that take the place of its frames; None where frames are looked at."""
    caps: dict[str, Any] = {"episodes": mixture.max_episodes, "starts_per_episode": mixture.max_starts}
    seen = derived or [{}] * len(stores)
    samplers = [
        ChunkSampler(store, chunk, **caps, **options, keys=tuple(k for k in inputs if FEATURES + k not in made), derived=made)
        for (store, _), made in zip(stores, seen, strict=True)
    ]
    if len(samplers) == 1:
        return samplers[0]
    return MixtureSampler.weighted(samplers, [weight for _, weight in stores], ACTION_NORMALIZATION)


def trainable_family(family: str) -> Any:
    """The class of a family that `robot-rl train policy` can train; InputError for others."""
    policy_class = family_class(family)
    if not hasattr(policy_class, "config_type"):
        able = [name for name in FAMILIES if hasattr(family_class(name), "config_type")]
        raise InputError(f"{family} policies cannot be trained here; choose one of {', '.join(able)}")
    return policy_class


def _with_inputs(encoder: EncoderConfig, stores: list[Store]) -> EncoderConfig:
    """The encoder's inputs as given, or what every store has: the cameras of `vision`, else the simulator's state, else the main
    camera; and proprioception.
    """
    wanted = encoder.inputs or (cameras_of_run(encoder.vision) if encoder.vision else ())
    for store in stores:
        missing = [key for key in wanted if key not in store.observation_keys]
        if missing:
            raise InputError(f"{store.path}: has no {missing[0]!r}; --inputs can be {', '.join(store.observation_keys)}")
    if encoder.inputs:
        return encoder
    available = [key for key in stores[0].observation_keys if all(key in store.observation_keys for store in stores)]
    first = "state" if "state" in available else next((key for key in available if key.startswith("image_")), None)
    return replace(encoder, inputs=tuple(key for key in (*(wanted or (first,)), "proprio") if key in available))
