"""Sink: a file for libraries that do not survive a full disk. HDF5 and FFmpeg crash the process when a write has failed and they are
closed, Arrow complains once more when it is collected. So no write fails for them; the writer asks the sink whether one did."""

from __future__ import annotations

import io
from typing import Any


class Sink(io.FileIO):
    """failure: of the first write that failed; whatever is written after it is lost."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.failure is None:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def check(self) -> None:
        """OSError when a write has failed."""
        if self.failure is not None:
            raise self.failure
