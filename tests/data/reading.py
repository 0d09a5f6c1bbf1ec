"""What tests of readers share: reading everything, and expecting one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data import Episode, InputError, open_dataset


def read(path: Path, split: str = "train") -> list[Episode | InputError]:
    """All episodes of the split, a bad one as its InputError."""
    source = open_dataset(path, split)
    return list(source.read(range(source.length)))


def fails(action: Callable[[], object], *parts: str) -> None:
    """The action is refused in one line that has all the parts."""
    with pytest.raises(InputError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
