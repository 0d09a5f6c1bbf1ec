"""Frames to H.264 in memory, in the one flavour that every browser plays: yuv420p, index first."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

MIN_HEIGHT = 256
# x264's quality, from hardly visible loss to "better than nothing"; the first that fits is taken.
RATE_FACTORS = (21, 27, 33, 39, 45)


def encode_mp4(frames: np.ndarray, fps: float, max_bytes: int) -> bytes:
    """uint8 [T,H,W,3] -> an MP4 file of at most `max_bytes`, if the lowest quality gets it there.

    Small frames are enlarged first: yuv420p keeps colour at half resolution, which at 128 pixels eats the gripper.
    """
    import imageio_ffmpeg

    _, height, width, _ = frames.shape
    scale = max(1, -(-MIN_HEIGHT // height))
    size = f"scale={scale * width // 2 * 2}:{scale * height // 2 * 2}:flags=lanczos"  # yuv420p needs even numbers
    data = b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for factor in RATE_FACTORS:
            writer = imageio_ffmpeg.write_frames(
                str(path),
                (width, height),
                fps=fps,
                codec="libx264",
                pix_fmt_out="yuv420p",
                macro_block_size=1,
                output_params=["-crf", str(factor), "-preset", "slow", "-movflags", "+faststart", "-vf", size],
            )
            writer.send(None)
            for frame in np.ascontiguousarray(frames):
                writer.send(frame)
            writer.close()
            data = path.read_bytes()
            if len(data) <= max_bytes:
                break
    return data
