"""Instructions other than an episode's own, drawn while sampling: what it achieved instead (hindsight), and what it did not do.

Hindsight (in the manner of HER, 1707.01495): an episode that was asked for one thing and did another is a success at the other. A
negative: any episode is a failure at an instruction that it was not given, which teaches a critic to listen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.errors import InputError, check_settings
from data.labels.rewards import RewardConfig

if TYPE_CHECKING:
    from data.store.store import Store


@dataclass(frozen=True)
class Relabelling:
    """Shares of the draws.

    hindsight: that take the achieved instruction, where one is labelled. negatives: that take an instruction that was neither given nor
    achieved.
    """

    hindsight: float = 0.0
    negatives: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, hindsight=(0, 1), negatives=(0, 1))

    @property
    def active(self) -> bool:
        return self.hindsight > 0 or self.negatives > 0

    def check(self, store: Store) -> None:
        """InputError when a store cannot be relabelled so."""
        if self.active and store.reward["kind"] != "success":
            raise InputError(
                f"{store.path}: keeps given rewards, which are of one instruction; relabelling needs --reward success"
            )
        if self.negatives and len(store.instructions) < 2:
            raise InputError(f"{store.path}: has one instruction; --negatives needs others to draw from")
        if self.hindsight and not (store.achieved >= 0).any():
            raise InputError(f"{store.path}: no episode is labelled with what it achieved; see `robot-rl data label --help`")


def relabelled(
    relabelling: Relabelling,
    generator: np.random.Generator,
    instruction: np.ndarray,
    labels: dict[str, np.ndarray],
    achieved: np.ndarray,
    steps: np.ndarray,
    fits: np.ndarray,
    n_step: int,
    discount: float,
    store: Store,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """instruction int32 [B] and labels {reward, discount, mc_return} float32 [B] of a batch, some of them replaced.

    achieved: int32 [B], -1 where nothing is labelled. steps: T - t of each draw. fits: whether the chunk and the backup lie within the
    episode; elsewhere a negative would bootstrap through padding.
    """
    draw = generator.random((2, len(instruction)))
    hindsight = (draw[0] < relabelling.hindsight) & (achieved >= 0)
    negative = ~hindsight & (draw[1] < relabelling.negatives) & fits
    # Uniform over the instructions that are neither the given nor the achieved one.
    count = len(store.instructions)
    other = (instruction + generator.integers(1, count, len(instruction))) % count if count > 1 else instruction
    negative &= (other != achieved) & (other != instruction)
    result = np.where(hindsight, achieved, np.where(negative, other, instruction)).astype(instruction.dtype)
    config = RewardConfig.from_json(store.reward)
    success, failure = (config.backup(steps, good, n_step, discount) for good in (True, False))
    changed = {
        key: np.where(hindsight, success[key], np.where(negative, failure[key], value)).astype(np.float32)
        for key, value in labels.items()
    }
    return result, changed
