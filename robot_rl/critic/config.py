"""Settings of a critic and its training. Free of heavy imports. The comments are what `--help` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.errors import LEARNING_RATE, NONNEGATIVE, POSITIVE, check_settings, inf
from policies.config import EncoderConfig

Clamp = Literal["none", "policy", "all"]


@dataclass(frozen=True)
class CriticConfig:
    """The critic. The defaults of the conservative part (cql, calql) are V-GPS's."""

    algorithm: Literal["iql", "cql", "calql"] = "iql"  # iql is the quick choice on a CPU
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4  # actions scored together, H
    members: int = 4  # of the ensemble, E
    hidden: int = 256
    depth: int = 2  # hidden layers of each member
    head: Literal["scalar", "hl_gauss"] = "scalar"  # hl_gauss: values as a categorical distribution
    bins: int = 101  # of the hl_gauss head, from -1 forever to 0
    tau: float = 0.01  # of the target network's moving average
    learning_rate: float = 5e-4
    expectile: float = 0.8  # iql
    actor_learning_rate: float = 1e-4  # cql, calql: of the actor that proposes actions
    alpha: float = 5.0  # cql, calql: weight of the conservative penalty
    num_actions: int = 4  # cql, calql: drawn from each of uniform, pi(s) and pi(s')
    temperature: float = 1.0  # cql, calql: of the soft maximum
    importance_sampling: bool = True  # cql, calql: subtract each drawn action's log-density
    max_target_backup: bool = True  # cql, calql: back up the best of the next actions
    clamp: Clamp = "policy"  # calql: which drawn actions are held above the Monte-Carlo return

    def __post_init__(self) -> None:
        check_settings(
            self, chunk=POSITIVE, members=POSITIVE, hidden=POSITIVE, depth=POSITIVE, bins=(2, inf), num_actions=POSITIVE
        )
        check_settings(
            self,
            tau=(1e-6, 1),
            learning_rate=LEARNING_RATE,
            actor_learning_rate=LEARNING_RATE,
            expectile=(0.01, 0.99),
            alpha=NONNEGATIVE,
        )
        check_settings(self, temperature=(1e-3, 1e6))
