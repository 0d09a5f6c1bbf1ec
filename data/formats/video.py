"""Video files through PyAV: the exact frame at a time, read forward, and an encoder that writes one frame after the other.

It knows nothing of datasets. Frames are uint8 RGB; a frame that is not there within TOLERANCE is an error, never its neighbour.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from data.errors import InputError
from data.formats.sink import Sink

if TYPE_CHECKING:
    import av

TOLERANCE = 1e-4
"""Seconds between a time that is asked for and the frame's own: LeRobot's."""

_READ_ON = 1.0
"""Seconds up to which reading on is taken to be cheaper than to seek, which decodes again from a key frame."""

Codec = Literal["h264", "av1"]
PIXEL_FORMAT = "yuv420p"
# A key frame every second one, as LeRobot: files are larger, and a frame at random costs at most two decoded.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18", "g": "2", "preset": "medium"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2", "preset": "12"}),
}


class VideoReader:
    """One open file. Reading one episode after the other decodes each frame once; elsewhere it seeks to the key frame before."""

    def __init__(self, path: Path) -> None:
        """InputError when the file is missing, or no video."""
        import av

        self.path = path
        try:
            self._container = av.open(str(path))
        except FileNotFoundError:
            raise InputError(f"{path}: missing; copy the dataset again") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable video ({_reason(error)}); copy the file again") from None
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{path}: has no video stream; copy the file again")
        self._stream: Any = self._container.streams.video[0]
        # Datasets are read by several processes; a second level of threads would cost memory and gain nothing.
        self._stream.codec_context.thread_count = 1
        self._frames: Iterator[Any] = iter(())
        self._last: float | None = None

    def close(self) -> None:
        self._container.close()

    def frames(self, times: np.ndarray) -> np.ndarray:
        """uint8 [N,H,W,3] at N increasing times in seconds. InputError when one of them has no frame, or it cannot be decoded."""
        import av

        result: np.ndarray | None = None
        count = 0
        try:
            for frame in self._from(float(times[0])):
                if frame.is_corrupt:
                    raise InputError(f"{self.path}: the frame at {frame.time:.4f} s is damaged; copy the file again")
                if frame.time > times[count] + TOLERANCE:
                    break
                self._last = frame.time
                if frame.time < times[count] - TOLERANCE:
                    continue
                pixels = frame.to_ndarray(format="rgb24")
                if result is None:
                    result = np.empty((len(times), *pixels.shape), np.uint8)
                result[count] = pixels
                count += 1
                if count == len(times):
                    return result
        except (av.error.FFmpegError, ValueError) as error:
            self._last = None
            raise InputError(
                f"{self.path}: damaged at about {times[count]:.4f} s ({_reason(error)}); copy the file again"
            ) from None
        self._last = None
        raise InputError(
            f"{self.path}: no frame within {TOLERANCE:g} s of {times[count]:.4f} s; the video is cut off or out of step"
        )

    def _from(self, time: float) -> Iterator[Any]:
        """Frames in the order they are shown, the first of them no later than `time`, where there is one."""
        if self._last is None or not self._last + TOLERANCE < time <= self._last + _READ_ON:
            self._frames = self._seek(time)
        return self._frames

    def _seek(self, time: float) -> Iterator[Any]:
        # A key frame may be shown after frames that follow it in the file (open GOPs of HEVC): then one further back is needed.
        for back in (0.0, 1.0, 10.0):
            self._container.seek(int(max(time - back, 0) / self._stream.time_base), stream=self._stream)
            frames = self._container.decode(self._stream)
            first = next(frames, None)
            if first is not None and first.time <= time + TOLERANCE:
                return chain([first], frames)
        self._container.seek(0, stream=self._stream)
        return self._container.decode(self._stream)


class VideoWriter:
    """Encodes frames to an mp4 file at a constant rate; frame k is shown at k / rate. Both codecs lose detail; see `Codec`."""

    def __init__(self, path: Path, rate: Fraction, height: int, width: int, codec: Codec) -> None:
        """height and width must be even: colours are kept for blocks of 2x2."""
        import av

        # The encoder's own messages; read when its library is loaded.
        os.environ.setdefault("SVT_LOG", "1")
        encoder, options = _ENCODERS[codec]
        self.path, self.num_frames, self.num_bytes, self._rate = path, 0, 0, rate
        self._sink = Sink(path, "w+")
        self._container: Any = av.open(self._sink, "w", format="mp4")
        self._stream = cast("av.VideoStream", self._container.add_stream(encoder, rate=rate, options=options))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXEL_FORMAT

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, frames: np.ndarray) -> None:
        """uint8 [N,H,W,3] RGB. OSError when the disk is full."""
        import av

        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, 1 / self._rate
            self._write(self._stream.encode(frame))
            self.num_frames += 1
        self._sink.check()

    def _write(self, packets: list[Any]) -> None:
        self._container.mux(packets)
        self.num_bytes += sum(packet.size for packet in packets)

    def close(self) -> None:
        if self.num_frames:
            self._write(self._stream.encode())
        self._container.close()
        self._sink.close()
        self._sink.check()


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
