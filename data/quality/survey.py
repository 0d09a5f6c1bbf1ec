"""A survey of a dataset: what one streaming pass without frames, and a bounded sample with them, say about it.

`inspection` makes a report of it, `check` findings. Memory does not grow with steps or frames; of each episode a kilobyte stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.quality.sample import Sample, take_sample
from data.quality.signals import LaggedCorrelation, Peak, Reservoir, isolated, longest_run, steps, wrapping
from data.source import DatasetSource, EpisodeSource
from data.store.store import Store

ROWS = 2**17  # of the reservoir: quantiles of a larger dataset are estimated from so many of its steps
PAIR_CORRELATION = (
    0.5  # of an action dimension with a proprio dimension that is said to follow it; chance stays below .3 on 200 steps
)
MIN_SAMPLES = 100
REWARD_VALUES = 6  # that many distinct ones are counted; more are a dense reward, of which the range is told
TINY = float(np.finfo(np.float32).tiny)
OWN_LAG_STEPS = 20  # an episode shorter than this says nothing about its own lag
Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Pair:
    """Proprio dimension `proprio` follows action dimension `action`; an absolute command is compared by its changes."""

    action: int
    proprio: int
    absolute: bool


@dataclass(frozen=True)
class Extreme:
    """The number furthest from 0 in a signal of an episode, at `step`; index: [d], of a vector. subnormal: the step of the first number
    below what float32 can write with all its digits, None where there is none."""

    value: float
    step: int
    index: str
    subnormal: int | None


@dataclass(frozen=True)
class EpisodeFacts:
    """What is kept of an episode of T transitions.

    low, high: of its actions, [A], reached at low_at, high_at. jump: how far each paired proprio dimension, [pairs], moves in the step
    jump_at, the one that is most unlike its neighbours, by jump_alone. frozen: (length, start) of the longest stretch of commanded
    motion of which the proprio shows nothing. lag: of its own steps, None where they do not say. whole, motion: digests of actions,
    proprio and instruction, and of the actions alone. reward: (distinct values, at most 4; highest; first step that reaches it; last).
    extremes: of "action", "reward" and each vector.
    """

    source: str
    length: int
    instruction: str
    success: bool | None
    terminated: bool | None
    whole: bytes
    motion: bytes
    low: np.ndarray
    high: np.ndarray
    low_at: np.ndarray
    high_at: np.ndarray
    jump: np.ndarray
    jump_alone: np.ndarray
    jump_at: np.ndarray
    frozen: tuple[int, int]
    lag: Peak | None
    lag_curve: np.ndarray | None
    reward: tuple[frozenset[float], float, int, float] | None
    extremes: dict[str, Extreme]


@dataclass
class Survey:
    """outside: share of steps outside [low, high] of the action description, [A]. lags: of all
    pairs, in two halves of the episodes. rows: of every step the action, the proprio, the paired change and how isolated it is.
    gaps: key -> numbers of the episodes of which a part is not in the files. left_out: why a store lacks episodes of its
    source, a line each; assumes_success: whether its rewards take episodes without a label for successes.
    reward_steps: reward -> steps that have it; beyond REWARD_VALUES distinct rewards some are missing."""

    name: str
    location: str
    split: str
    action: dict[str, Any]
    changes: tuple[str, ...]
    total: int
    sample: Sample
    proprio_key: str | None
    wraps: np.ndarray
    pairs: list[Pair]
    lags: tuple[LaggedCorrelation, LaggedCorrelation]
    outside: np.ndarray
    rows: Reservoir
    episodes: list[EpisodeFacts] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    shapes: Counter[tuple[tuple[str, tuple[int, ...]], ...]] = field(default_factory=Counter)
    gaps: dict[str, list[int]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    assumes_success: bool = False
    reward_steps: Counter[float] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """A, the number of action dimensions."""
        return len(self.action["names"])

    @property
    def grippers(self) -> list[int]:
        """Action dimensions that open and close something."""
        named = zip(self.action["names"], self.action["units"], strict=True)
        return [i for i, (name, unit) in enumerate(named) if "grip" in name.lower() or "open" in unit.lower()]

    @property
    def hz(self) -> float:
        return float(self.action["control_hz"])

    def lag(self) -> Peak | None:
        """How many steps the proprio comes after the command; None where nothing follows the actions."""
        return self.lags[0].merged(self.lags[1]).peak() if self.pairs else None


def survey(source: EpisodeSource, limit: int | None = None, skip_bad: bool = True, progress: Progress | None = None) -> Survey:
    """Look at a source, or at its first `limit` episodes. InputError when no episode is usable, or (without skip_bad) one is not."""
    length = source.length if limit is None else min(limit, source.length)
    sample = take_sample(source, length)
    size = len(source.action["names"])
    # What has another number of dimensions than the description says is bad wherever it is met, here and below.
    usable = [episode for episode in sample.episodes if episode.actions.shape[1] == size]
    key = next((key for key in ("proprio", "state") if usable and key in usable[0].observations), None)
    widths = (
        Counter(episode.observations[key].shape[1] for episode in usable if key in episode.observations) if key else Counter()
    )
    width = widths.most_common(1)[0][0] if widths else 0
    known = [e for e in usable if key and key in e.observations and e.observations[key].shape[1] == width]
    wraps = wrapping([e.observations[key] for e in known]) if key and known else np.zeros(0, bool)
    max_lag = _max_lag(source.action["control_hz"], known)
    result = Survey(
        source.name, source.location, source.split, source.action, tuple(source.changes), length, sample, key if known else None, wraps,
        [], (LaggedCorrelation(0, 0), LaggedCorrelation(0, 0)), np.zeros(size), Reservoir(ROWS),
    )  # fmt: skip
    if isinstance(source, DatasetSource):
        result.gaps = source.gaps()
    if isinstance(source, Store):
        result.left_out, result.assumes_success = source.left_out, source.assumes_success
    motions = [i for i in range(size) if i not in result.grippers]
    if key and known and max_lag and motions:
        result.pairs = _pairs([(e.actions, steps(e.observations[key], wraps)) for e in known], motions, max_lag)
    result.lags = (LaggedCorrelation(len(result.pairs), max_lag), LaggedCorrelation(len(result.pairs), max_lag))
    for seen, item in enumerate(source.read(range(length), images=False), 1):
        if progress:
            progress(seen, length)
        problem = str(item) if isinstance(item, InputError) else _mismatch(item, result)
        if problem:
            if not skip_bad:
                raise InputError(problem)
            result.errors.append(problem)
        else:
            assert isinstance(item, Episode)
            _add(result, item)
    result.errors.extend(error for error in sample.errors if error not in result.errors)
    if sample.errors and not skip_bad:
        raise InputError(sample.errors[0])
    if not result.episodes:
        raise InputError(
            f"{source.location}: no usable episode in split {source.split!r}"
            + (f"; {result.errors[0]}" if result.errors else "")
        )
    result.outside = result.outside / result.rows.count
    return result


def commands(actions: np.ndarray, pairs: list[Pair]) -> np.ndarray:
    """What the actions [T,A] ask each paired dimension to move by: [T,pairs]; an absolute target by how much it changes."""
    actions = actions.astype(np.float64)
    columns = [
        np.diff(actions[:, pair.action], prepend=actions[:1, pair.action]) if pair.absolute else actions[:, pair.action]
        for pair in pairs
    ]
    return np.stack(columns, axis=1) if pairs else np.zeros((len(actions), 0))


def _max_lag(hz: float, known: list[Episode]) -> int:
    """Lags of up to .8 s, and no more than a third of an episode."""
    if not known:
        return 0
    return int(min(max(0.8 * hz, 4), 40, np.median([len(episode) for episode in known]) // 3))


def _pairs(known: list[tuple[np.ndarray, np.ndarray]], motions: list[int], max_lag: int) -> list[Pair]:
    """For each action dimension, the proprio dimension that follows it best, at whatever lag, as a change or as a target."""
    moved = known[0][1].shape[1]
    pairs = []
    for action in motions:
        candidates = [Pair(action, proprio, absolute) for absolute in (False, True) for proprio in range(moved)]
        lagged = LaggedCorrelation(len(candidates), max_lag)
        for actions, change in known:
            lagged.add(commands(actions, candidates), np.concatenate([change, change], axis=1))
        best = np.abs(lagged.correlations()).max(1)
        if lagged.peak().samples >= MIN_SAMPLES and best.max() >= PAIR_CORRELATION:
            pairs.append(candidates[int(best.argmax())])
    return pairs


def _mismatch(episode: Episode, result: Survey) -> str:
    if episode.actions.shape[1] != result.size:
        return f"{episode.source}: actions have {episode.actions.shape[1]} dimensions, the description names {result.size}"
    proprio = episode.observations.get(result.proprio_key or "")
    if result.proprio_key and (proprio is None or proprio.shape[1:] != result.wraps.shape):
        found = "no" if proprio is None else f"{proprio.shape[1]} dimensions of"
        return f"{episode.source}: has {found} {result.proprio_key}, other episodes have {len(result.wraps)} dimensions of it"
    return ""


def _add(result: Survey, episode: Episode) -> None:
    actions = episode.actions
    if not np.isfinite(actions).all():  # a source need not have validated
        result.errors.append(f"{episode.source}: action is not finite")
        return
    proprio = episode.observations[result.proprio_key] if result.proprio_key else np.zeros((len(actions) + 1, 0), np.float32)
    # An angle that goes round so seldom that the sample did not see it is one all the same.
    change = steps(proprio, result.wraps | wrapping([proprio]))
    paired, asked = change[:, [pair.proprio for pair in result.pairs]], commands(actions, result.pairs)
    lag, curve = None, None
    if result.pairs:
        result.lags[len(result.episodes) % 2].add(asked, paired)
        if len(actions) >= OWN_LAG_STEPS:
            own = LaggedCorrelation(len(result.pairs), min(int(result.lags[0].lags[-1]), len(actions) // 4))
            own.add(asked, paired)
            lag, curve = own.peak(), own.curve()
    low, high = np.asarray(result.action["low"]), np.asarray(result.action["high"])
    margin = 1e-3 * np.maximum(high - low, 0) + 1e-6
    result.outside += ((actions < low - margin) | (actions > high + margin)).sum(0)
    alone = isolated(paired)
    jump_at = alone.argmax(0)
    result.rows.add(np.concatenate([actions, proprio[:-1], np.abs(paired), alone], axis=1))
    if episode.rewards is not None and len(result.reward_steps) <= REWARD_VALUES:
        distinct, counts = np.unique(episode.rewards, return_counts=True)
        result.reward_steps.update(dict(zip(distinct[: REWARD_VALUES + 1].tolist(), counts.tolist(), strict=False)))
    shapes = tuple(sorted((key, value.shape[1:]) for key, value in episode.observations.items()))
    result.shapes[shapes] += 1
    inputs = blake2b(actions.tobytes(), digest_size=12)
    motion = inputs.digest()
    inputs.update(proprio.tobytes())
    inputs.update(episode.instruction.encode())
    result.episodes.append(
        EpisodeFacts(
            source=episode.source,
            length=len(episode),
            instruction=episode.instruction,
            success=episode.success,
            terminated=episode.terminated,
            whole=inputs.digest(),
            motion=motion,
            low=actions.min(0),
            high=actions.max(0),
            low_at=actions.argmin(0),
            high_at=actions.argmax(0),
            jump=np.abs(np.take_along_axis(paired, jump_at[None], 0)[0]),
            jump_alone=alone.max(0),
            jump_at=jump_at,
            frozen=_frozen(asked, change),
            lag=lag,
            lag_curve=curve,
            reward=_reward(episode.rewards),
            extremes=_extremes(episode),
        )
    )


def _frozen(asked: np.ndarray, change: np.ndarray) -> tuple[int, int]:
    """The longest stretch in which no bit of the proprio changes; none where most of its commands are less than half the usual size.

    A stretch goes on where the arm pauses within it.
    """
    run, start = longest_run((change == 0).all(1))
    size = np.linalg.norm(asked / np.maximum(np.abs(asked).max(0), 1e-9), axis=1)
    moves = size > max(0.5 * float(np.median(size)), 1e-6)
    return (run, start) if asked.shape[1] and run and moves[start : start + run].mean() > 0.5 else (0, 0)


def _reward(rewards: np.ndarray | None) -> tuple[frozenset[float], float, int, float] | None:
    if rewards is None:
        return None
    return frozenset(np.unique(rewards)[:4].tolist()), float(rewards.max()), int(rewards.argmax()), float(rewards[-1])


def _extremes(episode: Episode) -> dict[str, Extreme]:
    signals = {"action": episode.actions} | {
        key: value for key, value in episode.observations.items() if not key.startswith("image_")
    }
    if episode.rewards is not None:
        signals["reward"] = episode.rewards
    result = {}
    for key, values in signals.items():
        size = np.abs(values.astype(np.float32).reshape(len(values), -1))
        if size.shape[1]:
            step, column = (int(i) for i in np.unravel_index(size.argmax(), size.shape))
            tiny = ((size > 0) & (size < TINY)).any(1)
            value = float(values.reshape(size.shape)[step, column])
            index = f"[{column}]" if values.ndim > 1 else ""
            result[key] = Extreme(value, step, index, int(tiny.argmax()) if tiny.any() else None)
    return result
