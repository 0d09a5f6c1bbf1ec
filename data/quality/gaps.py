"""Faults of files: parts that are not there, and that the format reads as zeros without an error."""

from __future__ import annotations

from collections.abc import Iterator

from data.quality.finding import Finding
from data.quality.survey import Survey


def gap_faults(found: Survey) -> Iterator[Finding]:
    for key, episodes in found.gaps.items():
        names = [f"#{number}" for number in episodes if number < found.total]
        if not names:
            continue
        if key.startswith("image_"):
            what = f"frames of {key} are not in the files, and are read as black ones"
            yield Finding.of("error", "missing-frames", names, what, "copy the dataset again, or leave those episodes out")
        else:
            # A chunk of zeros need not be written, and a reward or a gripper may be zero for long.
            what = f"numbers of {key} are not in the files, and are read as 0"
            yield Finding.of("warning", "missing-numbers", names, what, "if they are not meant to be 0, copy the dataset again")
