"""From a training store to a critic, a policy, and the comparison of that policy with and without the critic.

What the command line and the demo call, and what a Python user would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium
import torch

import sim
from data.errors import InputError
from data.sampler import ChunkSampler
from data.store import Store
from policies import ActionSpec, load_policy
from policies.config import DiffusionConfig, EncoderConfig
from policies.contract import DataContract
from policies.diffusion import DiffusionPolicy
from robot_rl.behaviour_cloning import CloningLearner
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import CriticConfig, load_critic, make_learner
from robot_rl.evaluation import EvaluationResult, evaluate
from robot_rl.evaluation.arms import cameras_of, checkpoint_digest, make_arms
from robot_rl.steering import SteeringConfig, steered_spec
from robot_rl.training import Progress, train


def train_critic(
    data: Path | str, out: Path | str, critic: CriticConfig, training: TrainingConfig, progress: Progress | None = None
) -> list[dict[str, float]]:
    """Train (or resume) a critic on a store in the folder `out`; returns its metrics."""
    store = Store.open(data)
    critic = replace(critic, encoder=_with_inputs(critic.encoder, store))
    contract = DataContract.from_store(store, critic.chunk, critic.encoder.inputs, critic.gamma)
    torch.manual_seed(training.seed)
    learner = make_learner(critic, contract)
    sampler = ChunkSampler(store, critic.chunk, critic.gamma, critic.encoder.inputs)
    return train(learner, sampler.batch, contract, training, Path(out), progress)


def train_policy(
    data: Path | str,
    out: Path | str,
    policy: DiffusionConfig,
    cloning: CloningConfig,
    training: TrainingConfig,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Clone (or resume cloning) the behaviour in a store as a diffusion policy in the folder `out`; returns its metrics."""
    store = Store.open(data)
    policy = replace(policy, encoder=_with_inputs(policy.encoder, store))
    contract = DataContract.from_store(store, policy.chunk, policy.encoder.inputs)
    torch.manual_seed(training.seed)
    learner = CloningLearner(DiffusionPolicy(policy, contract), cloning, training.steps)
    sampler = ChunkSampler(store, policy.chunk, 1.0, policy.encoder.inputs, all_starts=True)
    return train(learner, sampler.batch, contract, training, Path(out), progress)


def evaluate_steering(
    policy: Path | str,
    critic: Path | str,
    env: str,
    episodes: int,
    seed: int,
    steering: SteeringConfig | None = None,
    workers: int = 2,
    journal: Path | None = None,
    on_block: Callable[..., None] | None = None,
) -> EvaluationResult:
    """The policy alone, steered, and with a random choice among as many candidates, on the same seeds of each environment.

    env: as for `environment_ids`. InputError when policy, critic and environment do not speak of the same actions.
    """
    steering = steering or SteeringConfig()
    loaded_policy, loaded_critic = load_policy(policy), load_critic(critic)
    spec = steered_spec(loaded_policy.action_spec, loaded_critic.action_spec)
    env_ids = environment_ids(env)
    for env_id in env_ids:
        _check_environment(env_id, spec)
    tabletop = all(env_id.startswith("Tabletop-") for env_id in env_ids)
    return evaluate(
        make_arms(policy, critic, steering),
        env_ids,
        episodes,
        seed,
        workers=workers,
        execute=spec.chunk,
        env_kwargs={"cameras": cameras_of(loaded_policy, loaded_critic)} if tabletop else {},
        journal=journal,
        provenance={"policy": checkpoint_digest(policy), "critic": checkpoint_digest(critic), "steering": asdict(steering)},
        on_block=on_block,
    )


def environment_ids(env: str) -> tuple[str, ...]:
    """`tabletop` -> all its tasks; otherwise Gymnasium ids or names of tabletop tasks, with commas between."""
    names = tuple(sim.TASKS.values()) if env == "tabletop" else tuple(sim.TASKS.get(name, name) for name in env.split(","))
    for name in names:
        try:
            gymnasium.spec(name)
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            known = ", ".join(("tabletop", *sim.TASKS.values()))
            raise InputError(f"{name}: unknown environment ({error}); this project's are {known}") from error
    return names


def _check_environment(env_id: str, spec: ActionSpec) -> None:
    """Refuse actions of another frame or rate than the environment states; one that states nothing is taken at its word."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    metadata = env.unwrapped.metadata
    env.close()
    stated = {
        "names": metadata.get("action_names"),
        "frame": metadata.get("action_frame"),
        "control_hz": metadata.get("control_hz"),
    }
    for field, value in stated.items():
        if value is not None and value != getattr(spec, field):
            raise InputError(
                f"{env_id}: its action {field} is {value} but the policy's is {getattr(spec, field)}; use a policy trained for it"
            )


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
