"""Rollouts of one policy in many copies of one Gymnasium environment, in lock-step in this process.

All environments decide at the same control steps, because chunks have equal length: one batched policy call serves them all, and
an environment that has finished leaves the batch. Spreading rollouts over processes is `evaluate`'s work, not this module's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

import sim  # also registers the project's environments with Gymnasium, in a spawned worker too
from data.errors import InputError
from policies.base import Observations, Policy, observation_spec
from policies.history import History


@dataclass(eq=False)
class EpisodeOutcome:
    """How one episode ended. An episode with an `error` (the environment crashed, the policy gave NaN) counts as failed.

    steps: control steps taken. frames: uint8 [steps+1,H,W,3], only when recorded. values, disagreement: where the policy has a critic,
    its value of the chosen chunk at each decision, and the spread of its members about it.
    """

    env_id: str
    seed: int
    success: bool = False
    steps: int = 0
    instruction: str = ""
    error: str | None = None
    values: list[float] = field(default_factory=list)
    disagreement: list[float] = field(default_factory=list)
    frames: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """One control step of one episode, as `on_step` sees it; `action` float32 [A] is what the environment was given."""

    seed: int
    time: int
    observation: Mapping[str, Any]
    action: np.ndarray
    reward: float
    next_observation: Mapping[str, Any]
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


def stack_observations(observations: Sequence[Mapping[str, Any]]) -> Observations:
    """B single observations -> one batch: arrays stacked to [B,...], `instruction` a list of B strings."""
    return {
        key: [o[key] for o in observations] if key == "instruction" else np.stack([o[key] for o in observations])
        for key in observations[0]
    }


class _Episode:
    """One environment, its last observation, and the outcome so far."""

    def __init__(self, env_id: str, seed: int, env_kwargs: Mapping[str, Any], record: bool, window: int) -> None:
        # The checker compares observations with spaces at every step; tests/ hold the environments to their contract instead.
        if record:
            env_kwargs = {**env_kwargs, "render_mode": "rgb_array"}
        try:
            self.env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
        except (InputError, gymnasium.error.Error):
            raise
        except Exception as error:
            raise InputError(f"{env_id}: cannot be made ({type(error).__name__}: {' '.join(str(error).split())})") from error
        # A suite's environments can be told when nobody looks; what somebody else's `cameras` are is not known.
        self.cameras = getattr(self.env.unwrapped, "cameras", ()) if sim.suite_of(env_id) else ()
        self.outcome = EpisodeOutcome(env_id, seed)
        self.running = True
        self.observation: Mapping[str, Any] = {}
        self.history = History(window)
        self.frames: list[np.ndarray] | None = [] if record else None

    def reset(self) -> None:
        try:
            observation, _ = self.env.reset(seed=self.outcome.seed)
        except InputError:
            raise
        except Exception as error:  # whatever a simulator throws ends this episode, not the evaluation
            self.fail(f"reset: {type(error).__name__}: {error}")
        else:
            self.outcome.instruction = str(observation.get("instruction", ""))
            self._see(observation)

    def step(self, action: np.ndarray, on_step: Callable[[Step], None] | None, look: bool = True) -> None:
        """look: whether somebody will look at the cameras afterwards; rendering is most of what a step costs."""
        if self.cameras:
            self.env.unwrapped.cameras = self.cameras if look else ()  # type: ignore[attr-defined]
        space = self.env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        action = np.clip(action, space.low, space.high).astype(space.dtype)
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except InputError:
            raise
        except Exception as error:
            self.fail(f"step {self.outcome.steps}: {type(error).__name__}: {error}")
            return
        if on_step is not None:
            before, at = self.observation, self.outcome.steps
            on_step(Step(self.outcome.seed, at, before, action, float(reward), observation, terminated, truncated, info))
        self.outcome.steps += 1
        self._see(observation)
        if self.running and (terminated or truncated):
            self.outcome.success = _succeeded(self.outcome.env_id, info)
            self._finish()

    def fail(self, error: str) -> None:
        self.outcome.error = " ".join(error.split())
        self._finish()

    def _see(self, observation: Mapping[str, Any]) -> None:
        if (wrong := _what_is_wrong(self.observation, observation)) is not None:
            self.fail(f"step {self.outcome.steps}: the environment gave {wrong}")
            return
        self.observation = observation
        self.history.append(observation)
        if self.frames is not None:
            self.frames.append(np.array(self.env.render(), dtype=np.uint8))

    def _finish(self) -> None:
        self.running = False
        self.close()
        if self.frames:
            self.outcome.frames = np.stack(self.frames)

    def close(self) -> None:
        with suppress(Exception):  # an environment that crashed may well crash again here
            self.env.close()


def _what_is_wrong(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """With an observation, given the one before it in the episode (empty at first). Frames come and go, see `_Episode.step`."""
    for key, value in now.items():
        if key == "instruction":
            continue
        if key in before and np.shape(value) != np.shape(before[key]):
            return f"{key!r} of shape {np.shape(value)}, before it was {np.shape(before[key])}"
        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            return f"a {key!r} that is not finite"
    missing = [key for key in before if key not in now and not key.startswith("image_")]
    return f"no {missing[0]!r}, which it gave before" if missing else None


def _succeeded(env_id: str, info: Mapping[str, Any]) -> bool:
    """InputError where the environment does not say it, or not by true or false."""
    if "success" not in info:
        raise InputError(f"{env_id}: gives no info['success'] at the end of an episode; add it to the environment")
    value = np.asarray(info["success"])
    if value.size != 1 or value.dtype.kind not in "biuf" or value.item() not in (0, 1):
        raise InputError(f"{env_id}: info['success'] is {info['success']!r}; it must be true or false")
    return bool(value.item())


def rollout(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    generator_seed: int,
    execute: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    record: Collection[int] = (),
    on_step: Callable[[Step], None] | None = None,
) -> list[EpisodeOutcome]:
    """One episode for each of `seeds` (handed to `env.reset`), in their order.

    execute: how many actions of each chunk are carried out before the next decision, all H by default. generator_seed: of the
    policy's random numbers, for all episodes together, on `policy.device` where the policy has one, else on the CPU. record: seeds
    whose episodes are rendered (`render_mode="rgb_array"`) at every step. InputError: unknown environment, an `execute` outside 1..H,
    actions of another size than the environment's.
    """
    chunk = policy.action_spec.chunk
    execute = chunk if execute is None else execute
    if not 1 <= execute <= chunk:
        raise InputError(f"cannot execute {execute} actions of a chunk of {chunk}; choose 1 to {chunk}")
    generator = torch.Generator(device=getattr(policy, "device", "cpu")).manual_seed(generator_seed)
    window = observation_spec(policy).window
    policy.reset()
    episodes: list[_Episode] = []
    try:
        for seed in seeds:
            episodes.append(_Episode(env_id, seed, env_kwargs or {}, seed in record, window))
            _check_action_size(policy, episodes[-1].env)
            episodes[-1].reset()
        while live := [episode for episode in episodes if episode.running]:
            actions = _decide(policy, live, generator)[:, :execute]
            for time_in_chunk in range(execute):
                # Between two decisions nobody looks, unless somebody looks back, or on.
                look = time_in_chunk == execute - 1 or window > 1 or on_step is not None
                for episode, action in zip(live, actions[:, time_in_chunk], strict=True):
                    if episode.running:
                        episode.step(action, on_step, look)
    except gymnasium.error.UnregisteredEnv as error:
        raise InputError(f"{env_id}: no such environment; {' '.join(str(error).split())}") from None
    finally:
        for episode in episodes:
            if episode.running:
                episode.close()
    return [episode.outcome for episode in episodes]


def _decide(policy: Policy, live: Sequence[_Episode], generator: torch.Generator) -> np.ndarray:
    """Chunks float32 [B,H,A] for the B live episodes; those to which policy or critic give NaN fail, and all if `sample` does."""
    observations = stack_observations([episode.history.observation() for episode in live])
    try:
        with torch.no_grad():  # not inference_mode: steering turns gradients on again inside
            actions = policy.sample(observations, 1, generator)[:, 0].float().cpu().numpy()
    except InputError:
        raise
    except (
        Exception
    ) as error:  # a server that does not answer, a model that stumbles: these episodes are lost, not the evaluation
        for episode in live:
            episode.fail(f"step {episode.outcome.steps}: the policy failed: {type(error).__name__}: {error}")
        return np.zeros((len(live), policy.action_spec.chunk, policy.action_spec.dim), np.float32)
    decision = getattr(policy, "last_decision", None)
    if decision is not None:
        for episode, value, spread in zip(live, decision.values.tolist(), decision.disagreement.tolist(), strict=True):
            if not math.isfinite(value):
                episode.fail(f"step {episode.outcome.steps}: the critic gave a value that is not finite")
                continue
            episode.outcome.values.append(value)
            episode.outcome.disagreement.append(spread)
    finite = np.isfinite(actions).all(axis=(1, 2))
    for episode, fine in zip(live, finite, strict=True):
        if episode.running and not fine:
            episode.fail(f"step {episode.outcome.steps}: the policy gave an action that is not finite")
    return actions


def _check_action_size(policy: Policy, env: gymnasium.Env) -> None:
    if env.action_space.shape != (policy.action_spec.dim,):
        have, want = policy.action_spec.dim, env.action_space.shape
        raise InputError(
            f"the policy gives actions of {have} numbers, the environment takes shape {want}; they do not fit together"
        )
