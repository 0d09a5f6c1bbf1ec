"""What tests of stores share: converting, with the data's own language, and every byte of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import ConversionConfig, Episode, EpisodeList, LanguageEncoder, Preparation, RewardConfig, convert, open_dataset
from tests.data.conftest import ACTION


def source(episodes: Sequence[Episode]) -> EpisodeList:
    return EpisodeList("made", ACTION, episodes)


def go(source: Any, out: Path, *, cameras: tuple[str, ...] | None = None, discount: float = 0.98, **options: Any) -> Any:
    source = open_dataset(source) if isinstance(source, Path) else source
    config = ConversionConfig(Preparation(cameras), RewardConfig(discount=discount))
    return convert(source, out, config, language=LanguageEncoder("dataset"), **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
