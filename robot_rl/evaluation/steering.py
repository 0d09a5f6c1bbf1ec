"""The question of this project: does steering help? The policy alone, steered by the critic, and steered by chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import gymnasium
import torch

from data.errors import InputError
from policies import ActionSpec, Policy, load_policy, observation_spec, policy_digest
from robot_rl.critic import load_critic
from robot_rl.evaluation.evaluate import Contest, EvaluationSettings, OnBlock, local_pool, run_contests
from robot_rl.evaluation.result import EvaluationResult
from robot_rl.steering import Method, RandomConfig, SteeringConfig, steered_spec
from sim import environment_ids, suite_of


@dataclass(frozen=True)
class Arm:
    """Builds one arm's policy from a policy spec and a critic's folder; picklable, so that workers can."""

    method: Method
    policy: str
    critic: str

    def __call__(self) -> Policy:
        critic = _loaded_critic(self.critic) if self.method.needs_critic else None
        return cast(Policy, self.method(_loaded_policy(self.policy), critic))


# The arms of a worker share what they load: they act one after the other, and each begins with a reset. The next contest's models take
# their place.
@lru_cache(maxsize=1)
def _loaded_policy(spec: str) -> Policy:
    return load_policy(spec)


@lru_cache(maxsize=1)
def _loaded_critic(spec: str) -> Any:
    return load_critic(spec)


def make_arms(policy: Path | str, critic: Path | str, methods: Mapping[str, Method]) -> dict[str, Arm]:
    """An arm for each of the named methods; all carry out as many actions of a chunk as the critic scores."""
    return {name: Arm(method, str(policy), str(critic)) for name, method in methods.items()}


def three_arms(steering: SteeringConfig) -> dict[str, Method]:
    """The policy alone, steered, and a random one of as many candidates."""
    return {
        "base": Method("base"),
        "steered": Method("steered", steering),
        "random": Method("random", RandomConfig(steering.num_samples)),
    }


def make_contest(
    policy: Path | str, critic: Path | str, env: str, episodes: int, seed: int, methods: Mapping[str, Method]
) -> Contest:
    """The arms of one policy and one critic in some environments (as for `sim.environment_ids`), checked against each other.

    InputError when policy, critic and environment do not speak of the same actions.
    """
    loaded_policy, loaded_critic = load_policy(policy), load_critic(critic)
    here = loaded_critic.device
    there = torch.device(getattr(loaded_policy, "device", here))
    if there.type != here.type:  # "cuda" and "cuda:0" are one
        raise InputError(f"the policy is on {there}, the critic on {here}; put both on one device")
    spec = steered_spec(loaded_policy.action_spec, loaded_critic.action_spec)
    _note_datasets(loaded_policy, loaded_critic)
    env_ids = environment_ids(env)
    ours = all(suite_of(env_id) for env_id in env_ids)
    env_kwargs = {"cameras": cameras_of(loaded_policy, loaded_critic)} if ours else {}
    for env_id in env_ids:
        _check_environment(env_id, env_kwargs, spec, loaded_policy, loaded_critic)
    return Contest(
        make_arms(policy, critic, methods),
        EvaluationSettings(env_ids, episodes, seed, spec.chunk, env_kwargs),
        # Of a server the address, and what it says of itself.
        {"policy": policy_digest(policy) + getattr(loaded_policy, "served", ""), "critic": policy_digest(critic)},
    )


def evaluate_steering(
    policy: Path | str,
    critic: Path | str,
    env: str,
    episodes: int,
    seed: int,
    steering: SteeringConfig | None = None,
    workers: int = 2,
    journal: Path | None = None,
    on_block: OnBlock | None = None,
) -> EvaluationResult:
    """The policy alone, steered, and with a random choice among as many candidates, on the same seeds of each environment."""
    contest = make_contest(policy, critic, env, episodes, seed, three_arms(steering or SteeringConfig()))
    return run_contests({"": contest}, local_pool(workers), journal=journal, on_block=on_block)[""]


def _note_datasets(policy: Any, critic: Any) -> None:
    """A critic may well steer a policy from other data; whoever did not mean it should hear of it."""
    contract = getattr(policy, "contract", None)
    theirs, ours = set(contract.datasets if contract else ()), set(critic.contract.datasets)
    if contract and theirs != ours:
        warnings.warn(f"the policy was trained on {', '.join(theirs)}, the critic on {', '.join(ours)}", stacklevel=3)


def _check_environment(env_id: str, env_kwargs: dict[str, Any], spec: ActionSpec, *models: Any) -> None:
    """Refuse an environment without what the models look at, or with actions of another kind than theirs.

    What an environment does not state is taken to fit.
    """
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
    except Exception as error:  # somebody else's environment may do anything
        raise InputError(f"{env_id}: cannot be made for these models ({type(error).__name__}: {error})") from error
    metadata, space = env.unwrapped.metadata, env.observation_space
    env.close()
    given = {key: part.shape for key, part in space.items()} if isinstance(space, gymnasium.spaces.Dict) else {}
    for wanted in map(observation_spec, models):
        for key in (*wanted.vectors, *wanted.images):
            if key not in given:
                raise InputError(
                    f"{env_id}: gives no {key!r}, which a model here was trained on; it gives {', '.join(given) or 'no named ones'}"
                )
        for key, size in wanted.vectors.items():
            if given[key] != (size,):
                raise InputError(f"{env_id}: its {key!r} has shape {given[key]}, a model here was trained on ({size},)")
    stated = {key: metadata.get(f"action_{key}") for key in ("names", "units", "frame")}
    for field, value in {**stated, "control_hz": metadata.get("control_hz")}.items():
        ours = getattr(spec, field)
        if value is not None and (tuple(value) if isinstance(ours, tuple) else value) != ours:
            raise InputError(f"{env_id}: its action {field} is {value} but the policy's is {ours}; use a policy trained for it")


def cameras_of(*models: Any) -> tuple[str, ...]:
    """The cameras that these policies and critics look at, without the `image_` prefix; environments render no others."""
    return tuple(sorted({key.removeprefix("image_") for model in models for key in observation_spec(model).images}))
