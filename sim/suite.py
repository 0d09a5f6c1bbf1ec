"""A suite: a family of environments that look alike, who demonstrates its tasks, and how all of them are found by name.

A suite of your own is a module that registers its environments with Gymnasium and then itself with `register_suite`. From then on
`--env my_module:my_suite` means all its tasks.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from data.errors import InputError


class Demonstrator(Protocol):
    """Acts in the one environment that it was made for."""

    def act(self, observation: Any = None) -> np.ndarray:
        """The next action, float32 [A] in physical units."""


class DemonstratorFactory(Protocol):
    """Makes a demonstrator; quality runs from 0 (mostly fails) to 1 (clean)."""

    def __call__(self, env: gymnasium.Env, quality: float = 1.0, seed: int | None = None) -> Demonstrator: ...


@dataclass(frozen=True)
class Suite:
    """Environments with the same observations and actions.

    tasks: a short name for each, and its Gymnasium id. Each environment takes `cameras=`, the names of those to render, and renders
    at each step those that its attribute `cameras` then has.
    expert: who demonstrates the tasks; None where nobody does.
    """

    name: str
    tasks: Mapping[str, str]
    expert: DemonstratorFactory | None = None


class Task(Protocol):
    """A row of a suite's table of tasks."""

    @property
    def name(self) -> str: ...

    @property
    def env_id(self) -> str: ...

    @property
    def max_steps(self) -> int: ...


SUITES: dict[str, Suite] = {}


def make_suite(name: str, entry_point: str, tasks: Iterable[Task], expert: DemonstratorFactory) -> Suite:
    """The suite of these tasks, which are registered with Gymnasium: `entry_point` makes each, given `task=` its name."""
    ids = {}
    for task in tasks:
        ids[task.name] = task.env_id
        gymnasium.register(task.env_id, entry_point=entry_point, kwargs={"task": task.name}, max_episode_steps=task.max_steps)
    return Suite(name, ids, expert)


def register_suite(suite: Suite) -> Suite:
    """Make a suite known by its name; one of the same name is replaced. Returns it."""
    SUITES[suite.name] = suite
    return suite


def environment_ids(env: str) -> tuple[str, ...]:
    """Gymnasium ids of what `env` names, in its order: with commas between, suites, suite/task, and ids.

    `module:` in front, of one and all that follow it, is a module that is imported first, because it registers them; the ids keep
    it, as Gymnasium has it, so that `gymnasium.make` finds them in another process too. InputError: no such module, suite, task or
    id, or one that is named twice.
    """
    ids: list[str] = []
    module = ""
    for name in env.split(","):
        module, name = name.strip().rpartition(":")[::2] if ":" in name else (module, name.strip())
        ids += _resolve(f"{module}:{name}" if module else name)
    if twice := [env_id for index, env_id in enumerate(ids) if env_id in ids[:index]]:
        raise InputError(f"{env}: names {twice[0]} twice")
    return tuple(ids)


def suite_of(env_id: str) -> Suite | None:
    """The suite that an id of `environment_ids` belongs to, if any."""
    module, _, name = env_id.rpartition(":")
    _import(module)
    return next((suite for suite in SUITES.values() if name in suite.tasks.values()), None)


def make_expert(env_id: str, env: gymnasium.Env, quality: float = 1.0, seed: int | None = None) -> Demonstrator:
    """Somebody who demonstrates in `env`, an environment with this id. InputError when its suite has nobody."""
    suite = suite_of(env_id)
    if suite is None or suite.expert is None:
        raise InputError(f"{env_id}: nobody demonstrates it; give its suite an `expert`")
    return suite.expert(env, quality, seed)


def _resolve(given: str) -> list[str]:
    module, colon, name = given.rpartition(":")
    _import(module)
    suite_name, _, task = name.partition("/")
    if suite := SUITES.get(suite_name):
        if task and task not in suite.tasks:
            raise InputError(f"{given}: {suite_name} has no such task; it has {', '.join(suite.tasks)}")
        return [f"{module}{colon}{env_id}" for short, env_id in suite.tasks.items() if task in ("", short)]
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise InputError(
            f"{given}: neither a suite ({', '.join(SUITES)}), a task of one ({', '.join(_known())}) nor a registered environment "
            f"({' '.join(str(error).split())})"
        ) from error
    return [given]


def _known() -> list[str]:
    return [env_id for suite in SUITES.values() for env_id in suite.tasks.values()]


def _import(module: str) -> None:
    """Import what registers a suite, from the working directory too, as `python -m` would."""
    if not module:
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # somebody else's module may do anything
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise InputError(f"--env {module}:...: cannot import {module} ({what})") from error
