"""The question of this project: does steering help? The policy alone, steered by the critic, and steered by chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium

from data.errors import InputError
from policies import ActionSpec, Policy, load_policy, observation_spec, policy_digest
from robot_rl.critic import load_critic
from robot_rl.evaluation.evaluate import evaluate
from robot_rl.evaluation.result import EvaluationResult
from robot_rl.steering import RandomChoice, SteeredPolicy, SteeringConfig, steered_spec
from sim import environment_ids, suite_of


@dataclass(frozen=True)
class Arm:
    """Builds one arm's policy from a policy spec and a critic's folder; picklable, so that workers can."""

    kind: Literal["base", "steered", "random"]
    policy: str
    critic: str
    steering: SteeringConfig

    def __call__(self) -> Policy:
        policy = load_policy(self.policy)
        if self.kind == "base":
            return policy
        critic = load_critic(self.critic)
        if self.kind == "random":
            return RandomChoice(policy, critic, self.steering.num_samples)
        return SteeredPolicy(policy, critic, self.steering)


def make_arms(policy: Path | str, critic: Path | str, steering: SteeringConfig) -> dict[str, Callable[[], Policy]]:
    """base, steered and random, all of which carry out as many actions of a chunk as the critic scores."""
    kinds: tuple[Literal["base", "steered", "random"], ...] = ("base", "steered", "random")
    return {kind: Arm(kind, str(policy), str(critic), steering) for kind in kinds}


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

    env: as for `sim.environment_ids`. InputError when policy, critic and environment do not speak of the same actions.
    """
    steering = steering or SteeringConfig()
    loaded_policy, loaded_critic = load_policy(policy), load_critic(critic)
    spec = steered_spec(loaded_policy.action_spec, loaded_critic.action_spec)
    _note_datasets(loaded_policy, loaded_critic)
    env_ids = environment_ids(env)
    ours = all(suite_of(env_id) for env_id in env_ids)
    env_kwargs = {"cameras": cameras_of(loaded_policy, loaded_critic)} if ours else {}
    for env_id in env_ids:
        _check_environment(env_id, env_kwargs, spec, loaded_policy, loaded_critic)
    return evaluate(
        make_arms(policy, critic, steering),
        env_ids,
        episodes,
        seed,
        workers=workers,
        execute=spec.chunk,
        env_kwargs=env_kwargs,
        journal=journal,
        provenance={"policy": policy_digest(policy), "critic": policy_digest(critic), "steering": asdict(steering)},
        on_block=on_block,
    )


def _note_datasets(policy: Any, critic: Any) -> None:
    """A critic may well steer a policy from other data; whoever did not mean it should hear of it."""
    contract = getattr(policy, "contract", None)
    theirs, ours = set(contract.datasets if contract else ()), set(critic.contract.datasets)
    if contract and theirs != ours:
        warnings.warn(f"the policy was trained on {', '.join(theirs)}, the critic on {', '.join(ours)}", stacklevel=3)


def _check_environment(env_id: str, env_kwargs: dict[str, Any], spec: ActionSpec, *models: Any) -> None:
    """Refuse an environment without what the models look at, or with actions of another kind than theirs.

    An environment that states no frame or rate is taken at its word.
    """
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
    except (ValueError, TypeError) as error:
        raise InputError(f"{env_id}: cannot be made for these models ({error})") from error
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


def cameras_of(*models: Any) -> tuple[str, ...]:
    """The cameras that these policies and critics look at, without the `image_` prefix; environments render no others."""
    return tuple(sorted({key.removeprefix("image_") for model in models for key in observation_spec(model).images}))
