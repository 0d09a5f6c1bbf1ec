"""A pool of Ray actors: the same jobs, spread over the cores of this machine or the machines of a cluster.

Every machine needs this package, and the checkpoints at the same paths.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from data.errors import InputError
from robot_rl.evaluation.pool import Died, one_torch_thread


class RayActors:
    """See `robot_rl.evaluation.pool.Pool`; each actor takes one CPU."""

    def __init__(self, runner: Callable[[Any], Any], workers: int, address: str | None, time_limit: float) -> None:
        """address: of a running cluster ("auto" finds the one of this machine), None for one of its own.

        InputError: none is there, or it has fewer free CPUs than workers are asked for.
        """
        try:
            import ray
        except ImportError:
            raise InputError("Ray is not installed; pip install 'robot-rl[distributed]'") from None
        # Without this Ray leaves a token in the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="robot-rl", **options)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"--ray {address}: no Ray cluster there ({' '.join(str(error).split())[:120]})") from None
        # An actor without a CPU would wait, and its block's clock run.
        if (free := int(ray.available_resources().get("CPU", 0))) < workers:
            ray.shutdown()
            raise InputError(f"--workers {workers}: the Ray cluster has {free} CPUs free; use as many or fewer")
        self._ray, self._count, self._limit = ray, workers, time_limit
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        self._runner = ray.put(runner)
        self._idle: list[Any] = []

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        ray, waiting = self._ray, iter(jobs)
        running: dict[Any, tuple[Any, Any, float]] = {}
        while True:
            while len(running) < self._count and (job := next(waiting, None)) is not None:
                actor = self._idle.pop() if self._idle else self._actor.remote(self._runner)
                running[actor.run.remote(job)] = (actor, job, time.monotonic())
            if not running:
                return
            left = min(started for _, _, started in running.values()) + self._limit - time.monotonic()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=None if left == float("inf") else max(left, 0))
            if not ready:
                late = min(running, key=lambda reference: running[reference][2])
                actor, job, _ = running.pop(late)
                ray.kill(actor)
                yield job, Died(f"took longer than {self._limit:g} s")
                continue
            actor, job, _ = running.pop(ready[0])
            try:
                kind, value = ray.get(ready[0])
            except ray.exceptions.OutOfMemoryError:
                raise InputError(f"a machine ran out of memory while it ran {job}; use fewer workers") from None
            except ray.exceptions.RayActorError:
                yield job, Died("its process died")
                continue
            self._idle.append(actor)
            if kind == "input error":
                raise InputError(value)
            if kind == "defect":
                raise RuntimeError(f"{job} failed in a worker:\n{value}")
            yield job, value

    def close(self) -> None:
        with suppress(Exception):
            self._ray.shutdown()


class _Actor:
    def __init__(self, runner: Callable[[Any], Any]) -> None:
        self._runner = runner

    def run(self, job: Any) -> tuple[str, Any]:
        import traceback

        with one_torch_thread():
            try:
                return "result", self._runner(job)
            except InputError as error:
                return "input error", str(error)
            except Exception:
                return "defect", traceback.format_exc()
