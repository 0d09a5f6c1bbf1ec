"""Settings of a critic and its training. Free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from policies.config import EncoderConfig

Clamp = Literal["none", "policy", "all"]


@dataclass(frozen=True)
class CriticConfig:
    """Network and training settings; the defaults of the conservative part are V-GPS's.

    chunk: actions scored together. expectile: IQL's. alpha, num_actions, temperature,
    importance_sampling, max_target_backup, clamp: of the conservative penalty, see robot_rl.critic.losses. bins: of the HL-Gauss
    head, over all values there are.
    """

    algorithm: Literal["iql", "cql", "calql"] = "iql"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4
    members: int = 4
    hidden: int = 256
    depth: int = 3
    head: Literal["scalar", "hl_gauss"] = "scalar"
    bins: int = 101
    tau: float = 0.005
    learning_rate: float = 3e-4
    expectile: float = 0.8
    actor_learning_rate: float = 1e-4
    alpha: float = 5.0
    num_actions: int = 4
    temperature: float = 1.0
    importance_sampling: bool = True
    max_target_backup: bool = True
    clamp: Clamp = "policy"
