"""The commands `data inspect` and `data check`, and the page: complete, self-contained, of bounded size."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.formats.rlds_writer import RldsWriter
from data.quality.inspection import report
from data.quality.sample import SHEET_BYTES
from data.quality.survey import survey
from data.source import EpisodeList
from robot_rl.commands.data_quality import DataCheck, DataInspect
from robot_rl.data_page import write_data_page
from tests.data.arm_data import ACTION, clean, with_episode

VOID = {"meta", "img", "line", "rect", "path", "circle", "br"}


class Page(HTMLParser):
    """Which tags there are, whether they close, and what is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def _page(path: Path, data: EpisodeList) -> str:
    found = survey(data)
    write_data_page(path, report(found), found.sample.sheets)
    return path.read_text()


def test_page_shows_everything_and_fetches_nothing(tmp_path: Path) -> None:
    data = with_episode(clean(0), 8, instruction="<b>put</b>", actions=clean(0).items[8].actions * 100)
    text = _page(tmp_path / "deep" / "page.html", data)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.seen
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "img-src data:" in text
    assert "<b>put</b>" not in text
    assert "&lt;b&gt;put&lt;/b&gt;" in text
    for part in (*ACTION["names"], "action-spike", "episode length", "image_wrist after proprio", "put the carrot in the bowl"):
        assert part in text
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "page.html"]


def test_page_of_large_frames_stays_small(tmp_path: Path) -> None:
    """Noise is the worst that JPEG can get."""
    rng = np.random.default_rng(0)
    data = clean(0, count=6)
    for index, episode in enumerate(data.items):
        frames = {f"image_{k}": rng.integers(0, 256, (len(episode) + 1, 96, 400, 3), dtype=np.uint8) for k in range(4)}
        data = with_episode(data, index, observations=frames)
    text = _page(tmp_path / "page.html", data)
    assert len(text) < 4 / 3 * SHEET_BYTES + 300_000
    assert text.count("<img") >= 4


def test_page_without_frames_or_proprio(tmp_path: Path) -> None:
    from dataclasses import replace

    data = clean(0, count=3)
    data = replace(data, items=[replace(episode, observations={}) for episode in data.items])
    assert Page(_page(tmp_path / "page.html", data)).open == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clean dataset, and one in which an episode has no instruction."""
    root = tmp_path_factory.mktemp("quality")
    data = clean(0, count=12)
    for name, items in (("good", data.items), ("bad", with_episode(data, 8, instruction="").items)):
        with RldsWriter(root / name, ACTION) as writer:
            for episode in items:
                writer.add(episode)
    return root / "good", root / "bad"


def test_commands(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = folders
    DataInspect(good, json=tmp_path / "r.json", html=tmp_path / "r.html", draft=tmp_path / "d.json").run()
    assert "nothing suspicious was found" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["episodes"] == 12
    assert "<img" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "d.json").read_text())["action"] == ACTION
    assert DataCheck(good).run() == 0
    capsys.readouterr()
    assert DataCheck(bad, json=tmp_path / "c.json").run() == 1
    assert re.search(r"error: empty-instruction: 1 episode", capsys.readouterr().out)
    found = json.loads((tmp_path / "c.json").read_text())
    assert not found["ok"]
    assert [finding["fault"] for finding in found["findings"]] == ["empty-instruction"]
    assert DataCheck(bad, episodes=6).run() == 0
    shard = next((bad / "1.0.0").glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert DataCheck(bad, episodes=12).run() == 1
    with pytest.raises(InputError, match=shard.name):
        DataInspect(bad).run()
    with pytest.raises(InputError, match=r"--html .* is a folder"):
        DataInspect(good, html=tmp_path).run()
    with pytest.raises(InputError, match="--episodes is 0"):
        DataCheck(good, episodes=0)


def test_a_dataset_that_nothing_describes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its features are shown and a description is drafted, which then opens it."""
    import shutil

    shutil.copytree(folders[0], tmp_path / "unknown")
    next((tmp_path / "unknown").rglob("robot_rl.json")).unlink()
    drafted = tmp_path / "robot_rl.json"
    DataInspect(tmp_path / "unknown", draft=drafted).run()
    shown = capsys.readouterr().out
    assert "observation/proprio" in shown
    assert "nothing describes this dataset" in shown
    assert "transitions" in shown
    values = json.loads(drafted.read_text())
    drafted.write_text(json.dumps(values | {"action": values["action"] | {"control_hz": 10}}))
    DataInspect(tmp_path / "unknown", description=drafted, json=tmp_path / "r.json").run()
    assert json.loads((tmp_path / "r.json").read_text())["episodes"] == 12
