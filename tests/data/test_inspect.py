"""inspect and its rendering."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from data import Episode, InputError, RldsWriter
from data.quality.inspection import inspect, render


def test_report(written: Path) -> None:
    report = inspect(written)
    assert json.loads(json.dumps(report)) == report
    assert (report["episodes"], report["steps"], report["transitions"]) == (12, 79, 67)
    assert report["success"] == {"true": 4, "false": 4, "unlabelled": 4}
    assert report["instructions"] == {"close the drawer": 6, "öffne the drawer": 6}
    assert report["episode_length"] == {"min": 3, "median": 5.5, "max": 9}
    assert report["cameras"] == {"image_primary": [12, 16], "image_wrist": [8, 8]}
    assert report["vectors"] == {"proprio": 5, "state": 9}
    assert set(report["statistics"]) == {"mean", "std", "min", "max", "q01", "q99"}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    for part in ("made_dataset", "79 (67 transitions)", "gripper", "close the drawer", "end_effector_delta_base"):
        assert part in text


def test_dead_dimensions_and_bad_episodes(tmp_path: Path, make_episode: Callable[..., Episode], action: dict) -> None:
    episode = make_episode(0, 5)
    episode.actions[:, 1] = 0.01
    episode.actions[:, 3] = [0, 1, 0, 1, 0]
    with RldsWriter(tmp_path / "still", action) as writer:
        for _ in range(3):
            writer.add(episode)
    shard = next((tmp_path / "still/1.0.0").glob("*.tfrecord*"))
    assert inspect(tmp_path / "still")["dead_dimensions"] == ["y"]
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="record 2 is corrupt"):
        inspect(tmp_path / "still")
    report = inspect(tmp_path / "still", skip_bad=True)
    assert report["episodes"] == 2
    assert "record 2 is corrupt" in report["skipped"][0]
