"""Clean data of a made-up arm, realistic where checks look: smooth reaches, a lagging controller, noise, frames drawn of the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from data.episode import Episode
from data.source import EpisodeList

ACTION = {
    "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
    "units": ["m", "m", "m", "rad", "rad", "rad", "open"],
    "low": [-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0],
    "high": [0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 10.0,
}
TASKS = ("put the carrot in the bowl", "put the spoon on the towel")
LIMIT = 70
HEIGHT, WIDTH = 36, 48


def clean(seed: int, count: int = 24, **action: Any) -> EpisodeList:
    """`count` episodes of two tasks, a sixth of them failures that run to the time limit; further descriptions replace ACTION's."""
    rng = np.random.default_rng(seed)
    scene = {name: rng.uniform(30, 220, (6, 8, 3)) for name in ("image_primary", "image_wrist")}
    return EpisodeList("arm", {**ACTION, **action}, [_episode(rng, index, scene) for index in range(count)])


def with_episode(data: EpisodeList, index: int, **changes: Any) -> EpisodeList:
    """The same with one episode changed; `observations` are merged."""
    items = list(data.items)
    if "observations" in changes:
        changes["observations"] = {**items[index].observations, **changes["observations"]}
    items[index] = replace(items[index], **changes)
    return replace(data, items=items)


def each(data: EpisodeList, change: Any) -> EpisodeList:
    """The same with every episode changed."""
    return replace(data, items=[change(episode) for episode in data.items])


def _episode(rng: np.random.Generator, index: int, scene: dict[str, np.ndarray]) -> Episode:
    success = index % 6 != 5
    start = np.array([0.25, 0.0, 0.2, 0, 0, 0]) + rng.normal(0, 0.02, 6)
    pick = np.array([*rng.uniform((0.15, -0.2), (0.4, 0.2)), 0.03, *rng.normal(0, 0.2, 2), rng.uniform(-0.8, 0.8)])
    place = np.array([*rng.uniform((0.15, -0.2), (0.4, 0.2)), 0.06, 0, 0, 0]) + rng.normal(0, 0.05, 6)
    lift, retreat = pick + np.array([0, 0, 0.12, 0, 0, 0]), place + np.array([0, 0, 0.08, 0, 0, 0])
    targets, openings = [start], [1.0]
    for goal, opening, hold in ((pick, 1.0, 2), (lift, 0.0, 2), (place, 0.0, 2), (retreat, 1.0, 0)):
        steps = int(rng.integers(9, 15))
        s = np.arange(1, steps + 1) / steps
        s = 10 * s**3 - 15 * s**4 + 6 * s**5
        targets += [*(targets[-1] + s[:, None] * (goal - targets[-1])), *[goal] * hold]
        openings += [opening] * (steps + hold)
    if not success:  # waits, trembling, until the time is up
        targets, openings = (values + values[-1:] * (LIMIT + 1 - len(values)) for values in (targets, openings))
    wanted = np.stack(targets)
    moves = np.diff(wanted, axis=0) + rng.normal(0, 0.001, (len(wanted) - 1, 6))
    gripper = np.array(openings[1:])
    moves[:, :3], moves[:, 3:] = np.clip(moves[:, :3], -0.05, 0.05), np.clip(moves[:, 3:], -0.25, 0.25)
    pose, opening, wished = wanted[0].copy(), 1.0, wanted[0].copy()
    states = [[*pose, opening]]
    for move, grip in zip(moves, gripper, strict=True):
        wished += move
        pose = pose + 0.75 * (wished - pose) + rng.normal(0, 2e-4, 6)
        opening += 0.6 * (grip - opening)
        states.append([*pose, opening])
    proprio = np.array(states, np.float32)
    rewards = np.zeros(len(moves), np.float32)
    rewards[-1] = float(success)
    return Episode(
        observations={
            "image_primary": _draw(rng, scene["image_primary"], proprio[:, 1] / 0.5 + 0.5, proprio[:, 0] / 0.5, proprio[:, 6]),
            "image_wrist": _draw(rng, scene["image_wrist"], proprio[:, 5] / 3 + 0.5, proprio[:, 2] / 0.3, proprio[:, 6]),
            "proprio": proprio,
        },
        actions=np.concatenate([moves, gripper[:, None]], axis=1).astype(np.float32),
        instruction=TASKS[index % 2],
        success=success,
        source=f"arm train #{index}",
        rewards=rewards,
        terminated=success,
    )


def _draw(rng: np.random.Generator, scene: np.ndarray, x: np.ndarray, y: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """A blob (the hand) at relative places x and y [N] over a coloured background, with noise: uint8 [N,H,W,3]."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    background = np.kron(scene, np.ones((HEIGHT // 6, WIDTH // 8, 1)))
    frames = []
    for centre_x, centre_y, width in zip(x * WIDTH, y * HEIGHT, 4 + 2 * opening, strict=True):
        near = np.exp(-(((columns - centre_x) / width) ** 2 + ((rows - centre_y) / 4) ** 2))[..., None]
        frames.append(background * (1 - near) + np.array([20.0, 20.0, 25.0]) * near + rng.normal(0, 1.5, (HEIGHT, WIDTH, 1)))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)
