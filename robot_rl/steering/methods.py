"""Ways of acting on a policy's candidates, by name: what a benchmark compares.

A spec is `method[?option=value&...]`: `steered`, `vgps?num_samples=50&temperature=0.1`. The options are the fields of its settings.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from data.errors import InputError
from policies.loading import convert
from robot_rl.steering.config import ModeConfig, RandomConfig, SteeringConfig, VotingConfig

# Each is a class made from (policy, critic, settings), and its settings. V-GPS (2410.13816) and PA-RL (2412.06685) are their rules of
# choosing with their numbers, on our critics and on chunks; of PA-RL the optimisation of actions, not the distillation.
METHODS: Mapping[str, tuple[str, Any]] = {
    "steered": ("SteeredPolicy", SteeringConfig()),
    "random": ("RandomChoice", RandomConfig()),
    "mode": ("ModeChoice", ModeConfig()),
    "vgps": ("SteeredPolicy", SteeringConfig(num_samples=10, smoothing=0, temperature=0)),
    "pa_rl": (
        "SteeredPolicy",
        SteeringConfig(aggregate="mean", smoothing=0, temperature=0, ascent_steps=10, keep=10, trust_region=2.0),
    ),
    "robomonkey": ("MajorityVoting", VotingConfig()),
}
BASE = "base"


@dataclass(frozen=True)
class Method:
    """A way of acting: called with a policy and a critic, it gives the policy that acts so. `base` is the policy alone."""

    name: str
    config: Any = None

    def __call__(self, policy: Any, critic: Any) -> Any:
        if self.name == BASE:
            return policy
        import robot_rl.steering

        return getattr(robot_rl.steering, METHODS[self.name][0])(policy, critic, self.config)

    @property
    def needs_critic(self) -> bool:
        return self.name != BASE


def parse_method(spec: str) -> Method:
    """`method[?option=value&...]`; InputError names what there is."""
    name, _, query = spec.partition("?")
    if name == BASE and not query:
        return Method(BASE)
    if name not in METHODS:
        raise InputError(
            f"{spec!r}: no such way of steering; there are {', '.join((BASE, *METHODS))}, with options as in vgps?num_samples=50"
        )
    default = METHODS[name][1]
    kinds = typing.get_type_hints(type(default))
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise InputError(f"{spec!r}: gives an option twice")
    if unknown := [option for option in given if option not in kinds]:
        raise InputError(f"{spec!r}: {name} has no option {unknown[0]!r}; it has {', '.join(kinds)}")
    return Method(
        name, dataclasses.replace(default, **{option: convert(option, value, kinds[option]) for option, value in given.items()})
    )
