"""Episode: what every reader yields and every writer takes. Arrays over time in physical units; nothing is normalised here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.errors import InputError


@dataclass(frozen=True)
class Episode:
    """One trajectory of T transitions, hence T + 1 observations.

    observations: key -> array [T+1, ...]; Octo's names: `image_primary`, `image_wrist`, ... uint8 [T+1,H,W,3], `proprio` float32
        [T+1,P], and for simulators `state` float32 [T+1,S].
    actions: float32 [T,A], physical units (see the dataset's action description).
    instruction: what the robot was asked to do.
    success: True, False, or None when the data does not say.
    source: where it came from ("bridge_dataset train #3"), for error messages.
    instruction_embedding: float32 [D] when the dataset itself carries one.
    rewards: float32 [T] when the dataset itself carries them. terminated: whether the task ended there (True) or the recording did
        (False); None when the data does not say.
    achieved: another instruction that the episode achieved instead, where one is known (hindsight).
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    instruction: str
    success: bool | None = None
    source: str = "episode"
    instruction_embedding: np.ndarray | None = None
    info: dict[str, str] = field(default_factory=dict)
    rewards: np.ndarray | None = None
    terminated: bool | None = None
    achieved: str | None = None

    def __len__(self) -> int:
        """Number of transitions T."""
        return len(self.actions)

    def without_images(self) -> Episode:
        """The same episode with its cameras left out."""
        return replace(
            self, observations={key: value for key, value in self.observations.items() if not key.startswith("image_")}
        )

    def validate(self) -> Episode:
        """Return self, or raise InputError naming this episode and what is wrong with it."""
        if self.actions.ndim != 2 or not len(self.actions):
            raise InputError(f"{self.source}: actions have shape {self.actions.shape}, expected (T, A) with T >= 1")
        for key, value in self.observations.items():
            if len(value) != len(self) + 1:
                raise InputError(
                    f"{self.source}: {key} has {len(value)} steps, expected {len(self) + 1} (one more than actions)"
                )
            if key.startswith("image_") and (value.dtype != np.uint8 or value.ndim != 4 or value.shape[-1] != 3):
                raise InputError(f"{self.source}: {key} is {value.dtype}{value.shape}, expected uint8 (T, H, W, 3)")
        if self.rewards is not None and self.rewards.shape != (len(self),):
            raise InputError(f"{self.source}: rewards have shape {self.rewards.shape}, expected ({len(self)},)")
        floats = {"action": self.actions, **{k: v for k, v in self.observations.items() if not k.startswith("image_")}}
        if self.rewards is not None:
            floats["reward"] = self.rewards
        for key, value in floats.items():
            if not np.isfinite(value).all():
                step = int(np.argwhere(~np.isfinite(value).reshape(len(value), -1).all(1))[0, 0])
                at = f"step {step}" if step < len(self) else "its last observation"
                raise InputError(f"{self.source}: {key} is not finite at {at}; drop the episode (--skip-bad) or repair it")
        return self


ACTION_FIELDS = ("names", "units", "low", "high", "frame", "control_hz")


def check_action(action: Any, where: str) -> dict[str, Any]:
    """Return a dataset's action description, or raise InputError saying what it lacks.

    names, units, low, high: lists of A; frame: what the action is relative to; control_hz: actions a second.
    """
    where = f"{where}: the action description"
    if action is None:
        raise InputError(f"{where} is missing; `action` needs {', '.join(ACTION_FIELDS)}")
    if not isinstance(action, dict):
        raise InputError(f"{where} is {action!r}; it must be an object with {', '.join(ACTION_FIELDS)}")
    missing, unknown = [key for key in ACTION_FIELDS if key not in action], sorted(set(action) - set(ACTION_FIELDS))
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise InputError(f"{where} {' and '.join(wrong)}; it needs {', '.join(ACTION_FIELDS)}")
    lists = {key: action[key] for key in ACTION_FIELDS[:4]}
    if not all(isinstance(value, list) for value in lists.values()) or len({len(value) for value in lists.values()}) != 1:
        sizes = ", ".join(f"{key} {len(v) if isinstance(v, list) else 'is no list'}" for key, v in lists.items())
        raise InputError(f"{where} needs names, units, low and high as lists of one length ({sizes})")
    names = action["names"]
    if not names or not all(isinstance(text, str) for text in [*names, *action["units"]]):
        raise InputError(f"{where} needs at least one dimension, and `names` and `units` as texts")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{where} names {', '.join(twice)} twice; give each dimension a name of its own")
    for name, low, high in zip(names, action["low"], action["high"], strict=True):
        if not (_is_number(low) and _is_number(high) and low <= high):
            raise InputError(f"{where} bounds {name} by {low!r} and {high!r}; they must be finite numbers, low not above high")
    if not isinstance(action["frame"], str):
        raise InputError(f'{where} has frame {action["frame"]!r}; it must be a text, such as "end_effector_delta_base"')
    if not _is_number(action["control_hz"]) or action["control_hz"] <= 0:
        raise InputError(f"{where} has control_hz {action['control_hz']!r}; it must be a positive number, actions a second")
    return action


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
