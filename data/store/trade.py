"""What keeping frames raw or as JPEG costs, measured on some of a store's own frames, on the machine at hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from data.store.array import MappedArray, write_array
from data.store.bench import measure
from data.store.frames import JPEG_QUALITY, JpegFrames, JpegWriter
from data.store.store import Store

_SECONDS = 0.5


def storage_trade(store: Store, camera: str, frames: int = 256) -> dict[str, float]:
    """raw_bytes and jpeg_bytes of a frame, and raw_frames_per_second and jpeg_frames_per_second of random batches; jpeg_quality."""
    rows = np.linspace(0, store.rows - 1, min(frames, store.rows)).astype(int)
    sample = store.gather(camera, rows)
    with tempfile.TemporaryDirectory() as folder:
        write_array(Path(folder) / "raw", sample)
        writer = JpegWriter(Path(folder) / "jpeg", sample.shape[1:])
        writer.append(sample)
        writer.finish()
        raw, jpeg = MappedArray(Path(folder) / "raw"), JpegFrames(Path(folder) / "jpeg", len(sample))
        rates = measure(
            {
                "raw": lambda generator, size: raw.gather(generator.integers(len(sample), size=size)),
                "jpeg": lambda generator, size: jpeg.gather(generator.integers(len(sample), size=size)),
            },
            256,
            _SECONDS,
            lambda _: None,
        )
    return {
        "raw_bytes": float(sample[0].nbytes),
        "jpeg_bytes": jpeg.num_bytes / len(jpeg),
        "raw_frames_per_second": rates["raw"],
        "jpeg_frames_per_second": rates["jpeg"],
        "jpeg_quality": JPEG_QUALITY,
    }
