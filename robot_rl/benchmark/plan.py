"""What a benchmark runs: suites, each with its critic and its policies, and the methods that are compared on all of them.

    {"suites": {"tabletop": {"env": "tabletop", "critic": "runs/critic", "policies": {"octo": "runs/octo", "pi0": "ws://gpu:8000"}}},
     "methods": {"steered": "steered", "random": "random", "V-GPS 50": "vgps?num_samples=50"},
     "episodes": 100, "seed": 4000000}

The policy alone, `base`, always takes part; the first of the methods is the one whose gain is asked for. `env` is as for `--env`;
policies are specs as `robot-rl policies` lists them. Paths are seen from where the command runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import InputError
from robot_rl.steering.methods import BASE, Method, parse_method

_PLAN, _SUITE = ("suites", "methods", "episodes", "seed"), ("env", "critic", "policies")


@dataclass(frozen=True)
class SuitePlan:
    """Environments, who judges there, and who acts there."""

    env: str
    critic: str
    policies: Mapping[str, str]


@dataclass(frozen=True)
class BenchmarkPlan:
    """See the module. methods: by the name that tables show, `base` first."""

    suites: Mapping[str, SuitePlan]
    methods: Mapping[str, Method]
    episodes: int = 100
    seed: int = 4_000_000

    def only(self, suites: Sequence[str], policies: Sequence[str], methods: Sequence[str]) -> BenchmarkPlan:
        """The part of the plan with these names; an empty list means all. InputError for a name that is not in it."""
        every = {name for suite in self.suites.values() for name in suite.policies}
        for option, names, known in (
            ("suites", suites, self.suites),
            ("policies", policies, every),
            ("methods", methods, self.methods),
        ):
            if unknown := [name for name in names if name not in known]:
                raise InputError(f"--{option} {unknown[0]}: not in the plan, which has {', '.join(sorted(known))}")
        chosen = {}
        for name, suite in self.suites.items():
            wanted = {key: spec for key, spec in suite.policies.items() if not policies or key in policies}
            if wanted and (not suites or name in suites):
                chosen[name] = replace(suite, policies=wanted)
        if not chosen:
            raise InputError("nothing is left of the plan; the suites that were chosen have none of the policies")
        if set(methods) == {BASE}:
            raise InputError(
                f"--methods {BASE}: there is nothing to compare it with; name another of {', '.join(self.methods)}"
            )
        kept = {name: m for name, m in self.methods.items() if name == BASE or not methods or name in methods}
        return replace(self, suites=chosen, methods=kept)

    def to_json(self) -> dict[str, Any]:
        """As in the file, with each method's settings in full."""
        suites = {name: vars(suite) for name, suite in self.suites.items()}
        methods = {name: {"method": m.name, **(vars(m.config) if m.config else {})} for name, m in self.methods.items()}
        return {"suites": suites, "methods": methods, "episodes": self.episodes, "seed": self.seed}


def read_plan(path: Path) -> BenchmarkPlan:
    """Read a plan. InputError names the field that is missing, unknown or of another kind."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not a readable plan of a benchmark ({error})") from None
    _check_fields(path, "the plan", values, _PLAN, required=("suites", "methods"))
    suites = {}
    for name, suite in _named(path, "suites", values["suites"]).items():
        _check_fields(path, f"suite {name!r}", suite, _SUITE, required=_SUITE)
        texts = {key: _text(path, f"{key} of suite {name!r}", suite[key]) for key in ("env", "critic")}
        policies = _named(path, f"policies of suite {name!r}", suite["policies"])
        specs = {key: _text(path, f"policy {key!r} of suite {name!r}", spec) for key, spec in policies.items()}
        suites[name] = SuitePlan(**texts, policies=specs)
    methods = {BASE: Method(BASE)}
    for name, spec in _named(path, "methods", values["methods"]).items():
        try:
            methods[name] = parse_method(_text(path, f"method {name!r}", spec))
        except InputError as error:
            raise InputError(f"{path}: method {name!r}: {error}") from error
        if name == BASE or methods[name].name == BASE:
            raise InputError(f"{path}: method {name!r}: the policy alone always takes part; leave it out")
    numbers = {key: values[key] for key in ("episodes", "seed") if key in values}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < (1 if key == "episodes" else 0):
            raise InputError(f"{path}: {key} is {value!r}; it must be a whole number, {1 if key == 'episodes' else 0} or more")
    return BenchmarkPlan(suites, methods, **numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for one with a name that it gives twice, of which JSON would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


def _text(path: Path, what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{path}: {what} is {json.dumps(value)}; it must be a text")
    return value


def _check_fields(path: Path, what: str, values: Any, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{path}: {what} is no JSON object; it needs {', '.join(required)}")
    if unknown := [key for key in values if key not in known]:
        raise InputError(f"{path}: {what} has an unknown field {unknown[0]!r}; there are {', '.join(known)}")
    if missing := [key for key in required if key not in values]:
        raise InputError(f"{path}: {what} lacks {missing[0]!r}")


def _named(path: Path, what: str, values: Any) -> dict[str, Any]:
    """A JSON object with at least one entry, none of whose names would be mistaken for a path in a contest's name."""
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: {what} must be a JSON object with an entry for each")
    if wrong := [name for name in values if not name or "/" in name]:
        raise InputError(f"{path}: {what} has an entry called {wrong[0]!r}; give it a name without a slash")
    return values
