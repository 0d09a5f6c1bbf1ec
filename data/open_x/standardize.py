"""From an episode in a dataset's own names and conventions to an Episode, by its Rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.formats.base import RawEpisode
from data.open_x.parts import assemble
from data.open_x.rule import Rule

EMBEDDING = "language_embedding"
"""The step feature that carries the instruction's embedding, where a dataset has one."""


def standardize(raw: RawEpisode, rule: Rule, images: bool = True) -> Episode | None:
    """Apply a rule to an episode of N steps: T = N-1 transitions, N observations; None for one that the rule leaves out.

    `images=False` leaves the cameras undecoded. Where actions and rewards are N, the last action is dropped; the last reward is what
    arriving there gave, and is added to that of the last transition. InputError names the episode.
    """
    steps = _Steps(raw, rule)
    if steps.count < 2:
        raise InputError(f"{raw.source}: has {steps.count} step, a transition needs two; skip it with --skip-bad")
    instruction, success = steps.instruction(), steps.success()
    if ("no instruction" in rule.skip and not instruction.strip()) or ("failures" in rule.skip and success is False):
        return None
    try:
        observations = {
            ours: assemble(parts, steps.numbers, steps.count, steps.count) for ours, parts in rule.observations.items()
        }
        actions = assemble(rule.actions, steps.numbers, steps.count, steps.count - 1)
    except InputError as error:
        raise error if raw.source in str(error) else InputError(f"{raw.source}: {error}") from None
    if actions.shape[1] != len(rule.action["names"]):
        raise InputError(
            f"{raw.source}: action has shape {actions.shape}, its description names {len(rule.action['names'])} dimensions"
        )
    for camera in real_cameras(raw, rule) if images else ():
        observations[camera] = rule.cameras[camera](steps.values(rule.cameras[camera].key))
    return Episode(
        observations=observations,
        actions=actions,
        instruction=instruction,
        success=success,
        source=raw.source,
        instruction_embedding=steps.embedding(),
        info=raw.texts(),
        rewards=steps.rewards(),
        terminated=steps.terminated(),
    ).validate()


class _Steps:
    """The steps of an episode that a rule reads (`first_step`, `every`)."""

    def __init__(self, raw: RawEpisode, rule: Rule) -> None:
        self._raw, self._rule = raw, rule
        self._slice = slice(rule.first_step, None, rule.every)
        self.count = len(range(raw.num_steps)[self._slice])

    def values(self, key: str) -> Any:
        return self._raw.step(key)[self._slice]

    def numbers(self, key: str) -> np.ndarray:
        """[N, D] (or [N-1, D]); more axes are flattened."""
        values = np.asarray(self.values(key))
        return values.reshape(len(values), -1)

    def instruction(self) -> str:
        """That of the first step: Open-X datasets repeat one text over the episode."""
        if not self._rule.instruction:
            return self._rule.text
        values = self.values(self._rule.instruction)
        if isinstance(values, list):
            return str(values[0])
        # Language-Table keeps its texts as code points, padded with zeros.
        codes = np.asarray(values).reshape(len(values), -1)[0]
        return "".join(map(chr, codes[: int(np.argmin(np.append(codes, 0) != 0))]))

    def embedding(self) -> np.ndarray | None:
        try:
            return np.asarray(self._raw.step(EMBEDDING)[0], np.float32)
        except InputError:
            return None

    def rewards(self) -> np.ndarray | None:
        if self._rule.reward is None:
            return None
        rewards = self.numbers(self._rule.reward)[:, 0].astype(np.float32)
        if len(rewards) == self.count:
            rewards[-2] += rewards[-1]
        return rewards[: self.count - 1]

    def terminated(self) -> bool | None:
        return None if self._rule.terminated is None else bool(self.numbers(self._rule.terminated)[-1, 0])

    def success(self) -> bool | None:
        kind, key, value = self._rule.success
        if kind == "reward":
            rewards = self.rewards()
            return None if rewards is None else bool((rewards >= value).any())
        if kind == "step":
            return bool(self.numbers(key).any())
        found = self._raw.metadata(key)
        if kind == "contains":
            return None if found is None else value in str(found)
        return bool(found) if self._raw.metadata(f"has_{key}", found is not None) else None


def real_cameras(raw: RawEpisode, rule: Rule) -> list[str]:
    """The cameras that this episode has. A dataset with cameras that come and go fills the others with black frames.

    Its flags say which, but there are copies of Bridge (Octo's slice) in which every flag is False though three cameras are there:
    where no flag is set, a camera is one whose first frame is not all black.
    """
    cameras = list(rule.cameras)
    if not rule.camera_flags:
        return cameras
    flagged = [key for key in cameras if key not in rule.camera_flags or raw.metadata(rule.camera_flags[key], False)]
    return flagged or [key for key in cameras if raw.step(rule.cameras[key].key, limit=1).any()]
