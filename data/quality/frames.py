"""Faults of frames, in the sample of episodes whose frames were looked at: blank, frozen, out of step with the robot, swapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from data.quality.finding import Finding
from data.quality.signals import LaggedCorrelation, longest_run, steps
from data.quality.survey import Survey

# A frame is frozen when it changes by less than a twentieth of what its camera usually does while the robot moves at half its usual
# speed or more. Noise alone is more than that; a coded video repeats a frame nearly, not exactly.
STILL = 0.05
STILL_STEPS, STILL_SHARE = 5, 0.25
LAG_CORRELATION, LAG_RATIO, LAG_STEPS, LAG_SECONDS = 0.4, 0.85, 2, 0.15  # cameras are late by up to a step and .1 s
MIN_SAMPLES = 200
SWAP_EPISODES = 6
# Swapped, each picture is at most half as far from the other camera's usual picture as from its own.
SWAP_RATIO = 0.5


def frame_faults(found: Survey) -> Iterator[Finding]:
    yield from _blank(found)
    yield from _missing(found)
    yield from _frozen(found)
    yield from _late(found)
    yield from _swapped(found)


def speeds(found: Survey) -> list[np.ndarray]:
    """How fast the robot moves in each episode of the sample, [T], in units of its usual step; empty where nothing says."""
    if not found.proprio_key:
        return []
    changes = [
        steps(episode.observations[found.proprio_key], found.wraps)
        if episode.observations[found.proprio_key].shape[1:] == found.wraps.shape
        else np.zeros((len(episode), len(found.wraps)))
        for episode in found.sample.episodes
        if found.proprio_key in episode.observations
    ]
    if len(changes) != len(found.sample.episodes):
        return []
    columns = [pair.proprio for pair in found.pairs] or list(range(len(found.wraps)))
    usual = np.sqrt(np.mean(np.concatenate(changes)[:, columns] ** 2, axis=0))
    return [np.linalg.norm(change[:, columns] / np.maximum(usual, 1e-9), axis=1) for change in changes]


def frame_lags(found: Survey) -> dict[str, tuple[LaggedCorrelation, LaggedCorrelation]]:
    """Camera -> correlation of the robot's speed with the motion in its frames, in two halves of the sample."""
    result: dict[str, tuple[LaggedCorrelation, LaggedCorrelation]] = {}
    max_lag = int(found.lags[0].lags[-1])
    for number, (speed, cameras) in enumerate(zip(speeds(found), found.sample.cameras, strict=False)):
        for name, facts in cameras.items():
            energy = facts.energy
            if energy.std() > 0 and speed.std() > 0 and max_lag:
                halves = result.setdefault(name, (LaggedCorrelation(1, max_lag), LaggedCorrelation(1, max_lag)))
                # Each episode by itself: how much a given motion changes a picture depends on the scene.
                x, y = ((signal - signal.mean()) / signal.std() for signal in (speed, energy.astype(np.float64)))
                halves[number % 2].add(x[:, None], y[:, None])
    return result


def _blank(found: Survey) -> Iterator[Finding]:
    def blank(camera: str, number: int) -> tuple[int, int] | None:
        flags = found.sample.cameras[number][camera].blank
        return (int(flags.sum()), int(flags.argmax())) if flags.any() else None

    message = "{camera} is of one colour in {frames} frames from step {start}"
    yield from _spoilt(found, "blank-frames", blank, message, "drop them, or leave the camera out")


def _spoilt(
    found: Survey, fault: str, where: Callable[[str, int], tuple[int, int] | None], message: str, advice: str
) -> Iterator[Finding]:
    """A finding for each camera that has a fault; where: (how many frames, the first) of a camera in an episode of the sample.

    Nothing is said of episodes that lack frames in the files: the black ones in their place are not what the camera saw.
    """
    for camera in _names(found):
        spoilt = {
            episode.source: stretch
            for number, episode in enumerate(found.sample.episodes)
            if camera in found.sample.cameras[number]
            and found.sample.numbers[number] not in found.gaps.get(camera, ())
            and (stretch := where(camera, number))
        }
        if spoilt:
            frames, start = next(iter(spoilt.values()))
            yield Finding.of("error", fault, list(spoilt), message.format(camera=camera, frames=frames, start=start), advice)


