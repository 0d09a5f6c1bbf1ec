"""check: what in a dataset would poison training, as a list of findings. Each names a fault, where it is and what to do about it.

An *error* teaches a policy or a critic something false; a *warning* is worth a look and can be as it should be. Thresholds stand with
the reason why clean data do not cross them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.quality.finding import Finding
from data.quality.frames import frame_faults
from data.quality.gaps import gap_faults
from data.quality.labels import label_faults
from data.quality.motion import motion_faults
from data.quality.survey import Progress, Survey, survey
from data.quality.values import value_faults
from data.source import EpisodeSource

FAULTS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    gap_faults,
    label_faults,
    value_faults,
    motion_faults,
    frame_faults,
)


def check(source: EpisodeSource, limit: int | None = None, progress: Progress | None = None) -> list[Finding]:
    """Everything that is wrong with a source (or its first `limit` episodes), errors first; unusable episodes are findings too.

    InputError only where nothing of it can be used.
    """
    return findings(survey(source, limit, progress=progress))


def findings(found: Survey) -> list[Finding]:
    """What a survey says, errors first."""
    return sorted((finding for fault in FAULTS for finding in fault(found)), key=lambda finding: finding.severity != "error")
