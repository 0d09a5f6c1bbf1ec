"""The page is whole, self-contained and safe; its videos decode again."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from point_mass import Homing, Make

from data.errors import InputError
from robot_rl.evaluation import EpisodeOutcome, evaluate, rollout
from robot_rl.evaluation.figures import Series, line_chart, metric_charts
from robot_rl.evaluation.report import ReportData, write_report
from robot_rl.evaluation.video import encode_mp4

ENVS = ["test/PointMass-v0", "test/PointMassFar-v0"]
VOID = {"meta", "br", "line", "circle", "rect", "path"}


class Balanced(HTMLParser):
    """Every tag closed in order; remembers every address a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert all(address.startswith("data:video/mp4;base64,") for address in parser.addresses)
    assert "http" not in re.sub('http-equiv="Content-Security-Policy"', "", page)
    return parser


@pytest.fixture(scope="module")
def data() -> ReportData:
    arms = {"base": Make(0.8), "steered": Make(0.05), "random": Make(0.8)}
    result = evaluate(arms, ENVS, 20, seed=0, workers=1, env_kwargs={"crash": "step"}).to_json()
    base = rollout(Homing(0.8), ENVS[0], [1, 2], 0, record=[1, 2])
    steered = rollout(Homing(0.0, judged=True), ENVS[0], [1, 2], 0, record=[1, 2])
    curve = [{"step": step, "td_loss": 10.0 / (1 + step), "q_mean": float(step)} for step in range(1000)]
    return ReportData(
        title="Steering <script>alert(1)</script>",
        explanation="An explanation.",
        result=result,
        control_hz=10.0,
        decision_seconds=0.3,
        curves={"Critic": curve, "Policy": [{"step": 1, "loss": 1.0}, {"step": 2, "val_loss": float("nan")}], "Empty": []},
        value_traces=steered,
        videos=list(zip(base, steered, strict=True)),
        commands=["robot-rl evaluate a & b"],
    )


def test_page_is_whole_and_self_contained(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(path, data)
    page = path.read_text()
    assert list(path.parent.iterdir()) == [path]
    assert len(page) < 500_000
    assert len(check(page).addresses) == 4
    for text in [
        "Success rates",
        "all tasks",
        "Gain over the base policy",
        "td loss",
        "log scale",
        "Side by side",
        "a &amp; b",
        *ENVS,
    ]:
        assert text in page
    assert "<script" not in page
    assert "simulator exploded" in page
    assert "12 episodes ended with an error" in page  # seeds 3 and 13, two tasks, three arms


def test_videos_decode_again(data: ReportData, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", data)
    addresses = check((tmp_path / "report.html").read_text()).addresses
    lengths = []
    for i, address in enumerate(addresses):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(base64.b64decode(address.split(",")[1]))
        reader = imageio_ffmpeg.read_frames(str(path))
        about = next(reader)
        assert about["codec"] == "h264"
        assert about["pix_fmt"].startswith("yuv420p")
        assert about["fps"] == 10
        assert about["size"] == (320, 256)  # 20 x 16, enlarged
        frames = [np.frombuffer(frame, np.uint8).reshape(256, 320, 3) for frame in reader]
        lengths.append(len(frames))
        shown = data.videos[i // 2][i % 2].frames
        assert shown is not None
        for frame, original in ((frames[0], shown[0]), (frames[-1], shown[-1])):
            again = frame.reshape(16, 16, 20, 16, 3).mean(axis=(1, 3))
            assert np.abs(again - original).mean() < 12
    assert lengths[0] == lengths[1]
    assert lengths[2] == lengths[3]


def test_video_keeps_its_budget() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 65, 63, 3), dtype=np.uint8)  # odd sizes, nothing to compress
    free, bound = encode_mp4(noise, 10.0, 10**9), encode_mp4(noise, 10.0, 60_000)
    assert len(bound) <= 60_000 < len(free)


def test_smaller_reports(data: ReportData, tmp_path: Path) -> None:
    """One task has no total; a lone arm has no differences; no recordings, no sections for them."""
    one = evaluate({"base": Make(0.8), "steered": Make(0.0)}, ENVS[:1], 5, seed=0, workers=1).to_json()
    alone = evaluate({"base": Make(0.8)}, ENVS, 5, seed=0, workers=1).to_json()
    for result, has, has_not in [(one, "Gain over", "all tasks"), (alone, "all tasks", "Gain over")]:
        write_report(tmp_path / "r.html", ReportData("t", "e", result, 10.0, 0.3))
        page = (tmp_path / "r.html").read_text()
        check(page)
        assert has in page
        assert has_not not in page
        assert "Side by side" not in page


def test_a_failed_write_leaves_the_old_report(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    blind = EpisodeOutcome(ENVS[0], 1)
    with pytest.raises(InputError, match="no frames"):
        write_report(path, replace(data, videos=[(blind, blind)]))
    monkeypatch.setattr("robot_rl.evaluation.report.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="show fewer than 2 pairs"):
        write_report(path, data)
    monkeypatch.undo()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, data)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "y",
    [
        [1.0],
        [0.0, 0.0],
        [5.0, 5.0, 5.0],
        [1e-9, 2e-9],
        [-1e7, 1e7],
        [1.0, float("nan"), 2.0],
        [1e-6, 1.0, 1e6],
        [float("inf"), 1.0],
    ],
)
def test_charts_of_awkward_numbers(y: list[float]) -> None:
    chart = line_chart("t", [Series("s", range(len(y)), y, "red", marked=True)], "x")
    check(chart)
    assert "nan" not in chart
    assert "inf" not in chart


def test_charts_of_nothing() -> None:
    assert line_chart("t", [Series("s", [0, 1], [float("nan")] * 2, "red")], "x") == ""
    assert "figure" not in metric_charts([{"step": 1}], "red")


def test_long_curves_are_thinned() -> None:
    n = 100_000
    assert len(line_chart("t", [Series("s", range(n), np.sin(np.arange(n) / 5000).tolist(), "red")], "x")) < 6000


def test_importing_evaluation_is_light() -> None:
    code = "import sys, robot_rl.evaluation; print([m for m in ('matplotlib', 'imageio_ffmpeg', 'scipy', 'rich') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"
