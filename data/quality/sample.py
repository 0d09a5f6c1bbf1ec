"""The episodes that are looked at with their frames: a bounded, evenly spread sample, of which only small numbers are kept.

Decoding is what costs. So frames of some episodes only are looked at, whole episodes of them (motion needs neighbours), and the report
says how many.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.quality.signals import shrink
from data.source import EpisodeSource

EPISODES, FRAMES = 64, 20_000  # at most so many episodes and decoded frames; 20,000 of 640x480 take about a minute
SHEET_EPISODES, SHEET_FRAMES, SHEET_HEIGHT = 8, 6, 96
SHEET_BYTES = 1_400_000  # of all sheets before base64 makes four bytes of three: a page stays around 2 MB
BLANK_STD = 2.0  # grey levels: a lens cap, a black filler or a blue screen; the noise of a dark but live picture is above it


@dataclass(frozen=True)
class CameraFacts:
    """What is kept of T+1 frames [H,W,3]: energy float32 [T], mean absolute change in grey levels; blank bool [T+1]; mean picture."""

    shape: tuple[int, ...]
    energy: np.ndarray
    blank: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Sheet:
    """A row of a contact sheet: frames of one camera in one episode, left to right, at `steps`, in one JPEG."""

    source: str
    camera: str
    steps: tuple[int, ...]
    size: tuple[int, int]
    jpeg: bytes


@dataclass(frozen=True)
class Sample:
    """episodes: without frames; numbers: theirs; cameras: what is left of their frames, episode by episode.

    errors: the episodes that could not be read.
    """

    episodes: list[Episode] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    cameras: list[dict[str, CameraFacts]] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def take_sample(source: EpisodeSource, length: int) -> Sample:
    """Of the first `length` episodes of a source; in order, evenly spread."""
    sample = Sample()
    indices = np.unique(np.linspace(0, length - 1, min(length, EPISODES)).round().astype(int)).tolist()
    # From the middle outwards in both directions, and so on: where the frames run out, what was seen is still spread evenly.
    order = sorted(range(len(indices)), key=lambda i: f"{i:b}".zfill(7)[::-1])
    frames, size = 0, 0
    found: dict[int, tuple[Episode, dict[str, CameraFacts], list[Sheet]]] = {}
    for position in order:
        for item in source.read(range(indices[position], indices[position] + 1), images=True):
            if isinstance(item, InputError):
                sample.errors.append(str(item))
                continue
            sheets = _sheets(item) if len(found) < SHEET_EPISODES else []
            size += sum(len(sheet.jpeg) for sheet in sheets)
            found[position] = item.without_images(), _cameras(item), sheets if size <= SHEET_BYTES else []
            frames += sum(facts.shape[0] for facts in found[position][1].values())
        if frames > FRAMES:
            break
    for position in sorted(found):
        episode, cameras, sheets = found[position]
        sample.episodes.append(episode)
        sample.numbers.append(indices[position])
        sample.cameras.append(cameras)
        sample.sheets.extend(sheets)
    return sample


def _cameras(episode: Episode) -> dict[str, CameraFacts]:
    result = {}
    for key, frames in episode.observations.items():
        if key.startswith("image_"):
            small = shrink(frames)
            result[key] = CameraFacts(
                frames.shape,
                np.abs(np.diff(small, axis=0)).mean((1, 2)),
                frames.reshape(len(frames), -1, 3).std(1).max(1) < BLANK_STD,
                small.mean(0),
            )
    return result


def _sheets(episode: Episode) -> list[Sheet]:
    import cv2

    result = []
    for key, frames in episode.observations.items():
        if not key.startswith("image_"):
            continue
        steps = np.unique(np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)).tolist()
        height, width = frames.shape[1:3]
        shown = min(height, SHEET_HEIGHT)
        size = (max(1, round(width * shown / height)), shown)
        row = np.concatenate([cv2.resize(frames[step], size, interpolation=cv2.INTER_AREA) for step in steps], axis=1)
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
        result.append(Sheet(episode.source, key, tuple(steps), (row.shape[1], row.shape[0]), jpeg.tobytes()))
    return result
