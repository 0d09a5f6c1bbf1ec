"""A pool of spawned processes that notices when one of them dies. Knows nothing of what it runs.

`concurrent.futures` reports a killed worker as a broken pool, without saying which job it had; here the message names the job.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import torch

from data.errors import InputError
from data.processes import interrupts_held

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Small batches gain nothing from threads, and sums in another order would make results depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_jobs(runner: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, Result], None, None]:
    """Yield (job, runner(job)) in order of completion. `runner` and the jobs are pickled once a worker, unless workers is 1.

    With workers=1 everything happens here, in order. InputError: raised by a job, or a worker was killed. RuntimeError: any other
    exception of a job, with the worker's traceback. Closing the generator, as any exception here does, ends the workers.
    """
    if workers == 1:
        with _one_torch_thread():
            for job in jobs:
                yield job, runner(job)
        return
    pool = [_Worker(runner) for _ in range(min(workers, len(jobs)))]
    waiting = iter(jobs)
    try:
        for worker, job in zip(pool, waiting, strict=False):
            worker.send(job)
        while busy := [worker for worker in pool if worker.job is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    finished = worker.receive()
                    worker.send(next(waiting, None))
                    yield finished
    finally:
        for worker in pool:
            worker.end()


class _Worker(Generic[Job, Result]):
    """One process, the pipe to it, and the job it has (None when it has none)."""

    def __init__(self, runner: Callable[[Job], Result]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self.process = context.Process(target=_serve, args=(runner, theirs), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()  # the worker has the only other end now, so its death is an end of file here

    def send(self, job: Job | None) -> None:
        self.job = job
        if job is not None:
            with suppress(OSError):  # it has just died; `receive` finds out and says so
                self.connection.send(job)

    def receive(self) -> tuple[Job, Result]:
        assert self.job is not None
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise InputError(f"{_death(self.process.exitcode)} while it ran {self.job}") from None
        if kind == "input error":
            raise InputError(value)
        if kind == "defect":
            raise RuntimeError(f"{self.job} failed in a worker:\n{value}")
        return self.job, value

    def end(self) -> None:
        self.connection.close()
        if self.job is not None:  # an idle worker leaves by itself at the end of file
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; the machine may be out of memory, use fewer workers" if name == "SIGKILL" else ""
        return f"a worker process was killed by {name}{hint}; it died"
    return f"a worker process exited with code {exitcode}"


def _serve(runner: Callable[[Job], Result], connection: Connection) -> None:
    """A worker's life: receive a job, send its result, until the parent closes the pipe or is gone."""
    with _one_torch_thread():
        while True:
            try:
                job = connection.recv()
            except (EOFError, OSError):
                return
            try:
                answer: tuple[str, object] = ("result", runner(job))
            except InputError as error:
                answer = ("input error", str(error))
            except Exception:
                answer = ("defect", traceback.format_exc())
            try:
                connection.send(answer)
            except OSError:
                return
