"""Batcher: one policy, many clients. What waits when the policy becomes free and is of one shape is one call of it.

The policy runs in a thread of its own, so that the event loop answers everybody else meanwhile; one that takes less time than the
hand-over to a thread would cost runs at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from policies.base import Policy, observation_spec
from policies.history import History

# A policy this quick blocks nobody: the hand-over to a thread and back takes about a tenth of it, and several times that at the tail.
INLINE_SECONDS = 1e-3
MAX_BATCH = 16


@dataclass(frozen=True)
class Sampled:
    """actions: float32 [K,H,A] in physical units. seconds: of the policy's call. values: where the policy is steered, Q of the first
    chunk and of all that it was chosen from.
    """

    actions: np.ndarray
    seconds: float
    values: tuple[float, list[float]] | None = None


@dataclass(frozen=True)
class _Request:
    observation: Mapping[str, Any]
    num_samples: int
    seed: int | None
    future: asyncio.Future[Sampled] | None = None

    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can share a call; one that brings its own seed shares with none."""
        entries = (
            (key, value.shape, value.dtype.str) for key, value in self.observation.items() if isinstance(value, np.ndarray)
        )
        return (self.num_samples, id(self) if self.seed is not None else None, *sorted(entries))


class Batcher:
    """Samples from `policy` for whoever asks, on one event loop."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self._policy = policy
        self._device = getattr(policy, "device", torch.device("cpu"))
        self._generator = torch.Generator(device=self._device).manual_seed(seed)
        self._waiting: list[_Request] = []
        self._drain: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="policy")
        # Of the last two calls: one that the machine held up says nothing of the policy.
        self._last_seconds = deque([math.inf, math.inf], maxlen=2)

    async def sample(self, observation: Mapping[str, Any], num_samples: int, seed: int | None = None) -> Sampled:
        """K chunks for one observation (no batch axis). seed: of these samples alone; None continues the server's own generator."""
        if self._drain is None and min(self._last_seconds) < INLINE_SECONDS:
            return self._run_one(_Request(observation, num_samples, seed))
        loop = asyncio.get_running_loop()
        request = _Request(observation, num_samples, seed, loop.create_future())
        self._waiting.append(request)
        if self._drain is None:
            self._drain = loop.create_task(self._drain_all())
        assert request.future is not None
        return await request.future

    def warm_up(self) -> None:
        """One call before the first client's; what it cannot be called with is left for the clients to hear."""
        spec = observation_spec(self._policy)
        if not (spec.images or spec.vectors):
            return
        history = History(spec.window)
        history.append({key: value[0] for key, value in spec.example().items()})
        for _ in range(2):
            try:
                self._run_one(_Request(history.observation(), 1, 0))
            except (InputError, KeyError):
                return

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _drain_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = self._take()
                for request, result in zip(batch, await loop.run_in_executor(self._worker, self._run, batch), strict=True):
                    if request.future is None or request.future.done():
                        continue  # the client hung up
                    if isinstance(result, Exception):
                        request.future.set_exception(result)
                    else:
                        request.future.set_result(result)
        finally:
            self._drain = None

    def _take(self) -> list[_Request]:
        """The oldest request, and with it all of its kind."""
        kind = self._waiting[0].kind()
        batch = [request for request in self._waiting if request.kind() == kind][:MAX_BATCH]
        taken = {id(request) for request in batch}
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        return batch

    def _run(self, batch: Sequence[_Request]) -> Sequence[Sampled | Exception]:
        try:
            return self._call(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        # One of them is to blame, and only that one's client shall hear of it.
        return [self._run([request])[0] for request in batch]

    def _run_one(self, request: _Request) -> Sampled:
        return self._call([request])[0]

    def _call(self, batch: Sequence[_Request]) -> list[Sampled]:
        generator = self._generator
        if batch[0].seed is not None:
            generator = torch.Generator(device=self._device).manual_seed(batch[0].seed)
        started = time.perf_counter()
        try:
            actions = self._policy.sample(_stack(batch), batch[0].num_samples, generator)
        except KeyError as error:
            # A camera that this policy cannot do without; others can, so only the policy knows.
            if str(error.args[0]) in batch[0].observation or not str(error.args[0]).startswith(("image_", "goal_")):
                raise
            raise InputError(f"the observation has no {error.args[0]!r}, which this policy needs") from error
        array = actions.detach().to("cpu", torch.float32).numpy()
        seconds = time.perf_counter() - started
        self._last_seconds.append(seconds)
        if not np.isfinite(array).all():
            raise InputError("the policy's actions are not finite; its weights or this observation are damaged")
        decision = getattr(self._policy, "last_decision", None)
        if decision is None:
            return [Sampled(chunks, seconds) for chunks in array]
        values = zip(decision.values.tolist(), decision.candidates.tolist(), strict=True)
        return [Sampled(chunks, seconds, value) for chunks, value in zip(array, values, strict=True)]


def _stack(batch: Sequence[_Request]) -> dict[str, Any]:
    """Batched observations; of one alone, views of it, as policies do not change what they are given."""
    if len(batch) == 1:
        alone = batch[0].observation
        return {key: value[None] if isinstance(value, np.ndarray) else [value] for key, value in alone.items()}
    return {
        key: np.stack([request.observation[key] for request in batch])
        if isinstance(value, np.ndarray)
        else [request.observation[key] for request in batch]
        for key, value in batch[0].observation.items()
    }
