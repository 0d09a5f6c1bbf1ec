"""Pools of processes that run jobs and notice when one of them dies. They know nothing of what they run.

`concurrent.futures` reports a killed worker as a broken pool, without saying which job it had, and is of no more use; here the job
comes back with what became of its worker, and another worker goes on.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

import torch

from data.errors import InputError
from data.processes import interrupts_held

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """In place of a result: the process that ran the job is gone. how: for people, "was killed by SIGSEGV"."""

    how: str


class Pool(Protocol):
    """Runs jobs until it is closed."""

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(job, its result, or a Died) in order of completion.

        InputError: raised by a job, or a worker was killed from outside. RuntimeError: any other exception of a job.
        """
        ...

    def close(self) -> None: ...


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Small batches gain nothing from threads, and sums in another order would make results depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class InProcess(Generic[Job, Result]):
    """No processes at all: every job runs here, in order. A job that takes the process down takes everything down."""

    def __init__(self, runner: Callable[[Job], Result]) -> None:
        self._runner = runner

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        with one_torch_thread():
            for job in jobs:
                yield job, self._runner(job)

    def close(self) -> None:
        pass


class Processes(Generic[Job, Result]):
    """Spawned processes on this machine; `runner` and the jobs are pickled. A job that takes longer than `time_limit` seconds dies."""

    def __init__(self, runner: Callable[[Job], Result], workers: int, time_limit: float = float("inf")) -> None:
        self._runner, self._count, self._limit = runner, workers, time_limit
        self._workers: list[_Worker[Job, Result]] = []

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        waiting = iter(jobs)
        for worker in self._workers:
            worker.send(next(waiting, None))
        while len(self._workers) < self._count and (job := next(waiting, None)) is not None:
            self._workers.append(_Worker(self._runner))
            self._workers[-1].send(job)
        while busy := [worker for worker in self._workers if worker.job is not None]:
            left = min(worker.started for worker in busy) + self._limit - time.monotonic()
            ready = wait([worker.connection for worker in busy], None if left == float("inf") else max(left, 0))
            for worker in busy:
                if worker.connection in ready:
                    if not (finished := worker.receive()):
                        continue
                elif time.monotonic() - worker.started > self._limit:
                    finished = worker.stop(f"took longer than {self._limit:g} s")
                else:
                    continue
                following = next(waiting, None)
                if isinstance(finished[1], Died):
                    self._workers.remove(worker)
                    if following is not None:
                        self._workers.append(worker := _Worker(self._runner))
                worker.send(following)
                yield finished

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.end()
        self._workers = []


class _Worker(Generic[Job, Result]):
    """One process, the pipe to it, and the job it has (None when it has none)."""

    def __init__(self, runner: Callable[[Job], Result]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self.started = float("inf")  # until it has imported what it needs
        self.process = context.Process(target=_serve, args=(runner, theirs), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()  # the worker has the only other end now, so its death is an end of file here

    def send(self, job: Job | None) -> None:
        self.job, self.started = job, float("inf")
        if job is not None:
            with suppress(OSError):  # it has just died; `receive` finds out and says so
                self.connection.send(job)

    def receive(self) -> tuple[Job, Result | Died] | None:
        """What became of the job; None when it has just begun."""
        assert self.job is not None
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return self.job, _death(self.process.exitcode, self.job)
        if kind == "begun":
            self.started = time.monotonic()
            return None
        if kind == "input error":
            raise InputError(value)
        if kind == "defect":
            raise RuntimeError(f"{self.job} failed in a worker:\n{value}")
        return self.job, value

    def stop(self, why: str) -> tuple[Job, Died]:
        assert self.job is not None
        self.end()
        return self.job, Died(why)

    def end(self) -> None:
        self.connection.close()
        if self.job is not None:  # an idle worker leaves by itself at the end of file
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _death(exitcode: int | None, job: object) -> Died:
    if exitcode is None or exitcode >= 0:
        return Died(f"its process exited with code {exitcode}")
    name = signal.Signals(-exitcode).name
    if name in ("SIGKILL", "SIGTERM"):  # somebody else's doing, not the job's
        hint = "; the machine may be out of memory, use fewer workers" if name == "SIGKILL" else ""
        raise InputError(f"a worker process was killed by {name}{hint}; it died while it ran {job}")
    return Died(f"its process was killed by {name}")


def _serve(runner: Callable[[Job], Result], connection: Connection) -> None:
    """A worker's life: receive a job, send its result, until the parent closes the pipe or is gone."""
    with one_torch_thread():
        while True:
            try:
                job = connection.recv()
            except (EOFError, OSError):
                return
            try:
                connection.send(("begun", None))
                answer: tuple[str, object] = ("result", runner(job))
            except InputError as error:
                answer = ("input error", str(error))
            except Exception:
                answer = ("defect", traceback.format_exc())
            try:
                connection.send(answer)
            except OSError:
                return
