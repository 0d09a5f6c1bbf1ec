"""What the tests of maps share: random actions in a map's terms, a picture, and a map between motions and positions."""

from __future__ import annotations

import numpy as np

from policies.maps import PolicyMap

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def rests(rng: np.random.Generator, shape: tuple[int, ...], steps: int) -> np.ndarray:
    """Openness that begins at 1 and rests `steps` actions or more between changes."""
    values, at = np.ones(shape), rng.integers(1, steps)
    while at < shape[-1]:
        values[..., at:] = 1 - values[..., at:]
        at += rng.integers(steps, 2 * steps)
    return values


def our_actions(policy_map: PolicyMap, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Anywhere in the bounds, pitch a little short of where Euler angles have two names; rounded grippers open or closed."""
    parts = []
    assert policy_map.actions is not None
    for segment in policy_map.actions.segments:
        low, high = (np.array(bound) * (0.9 if segment.rotation else 1) for bound in (segment.low, segment.high))
        values = rng.uniform(low, high, (*shape, len(low)))
        if segment.threshold is not None:
            values = np.where(rng.random(values.shape) > 0.5, high, low)
        if segment.sticky:
            values = rests(rng, shape, segment.sticky)[..., None]
        parts.append(values)
    return np.concatenate(parts, axis=-1)


def position_map(absolute: str, start: str, frame: str) -> PolicyMap:
    place = {"absolute": absolute, "from": start}
    segments = [
        {
            "theirs": [0, 3],
            "names": ["x", "y", "z"],
            "unit": "m",
            "low": -1,
            "high": 1,
            "reference": {**place, "proprio": [0, 3]},
        },
        {
            "theirs": [3, 7],
            "names": ["roll", "pitch", "yaw"],
            "unit": "rad",
            "low": -3,
            "high": 3,
            "rotation": "quaternion_wxyz",
            "reference": {**place, "proprio": [3, 6], "rotation": "euler_xyz", "frame": frame},
        },
    ]
    actions = {"frame": "made", "control_hz": 5, "segments": segments}
    return PolicyMap.from_json({"observation": {}, "actions": actions})
