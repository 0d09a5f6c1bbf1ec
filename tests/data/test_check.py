"""check finds each planted fault, with the episode it was planted in, and nothing in clean data."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data.episode import Episode
from data.errors import InputError
from data.quality.check import check
from data.quality.inspection import inspect
from data.source import EpisodeList
from tests.data.arm_data import clean, each, with_episode

Plant = Callable[[EpisodeList], EpisodeList]
VICTIM = 8  # a success of the first task


def _actions(data: EpisodeList, change: Callable[[np.ndarray], None]) -> EpisodeList:
    actions = data.items[VICTIM].actions.copy()
    change(actions)
    return with_episode(data, VICTIM, actions=actions)


def _observation(data: EpisodeList, key: str, change: Callable[[np.ndarray], np.ndarray | None]) -> EpisodeList:
    value = data.items[VICTIM].observations[key].copy()
    changed = change(value)
    return with_episode(data, VICTIM, observations={key: value if changed is None else changed})


def _all_actions(data: EpisodeList, change: Callable[[np.ndarray], np.ndarray]) -> EpisodeList:
    return each(data, lambda episode: replace(episode, actions=change(episode.actions.copy())))


def _column(index: int, factor: float = 0.0, offset: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[:, index] = values[:, index] * factor + offset
        return values

    return change


def _shifted(episode: Episode, steps: int) -> Episode:
    """Actions `steps` later in the record than they were given; the ends are held."""
    index = np.clip(np.arange(len(episode)) - steps, 0, len(episode) - 1)
    return replace(episode, actions=episode.actions[index])


def _late_frames(episode: Episode, steps: int) -> Episode:
    index = np.clip(np.arange(len(episode) + 1) - steps, 0, len(episode))
    cameras = {key: value[index] for key, value in episode.observations.items() if key.startswith("image_")}
    return replace(episode, observations={**episode.observations, **cameras})


def _joined(data: EpisodeList) -> EpisodeList:
    """The first halves of one and the second halves of another, in one episode."""
    one, other = data.items[VICTIM], data.items[VICTIM + 1]
    half, rest = len(one) // 2, len(other) // 4
    observations = {
        key: np.concatenate([value[: half + 1], other.observations[key][rest + 1 :]]) for key, value in one.observations.items()
    }
    rewards = np.concatenate([one.rewards[:half], other.rewards[rest:]])
    actions = np.concatenate([one.actions[:half], other.actions[rest:]])
    return with_episode(data, VICTIM, actions=actions, observations=observations, rewards=rewards)


def _cut(data: EpisodeList) -> EpisodeList:
    def cut(episode: Episode) -> Episode:
        observations = {key: value[:31] for key, value in episode.observations.items()}
        return replace(
            episode, actions=episode.actions[:30], observations=observations, rewards=None, success=None, terminated=None
        )

    return each(data, cut)


def _swapped(data: EpisodeList) -> EpisodeList:
    cameras = data.items[VICTIM].observations
    exchanged = {"image_primary": cameras["image_wrist"], "image_wrist": cameras["image_primary"]}
    return with_episode(data, VICTIM, observations=exchanged)


def _rewards(data: EpisodeList, change: Callable[[np.ndarray], None]) -> EpisodeList:
    rewards = data.items[VICTIM].rewards.copy()
    change(rewards)
    return with_episode(data, VICTIM, rewards=rewards)


def _early(rewards: np.ndarray) -> None:
    rewards[:] = 0
    rewards[len(rewards) // 2] = 1


def _without(data: EpisodeList, key: str) -> EpisodeList:
    kept = {name: value for name, value in data.items[VICTIM].observations.items() if name != key}
    items = list(data.items)
    items[VICTIM] = replace(items[VICTIM], observations=kept)
    return replace(data, items=items)


def _aborted(data: EpisodeList) -> EpisodeList:
    episode = data.items[VICTIM]
    observations = {key: value[:4] for key, value in episode.observations.items()}
    return with_episode(data, VICTIM, actions=episode.actions[:3], observations=observations, rewards=None, terminated=None)


def _copied(data: EpisodeList, **changes: object) -> EpisodeList:
    return replace(data, items=[*data.items, replace(data.items[VICTIM], source="arm train #24", **changes)])


# fault -> how it is planted, whether it is in one episode (the victim) or in all, and how grave it is
FAULTS: dict[str, tuple[str, Plant, bool, str]] = {
    "an action is NaN": ("unusable-episode", lambda d: _actions(d, lambda a: a.__setitem__((5, 2), np.nan)), False, "error"),
    "ragged: a step of the proprio is lost": (
        "unusable-episode",
        lambda d: _observation(d, "proprio", lambda p: p[:-1]),
        False,
        "error",
    ),
    "proprio of another size": ("unusable-episode", lambda d: _observation(d, "proprio", lambda p: p[:, :6]), False, "error"),
    "a huge proprio": (
        "absurd-value",
        lambda d: _observation(d, "proprio", lambda p: p.__setitem__((9, 2), 6e28)),
        True,
        "error",
    ),
    "a proprio of 1e9": (
        "absurd-value",
        lambda d: _observation(d, "proprio", lambda p: p.__setitem__((9, 2), -1e9)),
        True,
        "error",
    ),
    "huge proprios nearly everywhere": (
        "absurd-value",
        lambda d: each(d, lambda e: replace(e, observations={**e.observations, "proprio": e.observations["proprio"] * 1e12})),
        False,
        "error",
    ),
    "a huge number in another vector": (
        "absurd-value",
        lambda d: with_episode(d, VICTIM, observations={"state": np.full((len(d.items[VICTIM]) + 1, 2), 3e9, np.float32)}),
        True,
        "error",
    ),
    "memory that was never written": (
        "subnormal-value",
        lambda d: _observation(d, "proprio", lambda p: p.__setitem__((9, slice(2, 4)), 4.59e-41)),
        True,
        "warning",
    ),
    "an absurd action": ("absurd-value", lambda d: _actions(d, lambda a: a.__setitem__((7, 0), 3e30)), True, "error"),
    "an absurd gripper": ("absurd-value", lambda d: _actions(d, lambda a: a.__setitem__((7, 6), 1e20)), True, "error"),
    "an absurd reward": ("absurd-value", lambda d: _rewards(d, lambda r: r.__setitem__(3, -1e15)), True, "error"),
    "an action dimension is dead": ("dead-dimension", lambda d: _all_actions(d, _column(1)), False, "warning"),
    "the proprio is constant": (
        "dead-proprio",
        lambda d: each(
            d, lambda e: replace(e, observations={**e.observations, "proprio": np.zeros_like(e.observations["proprio"])})
        ),
        False,
        "error",
    ),
    "a gripper is stuck": ("stuck-gripper", lambda d: _actions(d, lambda a: a[:, 6].fill(1)), True, "error"),
    "gripper in -1..1, described as 0..1": ("gripper-range", lambda d: _all_actions(d, _column(6, 2, -1)), False, "error"),
    "gripper in 0..255": ("gripper-range", lambda d: _all_actions(d, _column(6, 255)), False, "error"),
    "a spike": ("action-spike", lambda d: _actions(d, lambda a: a.__setitem__((7, 0), 2.0)), True, "error"),
    "angles in degrees": ("out-of-bounds", lambda d: _all_actions(d, _column(5, 57.2958)), False, "error"),
    "degrees, with bounds to match": (
        "unit-mismatch",
        lambda d: replace(
            _all_actions(d, _column(5, 57.2958)), action={**d.action, "low": [-15.0] * 6 + [0], "high": [15.0] * 6 + [1.0]}
        ),
        False,
        "error",
    ),
    "millimetres": ("out-of-bounds", lambda d: _all_actions(d, _column(0, 1000)), False, "error"),
    "bounds in millimetres for metres": (
        "bounds-unused",
        lambda d: replace(d, action={**d.action, "low": [-50] * 6 + [0], "high": [50] * 6 + [1]}),
        False,
        "error",
    ),
    "all actions one step late": ("action-lag", lambda d: each(d, lambda e: _shifted(e, 1)), False, "error"),
    "all actions four steps early": ("action-lag", lambda d: each(d, lambda e: _shifted(e, -4)), False, "error"),
    "one episode's actions three steps late": (
        "episode-lag",
        lambda d: with_episode(d, VICTIM, actions=_shifted(d.items[VICTIM], 3).actions),
        True,
        "error",
    ),
    "frames three steps late": ("frame-lag", lambda d: each(d, lambda e: _late_frames(e, 3)), False, "error"),
    "frames three steps early": ("frame-lag", lambda d: each(d, lambda e: _late_frames(e, -3)), False, "error"),
    "frozen frames": (
        "frozen-frames",
        lambda d: _observation(d, "image_primary", lambda f: f.__setitem__(slice(10, None), f[10])),
        True,
        "error",
    ),
    "black frames": ("blank-frames", lambda d: _observation(d, "image_wrist", lambda f: f[20:26].fill(0)), True, "error"),
    "swapped cameras": ("camera-swap", _swapped, True, "error"),
    "a camera is missing": ("camera-missing", lambda d: _without(d, "image_wrist"), True, "warning"),
    "frozen proprio": (
        "frozen-proprio",
        lambda d: _observation(d, "proprio", lambda p: p.__setitem__(slice(3, 30), p[3])),
        True,
        "error",
    ),
    "two recordings in one episode": ("proprio-jump", _joined, True, "error"),
    "a copy": ("duplicate-episode", _copied, False, "error"),
    "the same actions for another instruction": (
        "same-actions",
        lambda d: _copied(d, instruction="stack them"),
        False,
        "warning",
    ),
    "an empty instruction": ("empty-instruction", lambda d: with_episode(d, VICTIM, instruction=" "), True, "error"),
    "no instructions": ("empty-instruction", lambda d: each(d, lambda e: replace(e, instruction="")), False, "warning"),
    "rewards are never given": (
        "constant-reward",
        lambda d: each(d, lambda e: replace(e, rewards=np.zeros(len(e), np.float32))),
        False,
        "error",
    ),
    "a success without reward": ("success-without-reward", lambda d: _rewards(d, lambda r: r.fill(0)), True, "error"),
    "a failure with reward": ("reward-without-success", lambda d: with_episode(d, VICTIM, success=False), True, "error"),
    "rewarded long before the end": ("reward-before-end", lambda d: _rewards(d, _early), True, "error"),
    "all cut to one length": ("cut-episodes", _cut, False, "warning"),
    "an aborted recording": ("short-episode", _aborted, True, "warning"),
    "no success at all": (
        "never-succeeds",
        lambda d: each(d, lambda e: replace(e, success=False, rewards=None)),
        False,
        "warning",
    ),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(name: str, seed: int) -> None:
    fault, plant, one, severity = FAULTS[name]
    data = plant(clean(seed))
    found = {finding.fault: finding for finding in check(data)}
    assert fault in found, f"found only {sorted(found)}"
    assert found[fault].severity == severity
    assert "\n" not in str(found[fault])
    if one:
        assert found[fault].episodes == (f"arm train #{VICTIM}",)
        assert found[fault].count == 1


@pytest.mark.parametrize("seed", range(12))
def test_clean(seed: int) -> None:
    assert check(clean(100 + seed, count=12 + 6 * (seed % 4), control_hz=(5.0, 10.0, 20.0)[seed % 3])) == []


def test_clean_absolute_actions() -> None:
    """Targets instead of changes: compared with the proprio by how they change."""

    def absolute(episode: Episode) -> Episode:
        pose = episode.observations["proprio"][0, :6].astype(np.float64)
        targets = pose + np.cumsum(episode.actions[:, :6], axis=0)
        return replace(episode, actions=np.concatenate([targets, episode.actions[:, 6:]], axis=1).astype(np.float32))

    data = each(
        clean(3, frame="base_absolute", low=[-1.0] * 3 + [-3.2] * 3 + [0.0], high=[1.0] * 3 + [3.2] * 3 + [1.0]), absolute
    )
    assert check(data) == []
    assert "action-lag" in {finding.fault for finding in check(each(data, lambda e: _shifted(e, 2)))}


def test_angles_that_wrap_are_no_jumps() -> None:
    """A wrist at +-pi: its yaw jumps by a turn though it hardly moves."""

    def turned(episode: Episode) -> Episode:
        proprio = episode.observations["proprio"].copy()
        proprio[:, 5] = (proprio[:, 5] + 2 * np.pi) % (2 * np.pi) - np.pi
        return replace(episode, observations={**episode.observations, "proprio": proprio})

    assert check(each(clean(4), turned)) == []


def test_an_angle_that_wraps_in_one_episode_is_no_jump() -> None:
    """... and that one is not among those that were looked at first."""
    data = clean(4, count=200)
    proprio = data.items[VICTIM].observations["proprio"].copy()
    proprio[:, 5] = np.where(np.arange(len(proprio)) < 9, proprio[:, 5] - np.pi, proprio[:, 5] + np.pi)
    assert check(with_episode(data, VICTIM, observations={"proprio": proprio})) == []


def test_one_gripper_of_hundreds_that_never_moves_is_a_warning() -> None:
    findings = check(_actions(clean(4, count=200), lambda a: a[:, 6].fill(1)))
    assert [(finding.fault, finding.severity) for finding in findings] == [("stuck-gripper", "warning")]


def test_a_simulators_state_may_be_all_but_zero() -> None:
    """A speed that halves at every step of the physics."""

    def resting(episode: Episode) -> Episode:
        state = np.full((len(episode) + 1, 2), 4.59e-41, np.float32)
        return replace(episode, observations={**episode.observations, "state": state})

    assert check(each(clean(4), resting)) == []


def test_clean_without_proprio_frames_or_labels() -> None:
    def bare(episode: Episode) -> Episode:
        return replace(
            episode, observations={"state": episode.observations["proprio"]}, success=None, rewards=None, terminated=None
        )

    assert check(each(clean(5), bare)) == []
    assert check(each(clean(6), lambda episode: replace(episode, observations={}))) == []


def test_numbers_at_the_end_of_float32_upset_nothing() -> None:
    episode = clean(0).items[VICTIM]
    proprio, actions = episode.observations["proprio"].copy(), episode.actions.copy()
    proprio[9:11, 2] = actions[4:6, 1] = 3.3e38, -3.3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = inspect(with_episode(clean(0), VICTIM, actions=actions, observations={"proprio": proprio}))
    json.dumps(found, allow_nan=False)
    assert [finding["fault"] for finding in found["findings"]] == ["absurd-value"]


def test_nothing_usable_is_bad_input() -> None:
    data = each(clean(7, count=2), lambda episode: replace(episode, actions=episode.actions * np.nan))
    with pytest.raises(InputError, match="no usable episode in split 'train'; arm train #0: action is not finite at step 0"):
        check(data)


def test_bridge(bridge) -> None:
    """Real data: no errors but what this slice is known for, its cut episodes and its rewards of 0."""
    from data.source import open_dataset

    found = check(open_dataset(bridge))
    assert {finding.fault for finding in found} <= {"cut-episodes", "constant-reward"}
    assert all(finding.severity == "warning" for finding in found)


@pytest.mark.slow
def test_tabletop_demonstrations() -> None:
    """What this project records itself, in three qualities, is clean."""
    import sim  # noqa: F401  registers the tasks
    from robot_rl.collect import action_description, plan, record_all

    env_ids = ("Tabletop-Reach-v0", "Tabletop-Bowl-v0", "Tabletop-Push-v0")
    items = list(record_all(plan(env_ids, 12, (1.0, 0.5, 0.0), 0)))
    found = check(EpisodeList("tabletop", action_description(env_ids[0]), items))
    assert [str(finding) for finding in found] == []
