"""Recorded episodes of the same seed beside each other, as a fragment of HTML that holds its videos."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape

import numpy as np

from data.errors import InputError
from robot_rl.evaluation.rollout import EpisodeOutcome
from robot_rl.evaluation.video import encode_mp4

# What all videos of a page may take, before base64 makes four bytes of three; the rest of a page is far below a megabyte.
VIDEO_BYTES = 5_000_000
HOLD_SECONDS = 1.0


def side_by_side(heading: str, note: str, episodes: Mapping[str, EpisodeOutcome], fps: float, max_bytes: int) -> str:
    """Episodes by the name of who acted, at `fps`; `max_bytes` for each video. InputError: one was not recorded."""
    for episode in episodes.values():
        if episode.frames is None:
            raise InputError(f"{episode.env_id} seed {episode.seed}: no frames for its video; run its block with record=[seed]")
    # All hold their last frame until the longest one ends, so that they start over together.
    longest = max(len(episode.frames) for episode in episodes.values() if episode.frames is not None)
    length = longest + round(HOLD_SECONDS * fps)
    clips = "".join(_clip(name, episode, length, fps, max_bytes) for name, episode in episodes.items())
    return f'<div class="pair"><div class="say">{escape(heading)} <span>{escape(note)}</span></div><div class="two">{clips}</div></div>'


def outcome_word(episode: EpisodeOutcome) -> str:
    return "success" if episode.success else "error" if episode.error else "failure"


def _clip(name: str, episode: EpisodeOutcome, length: int, fps: float, max_bytes: int) -> str:
    assert episode.frames is not None
    frames = np.concatenate([episode.frames, np.repeat(episode.frames[-1:], length - len(episode.frames), axis=0)])
    video = b64encode(encode_mp4(frames, fps, max_bytes)).decode()
    edge = "var(--good)" if episode.success else "var(--bad)"
    return (
        f'<figure class="clip" style="--edge:{edge}"><video autoplay muted loop playsinline controls '
        f'src="data:video/mp4;base64,{video}"></video>'
        f"<figcaption>{escape(name)}: <b>{outcome_word(episode)}</b>, {episode.steps / fps:.1f} s</figcaption></figure>"
    )
