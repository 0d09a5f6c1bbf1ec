"""StickyGripper: the Google robot's gripper in SimplerEnv, whose commands are relative, so that it must be remembered."""

from __future__ import annotations

import copy

import numpy as np


class StickyGripper:
    """The rule of SimplerEnv's policy wrappers, step by step through one episode.

    Ours is the openness in [0, 1]; theirs the command previous - current, positive closing, 0 on the first step. One of more than
    `threshold` is repeated until it was given `steps` times, and what the policy says meanwhile is lost. So the way back is exact only
    for openness that is 0 or 1, begins at 1 and rests `steps` actions between two changes.
    """

    def __init__(self, steps: int, threshold: float = 0.5) -> None:
        self.steps, self.threshold = steps, threshold
        self._previous: float | None = None
        self._held = 0.0
        self._left = 0
        self._openness = 1.0

    def copy(self) -> StickyGripper:
        return copy.copy(self)

    def commands(self, openness: np.ndarray) -> np.ndarray:
        """Ours [H] to theirs [H]; the episode goes on by H steps."""
        return np.array([self._command(float(value)) for value in openness])

    def openness(self, commands: np.ndarray) -> np.ndarray:
        """Theirs [H] to ours [H]: what the last decided command asked for, open until there is one."""
        values = np.empty(len(commands))
        for index, command in enumerate(commands):
            if abs(command) > self.threshold:
                self._openness = 0.0 if command > 0 else 1.0
            values[index] = self._openness
        return values

    def _command(self, openness: float) -> float:
        command = 0.0 if self._previous is None else self._previous - openness
        self._previous = openness
        if self._left == 0 and abs(command) > self.threshold:
            self._held, self._left = command, self.steps
        if self._left:
            self._left -= 1
            return self._held
        return command
