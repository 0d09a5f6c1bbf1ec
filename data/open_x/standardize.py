"""From a dataset's own names and conventions to an Episode. A dataset is a Rule, which is data wherever that suffices.

Ours, and any other dataset whose folder holds a `robot_rl.json` of `{"action": {...}, "observations": {ours: theirs}}`, needs no
rule here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.episode import Episode, check_action
from data.errors import InputError
from data.formats.rlds import METADATA_FILE, RawEpisode, RldsDataset, step_keys

GRIPPER_OPEN, GRIPPER_CLOSED = 0.95, 0.05


@dataclass(frozen=True)
class Rule:
    """How to read one dataset.

    action: its description (names, units, low, high, frame, control_hz). observations: our key -> its step feature.
    camera_flags: our camera -> the `episode_metadata` flag that says whether it is real. actions: (actions [N,A], proprio [N,P]) of
    all N steps -> actions [N-1,A] of the transitions.
    """

    action: dict[str, Any]
    observations: dict[str, str]
    camera_flags: dict[str, str] = field(default_factory=dict)
    actions: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda actions, _: actions[:-1]


def binarize_gripper(gripper: np.ndarray) -> np.ndarray:
    """[N] -> {0,1}: above .95 is open (1), below .05 closed (0), and in between is the next settled value.

    A tail that never settles is rounded; the original leaves it as it is, which is not binary.
    """
    index = np.arange(len(gripper))
    settled = (gripper > GRIPPER_OPEN) | (gripper < GRIPPER_CLOSED)
    following = np.minimum.accumulate(np.where(settled, index, len(gripper) - 1)[::-1])[::-1]
    return (gripper[following] > 0.5).astype(np.float32)


def bridge_actions(actions: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    """BridgeData V2: what the arm did, state[t+1] - state[t], not what it was told, and a binary gripper; float32 [N-1,7].

    Angle differences are wrapped into [-pi, pi]. The original does not wrap, so a roll that crosses pi becomes a turn of 6.28 rad in
    one step, far outside the action bounds.
    """
    moved = (proprio[1:, :6] - proprio[:-1, :6]).astype(np.float64)
    turned = np.abs(moved[:, 3:]) > np.pi
    moved[:, 3:] = np.where(turned, (moved[:, 3:] + np.pi) % (2 * np.pi) - np.pi, moved[:, 3:])
    return np.concatenate([moved, binarize_gripper(actions[:, 6])[:-1, None]], axis=1).astype(np.float32)


_CAMERAS = {
    "image_primary": "image_0",
    "image_secondary": "image_1",
    "image_tertiary": "image_2",
    "image_quaternary": "image_3",
}
RULES = {
    "bridge_dataset": Rule(
        action={
            "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
            "units": ["m", "m", "m", "rad", "rad", "rad", "open"],
            # The limits of a WidowX 250 step in bridge_data_robot.
            "low": [-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0],
            "high": [0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0],
            "frame": "end_effector_delta_base",
            "control_hz": 5.0,
        },
        observations={**{ours: f"observation/{theirs}" for ours, theirs in _CAMERAS.items()}, "proprio": "observation/state"},
        camera_flags={ours: f"has_{theirs}" for ours, theirs in _CAMERAS.items()},
        actions=bridge_actions,
    ),
}


def rule_for(dataset: RldsDataset) -> Rule:
    """The rule of a dataset: its own robot_rl.json before the built-in ones. InputError tells how to describe an unknown one."""
    where = dataset.path / METADATA_FILE
    if dataset.description is not None:
        action = check_action(dataset.description.get("action"), str(where))
        observations = dataset.description.get("observations")
        if not isinstance(observations, dict) or not all(isinstance(value, str) for value in observations.values()):
            raise InputError(
                f'{where}: `observations` must map our names to step features, as {{"proprio": "observation/state"}}'
            )
        rule = Rule(action, observations)
    elif dataset.name in RULES:
        rule = RULES[dataset.name]
    else:
        example = {
            "observations": {"image_primary": "observation/...", "proprio": "observation/..."},
            "action": "{names, units, ...}",
        }
        raise InputError(
            f"{dataset.path}: no rule for dataset {dataset.name!r} (known: {', '.join(RULES)}); describe it in {METADATA_FILE} beside "
            f"dataset_info.json as {json.dumps(example)}; its step features are {', '.join(step_keys(dataset.features))}"
        )
    present = step_keys(dataset.features)
    missing = sorted({"action", "language_instruction", *rule.observations.values()} - set(present))
    if missing:
        raise InputError(
            f"{dataset.path}: needs step features {', '.join(missing)}, has {', '.join(present)}; see {METADATA_FILE}"
        )
    return rule


def standardize(raw: RawEpisode, rule: Rule, images: bool = True) -> Episode:
    """Apply a rule to an episode of N steps: T = N-1 transitions, N observations. `images=False` leaves the cameras undecoded."""
    if raw.num_steps < 2:
        raise InputError(f"{raw.source}: has {raw.num_steps} step, a transition needs two; skip it with --skip-bad")
    observations = {
        ours: np.asarray(raw.step(key), np.float32) for ours, key in rule.observations.items() if not ours.startswith("image_")
    }
    for camera in real_cameras(raw, rule) if images else ():
        observations[camera] = raw.step(rule.observations[camera])
    actions = np.asarray(raw.step("action"), np.float32)
    if actions.ndim != 2 or actions.shape[1] != len(rule.action["names"]):
        raise InputError(
            f"{raw.source}: action has shape {actions.shape}, its description names {len(rule.action['names'])} dimensions"
        )
    embedding = raw.step("language_embedding")[0] if "steps/language_embedding" in raw.features else None
    success = bool(raw.metadata("success")) if raw.metadata("has_success", raw.metadata("success") is not None) else None
    return Episode(
        observations=observations,
        actions=rule.actions(actions, observations.get("proprio", actions)),
        # The instruction of the first step: Open-X datasets repeat one text over the episode.
        instruction=raw.step("language_instruction")[0],
        success=success,
        source=raw.source,
        instruction_embedding=embedding,
        info=raw.texts(),
    ).validate()


def real_cameras(raw: RawEpisode, rule: Rule) -> list[str]:
    """The cameras that this episode has. A dataset with cameras that come and go fills the others with black frames.

    Its flags say which, but there are copies of Bridge (Octo's slice) in which every flag is False though three cameras are there:
    where no flag is set, a camera is one whose first frame is not all black.
    """
    cameras = [key for key in rule.observations if key.startswith("image_")]
    if not rule.camera_flags:
        return cameras
    flagged = [key for key in cameras if key not in rule.camera_flags or raw.metadata(rule.camera_flags[key], False)]
    return flagged or [key for key in cameras if raw.step(rule.observations[key], limit=1).any()]