def _missing(found: Survey) -> Iterator[Finding]:
    shapes = {
        name: Counter(cameras[name].shape[1:] for cameras in found.sample.cameras if name in cameras) for name in _names(found)
    }
    for name, counts in shapes.items():
        lacking = [
            episode.source
            for episode, cameras in zip(found.sample.episodes, found.sample.cameras, strict=True)
            if name not in cameras or cameras[name].shape[1:] != counts.most_common(1)[0][0]
        ]
        if lacking:
            yield Finding.of(
                "warning",
                "camera-missing",
                lacking,
                f"no {name}, or one of another size",
                "conversion keeps only cameras that every episode has: leave it out, or drop those episodes",
            )


def _frozen(found: Survey) -> Iterator[Finding]:
    moving = [speed > 0.5 * np.median(speed) for speed in speeds(found)]
    if not moving:
        return
    usual = {
        camera: float(
            np.median(np.concatenate([cameras[camera].energy for cameras in found.sample.cameras if camera in cameras]))
        )
        for camera in _names(found)
    }

    def frozen(camera: str, number: int) -> tuple[int, int] | None:
        energy = found.sample.cameras[number][camera].energy
        # Where the robot pauses inside a stretch of repeated frames, the stretch goes on.
        run, start = longest_run(energy <= STILL * usual[camera])
        long = run >= max(STILL_STEPS, STILL_SHARE * len(energy))
        return (run, start) if long and moving[number][start : start + run].mean() > 0.5 else None

    message = "{camera} shows the same frame for {frames} steps from step {start} while the robot moves"
    yield from _spoilt(found, "frozen-frames", frozen, message, "drop them: what is seen is not where the robot is")


def _late(found: Survey) -> Iterator[Finding]:
    for camera, halves in frame_lags(found).items():
        peak = halves[0].merged(halves[1]).peak()
        clear = (
            peak.samples >= MIN_SAMPLES
            and peak.correlation >= LAG_CORRELATION
            and peak.stands_out_from(peak.at_zero, LAG_RATIO)
        )
        far = abs(peak.steps) >= LAG_STEPS and abs(peak.steps) / found.hz >= LAG_SECONDS
        if clear and far and len({half.peak().steps for half in halves}) == 1:
            yield Finding(
                "error",
                "frame-lag",
                f"{camera} shows motion {abs(peak.steps)} steps {'after' if peak.steps > 0 else 'before'} {found.proprio_key} has it; "
                f"correlation {peak.correlation:.2f} there, {peak.at_zero:.2f} at 0",
                "frames and proprio are of different steps: shift them into line",
            )


def _swapped(found: Survey) -> Iterator[Finding]:
    for one, other in combinations(_names(found), 2):
        both = [
            (episode.source, cameras[one].mean, cameras[other].mean)
            for episode, cameras in zip(found.sample.episodes, found.sample.cameras, strict=True)
            if one in cameras and other in cameras and cameras[one].mean.shape == cameras[other].mean.shape
        ]
        if len(both) < SWAP_EPISODES or len({picture.shape for _, picture, _ in both}) > 1:
            continue
        usual_one, usual_other = (np.median([item[i] for item in both], axis=0) for i in (1, 2))
        swapped = [
            source
            for source, first, second in both
            if _distance(first, usual_other) + _distance(second, usual_one)
            < SWAP_RATIO * (_distance(first, usual_one) + _distance(second, usual_other))
        ]
        if swapped and len(swapped) < len(both) / 2:
            yield Finding.of(
                "error",
                "camera-swap",
                swapped,
                f"{one} looks like the others' {other}, and the other way round",
                "exchange the two cameras in them, or drop them",
            )


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def _names(found: Survey) -> list[str]:
    return sorted({name for cameras in found.sample.cameras for name in cameras})
