"""The last T observations, for policies that look back. Policies remember nothing: whoever runs an episode keeps its history.

Windowed observations have an axis T after B, the newest last, and `timestep_pad_mask` bool [B,T], False where the episode had not yet
begun; there the first observation stands in. `instruction` and goals belong to the episode and have no T.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from policies.base import Observations

MASK = "timestep_pad_mask"


def has_window(key: str) -> bool:
    """Whether an observation's entry belongs to a control step, not to the whole episode."""
    return not key.startswith(("instruction", "goal_")) and key != MASK


class History:
    """The last T observations of one episode; make a new one when an episode begins."""

    def __init__(self, window: int) -> None:
        self._steps: deque[Mapping[str, Any]] = deque(maxlen=window)

    def append(self, observation: Mapping[str, Any]) -> None:
        self._steps.append(observation)

    def observation(self) -> dict[str, Any]:
        """One windowed observation, without B; with T = 1 simply the last one."""
        steps, window = list(self._steps), self._steps.maxlen or 1
        if window == 1:
            return dict(steps[-1])
        padded = [steps[0]] * (window - len(steps)) + steps
        stacked = {
            key: np.stack([step[key] for step in padded]) if has_window(key) else value for key, value in steps[-1].items()
        }
        return {**stacked, MASK: np.arange(window) >= window - len(steps)}


def windowed(observations: Observations, window: int) -> dict[str, Any]:
    """Batched observations with the axis T = window, whether they came with (shorter or longer) history or with none."""
    given = dict(observations)
    if MASK not in given:
        batch = len(given["instruction"])
        given = {key: np.asarray(value)[:, None] if has_window(key) else value for key, value in given.items()}
        given[MASK] = np.ones((batch, 1), bool)
    missing = window - given[MASK].shape[1]
    if missing > 0:
        mask = np.pad(given[MASK], ((0, 0), (missing, 0)))
        given = {
            key: np.concatenate([np.repeat(value[:, :1], missing, axis=1), value], axis=1) if has_window(key) else value
            for key, value in given.items()
        }
        given[MASK] = mask
    elif missing < 0:
        given = {key: value[:, -window:] if has_window(key) or key == MASK else value for key, value in given.items()}
    return given


def to_tensor(value: Any) -> torch.Tensor:
    """A numpy entry as a tensor that shares its memory; copied where it may not be written, as entries off a socket."""
    array = np.asarray(value)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def latest(observations: Observations) -> Observations:
    """The newest control step of windowed observations; others as they are."""
    if MASK not in observations:
        return observations
    return {key: value[:, -1] if has_window(key) else value for key, value in observations.items() if key != MASK}
