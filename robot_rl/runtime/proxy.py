"""SteeringProxy: between a robot's client and a policy server, neither of which is changed. It asks the server for K candidates, lets a
critic choose, and answers with the server's own reply of the chosen one.

It never makes things worse than they were without it: when the observation does not fit the critic, the critic fails or time is over,
the first candidate is passed on as it came, and the reply says so under `steering`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec
from policies.protocol.connection import PolicyServer, RestServer, ServerError, open_server
from policies.remote import latest_proprio, spec_from_json, spec_to_json
from robot_rl.critic import Critic
from robot_rl.runtime.policy_service import checked
from robot_rl.steering import SteeredPolicy, SteeringConfig, steered_spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpstreamSettings:
    """connections: requests under way at once. timeout: seconds to wait for the server to come up, and for each of its answers.
    patience: seconds of reconnecting before a client hears of it. budget: seconds for a steered answer, None for as long as it takes.
    """

    address: str
    api_key: str | None = None
    unnorm_key: str | None = None
    connections: int = 4
    timeout: float = 30.0
    patience: float = 2.0
    budget: float | None = None


class NotSteeredError(Exception):
    """Why the server's own action is passed on."""


class SteeringProxy:
    """A Service (robot_rl/runtime/server.py) over another server. Axes as in SteeredPolicy."""

    def __init__(
        self,
        upstream: UpstreamSettings,
        critic: Critic,
        steering: SteeringConfig,
        policy_map: Any = None,
        map_name: str | None = None,
        seed: int = 0,
    ) -> None:
        self.settings, self.critic, self.steering, self.map, self._map_name = upstream, critic, steering, policy_map, map_name
        self._generator = torch.Generator(device=critic.device).manual_seed(seed)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="critic")
        self._reasons: set[str] = set()
        self._affordable = steering.num_samples
        self._critic_seconds: float | None = None
        self.metadata: dict[str, Any] = {}
        self.max_samples, self.seeded, self.window = 1, False, 1
        self.action_spec: ActionSpec | None = None

    async def start(self) -> None:
        """Connect and compare what the server says of its actions with what the critic scores; InputError when they differ."""
        # Patient: robots and servers are switched on in any order.
        self.server = self._open(self.settings.connections)
        try:
            self._learn(await self.server.metadata(self.settings.timeout))
        except BaseException:
            await self.server.close()
            raise

    def _learn(self, theirs: Mapping[str, Any]) -> None:
        said = theirs.get("robot_rl")
        said = said if isinstance(said, dict) else {}
        looks_at, spec = ObservationSpec(), None
        try:
            self.max_samples = max(int(said.get("max_samples", 1)), 1)
            self.seeded = bool(said.get("seeded", False))
            looks_at = spec_from_json(said.get("observation_spec", {}))
            spec = ActionSpec.from_json(said["action_spec"]) if said.get("action_spec") else None
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"{self.settings.address}: its metadata cannot be understood ({error}); is it another version?"
            ) from None
        if said.get("map") is not None and self.map is None:
            raise InputError(f"{self.settings.address}: this server speaks through the map {said['map']!r}; give it with --map")
        if spec is None and self.map is not None and self.map.actions is not None:
            spec = self.map.action_spec(self.critic.action_spec.chunk)
        if spec is None:
            actions = ", ".join(f"{name} [{unit}]" for name, unit in zip(*_names(self.critic.action_spec), strict=True))
            _log.warning(
                "no --map, and the server does not say what its actions are: they are taken to be the critic's, %s", actions
            )
        else:
            steered_spec(spec, self.critic.action_spec)
        self.action_spec, self.window = spec, looks_at.window
        both = replace(
            looks_at,
            images={**self.critic.observation_spec.images, **looks_at.images},
            vectors={**self.critic.observation_spec.vectors, **looks_at.vectors},
        )
        ours = {
            "version": version("robot-rl"),
            "max_samples": 1,
            "seeded": self.seeded and self.steering.temperature == 0,
            "steering": {"candidates": self.steering.num_samples, "ascent_steps": self.steering.ascent_steps},
            "map": self._map_name or said.get("map"),
            **({"action_spec": said["action_spec"]} if said.get("action_spec") else {}),
            **({"observation_spec": spec_to_json(both)} if said.get("observation_spec") else {}),
        }
        self.metadata = {**theirs, "robot_rl": ours}
        if self.max_samples == 1:
            _log.info("each answer takes %d requests to %s", self.steering.num_samples, self.settings.address)

    def session(self) -> ProxySession:
        # A server that remembers an episode does so by connection; then each client has its own.
        server = self.server if self.window == 1 else self._open(1)
        return ProxySession(self, server)

    async def close(self) -> None:
        await self.server.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _open(self, connections: int) -> PolicyServer:
        settings = self.settings
        return open_server(
            settings.address,
            api_key=settings.api_key,
            unnorm_key=settings.unnorm_key,
            connections=connections,
            timeout=settings.timeout,
            patience=settings.patience,
        )

    def reserve(self) -> float:
        """Seconds of the budget that are the critic's: twice what it took last, a fifth of the budget before, half of it at most."""
        budget = self.settings.budget or 0.0
        return 0.2 * budget if self._critic_seconds is None else min(2 * self._critic_seconds, 0.5 * budget)

    def affordable(self) -> int:
        """How many candidates to ask for. What a server could not answer in time it still works on when the next request comes."""
        return self._affordable

    def learn_pace(self, asked: int, answered: int, seconds: float) -> None:
        """After a decision under a budget: as many as were answered, or more again where there was time for more."""
        budget, before = self.settings.budget, self._affordable
        if budget is None or self.max_samples > 1:
            return
        if answered < asked:
            self._affordable = max(answered, 1)
            _log.info("the server answers %d of %d candidates within the budget; asking for so many", answered, asked)
        elif asked == before and asked < self.steering.num_samples and seconds * (asked + 1) / asked < 0.8 * budget:
            self._affordable = min(asked + max(asked // 4, 1), self.steering.num_samples)

    async def choose(
        self, ours: Mapping[str, Any], candidates: np.ndarray, budget: float | None
    ) -> tuple[int, float, np.ndarray]:
        """Index, value and (perhaps improved) actions [H,A] of the best of `candidates` [K,H,A]; NotSteeredError says why not."""
        work = asyncio.get_running_loop().run_in_executor(self._worker, self._choose, ours, candidates)
        started = time.perf_counter()
        try:
            chosen = await asyncio.wait_for(work, budget)
            self._critic_seconds = time.perf_counter() - started
            return chosen
        except TimeoutError:
            raise NotSteeredError("the critic took longer than the budget") from None
        except InputError as error:
            raise NotSteeredError(" ".join(str(error).split())) from None
        except Exception as error:
            _log.debug("the critic failed", exc_info=error)
            raise NotSteeredError(f"the critic failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error

    def _choose(self, ours: Mapping[str, Any], candidates: np.ndarray) -> tuple[int, float, np.ndarray]:
        fetched = _Fetched(self._spec_of(candidates), torch.from_numpy(candidates).to(self.critic.device)[None])
        steered = SteeredPolicy(fetched, self.critic, replace(self.steering, num_samples=len(candidates)))
        batch = {key: value[None] if isinstance(value, np.ndarray) else [value] for key, value in ours.items()}
        actions = steered.sample(batch, 1, self._generator)[0, 0].cpu().numpy()
        decision = steered.last_decision
        assert decision is not None
        value = float(decision.values[0])
        if not np.isfinite(value):
            raise InputError("the critic's values are not finite")
        # The chosen one itself, or after an ascent the one closest to it.
        distances = np.abs(candidates[:, : len(actions)] - actions).max(axis=(1, 2))
        return int(distances.argmin()), value, actions

    def _spec_of(self, candidates: np.ndarray) -> ActionSpec:
        spec = self.action_spec or self.critic.action_spec
        if candidates.shape[2] != spec.dim:
            raise InputError(f"actions of {candidates.shape[2]} numbers, but the critic scores {spec.dim}; give a --map")
        return replace(spec, chunk=candidates.shape[1])

    def passed_on(self, reason: str) -> dict[str, Any]:
        """The `steering` entry of an unsteered reply; each reason is logged once, whatever its numbers."""
        kind = re.sub(r"[\d.]+", "", reason)
        if kind not in self._reasons and len(self._reasons) < 100:
            self._reasons.add(kind)
            _log.warning("not steered, the server's own action is passed on: %s", reason)
        return {"steered": False, "reason": reason}


class ProxySession:
    """One client's connection."""

    def __init__(self, proxy: SteeringProxy, server: PolicyServer) -> None:
        self._proxy, self._server = proxy, server
        self._map: Any = None if proxy.map is None else proxy.map.session()

    async def answer(self, observation: dict[str, Any], message: bytes) -> dict[str, Any]:
        proxy, started = self._proxy, time.perf_counter()
        if observation.get("reset") is True and proxy.map is not None:
            self._map = proxy.map.session()
        try:
            ours: dict[str, Any] | None = self._ours(observation)
            reason = ""
        except InputError as error:
            ours, reason = None, " ".join(str(error).split())
        count = proxy.affordable() if ours is not None else 1
        replies, missing = await self._ask(observation, message, count, ours, started)
        own = replies[0]
        try:
            if ours is None:
                raise NotSteeredError(reason)
            if missing:
                raise NotSteeredError(missing)
            chosen, value, actions = await self._choose(ours, replies, started)
        except NotSteeredError as error:
            self._remember(ours, own["actions"])
            return {**own, "steering": proxy.passed_on(str(error))}
        self._remember(ours, actions)
        steering = {
            "steered": True,
            "candidates": len(replies),
            "value": value,
            "chosen": chosen,
            "milliseconds": 1e3 * (time.perf_counter() - started),
        }
        return {**replies[chosen], "actions": actions, "steering": steering}

    async def close(self) -> None:
        if self._server is not self._proxy.server:
            await self._server.close()

    def _ours(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observation by our names, as the critic and a REST server need it."""
        ours = dict(observation) if self._map is None else self._map.observation_from_theirs(observation)
        spec = self._proxy.critic.observation_spec
        kept = checked(ours, spec)
        for key in spec.images:
            if key not in kept:
                raise InputError(f"the observation has no {key!r}, which the critic looks at")
        if isinstance(self._server, RestServer) and "image_primary" in ours:
            kept["image_primary"] = ours["image_primary"]
        return kept

    async def _ask(
        self, observation: dict[str, Any], message: bytes, count: int, ours: dict[str, Any] | None, started: float
    ) -> tuple[list[dict[str, Any]], str]:
        """Replies, each with one chunk as its actions: those of `count` requests that came within the budget; with one alone, why.

        The first must come, whatever the budget.
        """
        requests = self._requests(observation, message, count, ours)
        tasks = [asyncio.ensure_future(self._server.ask(request)) for request in requests]
        for task in tasks:
            task.add_done_callback(_seen)
        try:
            first = await tasks[0]
            left = self._left(started)
            done, _ = await asyncio.wait(tasks, timeout=None if left is None else max(left - self._proxy.reserve(), 0.0))
        finally:
            # Those that were not sent yet never are; the others come to their end for nobody.
            for task in tasks:
                task.cancel()
        failed = [task.exception() for task in done if task.exception() is not None]
        if failed:
            return _chunks(first)[:1], f"{len(failed)} of {len(tasks)} candidate requests failed: {failed[0]}"
        self._proxy.learn_pace(len(tasks), len(done), time.perf_counter() - started)
        # In the order in which they were asked for: the first is what the robot would have done without a proxy.
        replies = [chunk for task in tasks if task in done for chunk in _chunks(task.result())]
        if len(replies) == 1 < self._proxy.steering.num_samples:
            return replies, "only one candidate was answered within the budget: there is nothing to choose"
        return replies, ""

    def _requests(self, observation: dict[str, Any], message: bytes, count: int, ours: dict[str, Any] | None) -> list[bytes]:
        proxy = self._proxy
        if isinstance(self._server, RestServer):
            if ours is None:
                # The server's own names are ours there; what it needs may be there though the critic lacks something.
                ours = dict(observation) if self._map is None else self._map.observation_from_theirs(observation)
            return [self._server.encode(ours)] * count
        if proxy.max_samples == 1 and not proxy.seeded:
            return [message] * count  # as the client wrote it
        if "num_samples" in observation:
            raise InputError("'num_samples': a steering proxy answers with one chunk; leave it out")
        if proxy.window > 1:
            count = min(count, proxy.max_samples)  # one request a step, or the server's history would count each
        shares = [min(proxy.max_samples, count - start) for start in range(0, count, proxy.max_samples)]
        requests = []
        for index, share in enumerate(shares):
            extras: dict[str, Any] = {"num_samples": share} if proxy.max_samples > 1 else {}
            if proxy.seeded and isinstance(seed := observation.get("seed"), int):
                extras["seed"] = seed + index
            requests.append(self._server.encode({**observation, **extras}))
        return requests

    async def _choose(
        self, ours: dict[str, Any], replies: list[dict[str, Any]], started: float
    ) -> tuple[int, float, np.ndarray]:
        """Index and value of the chosen reply, and its actions as the client shall have them."""
        proxy = self._proxy
        theirs = [reply["actions"] for reply in replies]
        if len({(array.shape, array.dtype.str) for array in theirs}) > 1 or theirs[0].ndim != 2:
            raise NotSteeredError(f"the candidates' shapes are not one [H,D]: {sorted({array.shape for array in theirs})}")
        stacked = np.stack(theirs)
        if not np.isfinite(stacked).all():
            raise NotSteeredError("the server's actions are not finite")
        if len(theirs) > 1 and (stacked == stacked[0]).all() and not proxy.steering.ascent_steps:
            raise NotSteeredError(f"all {len(theirs)} candidates are identical: there is nothing to choose")
        proprio = latest_proprio(ours)
        try:
            candidates = stacked if self._map is None else self._trial().actions_from_theirs(stacked, proprio)
        except InputError as error:
            raise NotSteeredError(str(error)) from None
        candidates = np.ascontiguousarray(candidates, np.float32)
        chosen, value, improved = await proxy.choose(ours, candidates, self._left(started))
        actions = theirs[chosen]
        if proxy.steering.ascent_steps:
            back = improved if self._map is None else self._map.actions_to_theirs(improved, proprio)
            # Beyond what the critic scores, the chunk goes on as the server meant it.
            actions = np.concatenate([np.asarray(back, actions.dtype), actions[len(back) :]])
        return chosen, value, actions

    def _trial(self) -> Any:
        """The map for what may not happen: a copy, where it has a memory of the episode."""
        return self._map if self._map is self._proxy.map else copy.deepcopy(self._map)

    def _remember(self, ours: Mapping[str, Any] | None, actions: np.ndarray) -> None:
        """Tell a map with a memory what the robot was given."""
        if ours is not None and self._map is not self._proxy.map:
            with contextlib.suppress(InputError):
                self._map.actions_from_theirs(actions, latest_proprio(ours))

    def _left(self, started: float) -> float | None:
        budget = self._proxy.settings.budget
        return None if budget is None else max(budget - (time.perf_counter() - started), 0.0)


@dataclass
class _Fetched:
    """The candidates [1,K,H,A] as the policy they came from."""

    action_spec: ActionSpec
    candidates: torch.Tensor

    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.candidates

    def reset(self) -> None:
        pass


def _seen(task: asyncio.Future[Any]) -> None:
    """Errors of requests that nobody waits for any more are no news."""
    if not task.cancelled():
        task.exception()


def _chunks(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """A reply with K chunks [K,H,D] as K replies."""
    actions = reply["actions"]
    if actions.ndim < 3:
        return [reply]
    if not len(actions):
        raise ServerError("the server answered no actions")
    return [{**reply, "actions": chunk} for chunk in actions]


def _names(spec: ActionSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return spec.names, spec.units
