"""Labels by hand: what a key says is on the disk when the next one is pressed, in the terminal and in the browser."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from data import Episode, InputError, LanguageEncoder, ReplayWriter, RldsWriter, Store, convert, open_dataset
from data.labels.labeller import Journal, clip, journal_path, read_journal
from data.labels.labeller_page import serve_labeller
from data.labels.relabel import relabel

CAMERAS = ["image_primary", "image_wrist"]


@pytest.fixture
def store(tmp_path: Path, written: Path) -> Store:
    """12 episodes, labelled success, failure, unlabelled, and so on."""
    return convert(open_dataset(written), tmp_path / "store", language=LanguageEncoder("dataset")).store


def test_the_last_word_counts_and_the_rest_keeps_its_label(store: Store) -> None:
    with Journal(journal_path(store), store) as journal:
        assert journal.first() == 2, "the first that is unlabelled"
        for episode, label in ((2, 0), (4, 1), (2, 1), (0, -1)):
            journal.write(episode, label)
        assert journal.first() == 5
    expected = store.success.copy()
    expected[[2, 4, 0]] = 1, 1, -1
    np.testing.assert_array_equal(read_journal(journal_path(store), store), expected)
    with Journal(journal_path(store), store) as journal:
        np.testing.assert_array_equal(journal.labels, expected)
        assert np.flatnonzero(journal.touched).tolist() == [0, 2, 4]


def test_a_journal_outlives_relabelling_and_makes_the_labels_of_the_store(store: Store) -> None:
    path = journal_path(store)
    with Journal(path, store) as journal:
        journal.write(2, 1)
        journal.write(0, 0)
    labelled = relabel(store.path, read_journal(path, store))
    assert (labelled.success[2], labelled.success[0]) == (1, 0)
    np.testing.assert_array_equal(read_journal(path, labelled), labelled.success)


def test_a_labelled_store_says_what_is_true_of_its_new_labels(store: Store) -> None:
    said = "episodes without a label of success count as successes"
    assert f"4 {said}" in store.changes
    labels = store.success.copy()
    labels[2] = 1
    fewer = relabel(store.path, labels, note="by hand")
    assert [line for line in fewer.changes if said in line] == [f"3 {said}"]
    whole = relabel(store.path, np.ones(12, np.int8), note="by rule")
    assert not [line for line in whole.changes if said in line]
    assert "by hand" in whole.changes


def test_half_a_line_is_forgotten_and_does_not_spoil_the_next(store: Store) -> None:
    path = journal_path(store)
    with Journal(path, store) as journal:
        journal.write(3, 0)
        journal.write(5, 0)
    path.write_bytes(path.read_bytes()[:-9])
    expected = store.success.copy()
    expected[3] = 0
    np.testing.assert_array_equal(read_journal(path, store), expected)
    with Journal(path, store) as journal:
        journal.write(7, 1)
    expected[7] = 1
    np.testing.assert_array_equal(read_journal(path, store), expected)


def test_journals_that_do_not_fit_are_refused_in_a_line(
    store: Store, tmp_path: Path, episodes: list[Episode], action: dict
) -> None:
    path = journal_path(store)
    with pytest.raises(InputError, match="no labels by hand"):
        read_journal(path, store)
    with RldsWriter(tmp_path / "other_dataset", action) as writer:
        for episode in episodes[::-1]:
            writer.add(episode)
    other = convert(open_dataset(tmp_path / "other_dataset"), tmp_path / "other", language=LanguageEncoder("dataset")).store
    with Journal(path, store) as journal:
        journal.write(0, 1)
        with pytest.raises(InputError, match="another labeller has it open"):
            Journal(path, store)
    for opening in (read_journal, Journal):
        with pytest.raises(InputError, match=r"line 1 labels episode 0 of another store than .*other"):
            opening(path, other)
    path.write_text(path.read_text() + '{"episode": 1}\n')
    with pytest.raises(InputError, match="line 2 is no label"):
        read_journal(path, store)


def test_a_store_that_grows_keeps_its_journal(tmp_path: Path, episodes: list[Episode], action: dict) -> None:
    first, second = episodes[1], episodes[3]
    path = tmp_path / "online"

    def at(episode: Episode, step: int) -> dict[str, np.ndarray]:
        return {key: values[step] for key, values in episode.observations.items()}

    language = LanguageEncoder("dataset")
    for episode in (first, second):
        assert episode.instruction_embedding is not None
        language.remember(episode.instruction, episode.instruction_embedding)
    with ReplayWriter(path, action, language=language) as writer:
        for episode, steps in ((first, len(first)), (second, len(second) - 1)):
            writer.begin(at(episode, 0), episode.instruction)
            for step in range(steps):
                last = step == len(first) - 1 and episode is first
                writer.step(episode.actions[step], at(episode, step + 1), terminated=last)
        store = Store.open(path)
        assert store.running
        with Journal(journal_path(store), store) as journal:
            journal.write(journal.first(), 1)
        with served(store) as page:
            assert page.post("/label", '{"episode": 1, "label": "success"}')[0] == 400, "it has not ended"
        writer.step(second.actions[-1], at(second, len(second)), terminated=True, success=False)
    assert read_journal(journal_path(store), Store.open(path)).tolist() == [1, 0]


class Terminal:
    """A labeller in a real process, on a pseudo-terminal of 80 x 30. `screen`: what it has written; `seen`: what `wait` went by."""

    def __init__(self, store: Store) -> None:
        self.control, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        self.before = termios.tcgetattr(terminal)
        code = (
            "import sys; from data import Store; from data.labels.labeller import journal_path;"
            "from data.labels.labeller_terminal import label_in_terminal;"
            "store = Store.open(sys.argv[1]); label_in_terminal(store, journal_path(store))"
        )
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(store.path)], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
        )
        self.terminal, self.screen, self.seen = terminal, "", ""

    def press(self, keys: str) -> None:
        os.write(self.control, keys.encode())

    def wait(self, text: str, seconds: float = 30) -> None:
        """Until `text` is written, and forget what was written before it."""
        deadline = time.monotonic() + seconds
        while (position := self.screen.find(text)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen[-2000:]!r}"
            if select.select([self.control], [], [], 0.1)[0]:
                self.screen += os.read(self.control, 1 << 16).decode(errors="replace")
        self.seen, self.screen = self.screen[: position + len(text)], self.screen[position:]


@contextmanager
def in_terminal(store: Store) -> Iterator[Terminal]:
    terminal = Terminal(store)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.control)
        os.close(terminal.terminal)


def test_a_killed_terminal_has_lost_no_key(store: Store) -> None:
    with in_terminal(store) as terminal:
        terminal.wait("\x1b[H")
        terminal.wait("▀")
        first = clip(store, 2, CAMERAS, 2 * (30 - 6), 80)[0]
        drawn = re.match("\x1b\\[H\x1b\\[38;2;([0-9;]+);48;2;([0-9;]+)m▀", terminal.seen)
        assert drawn is not None
        assert [group.split(";") for group in drawn.groups()] == first[:2, 0].astype(str).tolist()
        terminal.wait("episode 2 (3 of 12)")
        terminal.press("s")
        terminal.wait("episode 2: success")
        terminal.press("f")
        terminal.wait("episode 3: failure")
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
    labels = read_journal(journal_path(store), store)
    assert (labels[2], labels[3]) == (1, 0)


def test_keys_of_the_terminal(store: Store) -> None:
    with in_terminal(store) as terminal:
        terminal.wait("episode 2 (3 of 12)")
        terminal.wait("q save and quit")
        # Faster than anything is drawn: forward twice, back once, failure, success, back, unlabelled, the next unlabelled, quit.
        terminal.press(" \x1b[Cbfs\x1b[Du")
        terminal.wait("episode 4: unlabelled")
        terminal.wait("episode 5 (6 of 12)")
        terminal.press("n")
        terminal.wait("episode 8 (9 of 12)")
        terminal.wait("primary wrist")
        terminal.press("cc")
        terminal.wait("  wrist")
        terminal.press("q")
        terminal.wait("\x1b[?1049l")
        assert terminal.process.wait(timeout=20) == 0
        assert termios.tcgetattr(terminal.terminal) == terminal.before
    lines = [json.loads(line) for line in journal_path(store).read_text().splitlines()]
    assert [(line["episode"], line["label"]) for line in lines] == [(3, "failure"), (4, "success"), (4, "unlabelled")]


def test_an_interrupt_is_a_quit(store: Store) -> None:
    with in_terminal(store) as terminal:
        terminal.wait("episode 2 (3 of 12)")
        terminal.press("s")
        terminal.wait("episode 2: success")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait("\x1b[?1049l")
        assert terminal.process.wait(timeout=20) == 0
        assert termios.tcgetattr(terminal.terminal) == terminal.before
    assert read_journal(journal_path(store), store)[2] == 1


def test_a_pipe_is_no_terminal(store: Store) -> None:
    code = "import sys; from data import Store; from data.labels.labeller_terminal import label_in_terminal as label;"
    run = subprocess.run(
        [sys.executable, "-c", code + "label(Store.open(sys.argv[1]), sys.argv[1] + '.jsonl')", str(store.path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: labelling in the terminal needs a terminal to draw in; use --browser" in run.stderr


class Page:
    """The labeller's server in a real process."""

    def __init__(self, store: Store) -> None:
        code = (
            "import sys; from functools import partial; from data import Store; from data.labels.labeller import journal_path;"
            "from data.labels.labeller_page import serve_labeller; store = Store.open(sys.argv[1]);"
            "serve_labeller(store, journal_path(store), announce=partial(print, flush=True))"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        url = urlsplit(self.process.stdout.readline().strip())
        self.host, self.token = url.netloc, url.query.removeprefix("token=")

    def get(self, path: str, token: str | None = None, host: str | None = None) -> tuple[int, bytes]:
        return self._ask("GET", f"{path}?token={self.token if token is None else token}", {"Host": host or self.host}, None)

    def post(self, path: str, body: str = "{}", **headers: str) -> tuple[int, bytes]:
        own = {"Host": self.host, "Origin": f"http://{self.host}", "X-Token": self.token}
        return self._ask("POST", path, {**own, **{key.replace("_", "-"): value for key, value in headers.items()}}, body)

    def label(self, episode: int, label: str) -> None:
        assert self.post("/label", json.dumps({"episode": episode, "label": label})) == (200, b"saved")

    def _ask(self, method: str, path: str, headers: dict[str, str], body: str | None) -> tuple[int, bytes]:
        connection = HTTPConnection(self.host, timeout=30)
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        result = reply.status, reply.read()
        connection.close()
        return result


@contextmanager
def served(store: Store) -> Iterator[Page]:
    page = Page(store)
    try:
        yield page
    finally:
        page.process.kill()
        page.process.wait()


def test_a_killed_server_has_lost_no_key_and_goes_on(store: Store) -> None:
    with served(store) as page:
        page.label(2, "success")
        page.label(3, "failure")
        page.process.send_signal(signal.SIGKILL)
        page.process.wait()
    expected = store.success.copy()
    expected[[2, 3]] = 1, 0
    np.testing.assert_array_equal(read_journal(journal_path(store), store), expected)
    with served(store) as page:
        state = json.loads(page.get("/state")[1])
        assert state["first"] == 5
        assert state["labels"][:6] == ["success", "failure", "success", "failure", "failure", "unlabelled"]
        assert state["touched"] == [episode in (2, 3) for episode in range(12)]
        page.label(0, "unlabelled")
        assert page.post("/quit")[0] == 200
        assert page.process.wait(timeout=20) == 0
    expected[0] = -1
    np.testing.assert_array_equal(read_journal(journal_path(store), store), expected)


def test_the_page_shows_the_frames_of_the_store(store: Store) -> None:
    import cv2

    with served(store) as page:
        status, html = page.get("/")
        assert status == 200
        assert not re.search(rb"https?://", html), "nothing is fetched from elsewhere"
        state = json.loads(page.get("/state")[1])
        assert state["instructions"][state["instruction"][0]] == "öffne the drawer"
        for episode in (0, 11):
            status, body = page.get(f"/clip/{episode}")
            strip = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
            frames = clip(store, episode, CAMERAS, 12, multiple=16)
            assert status == 200
            assert len(frames) == state["frames"][episode]
            # Noise, which JPEG keeps only in the mean.
            assert strip.shape == (len(frames) * 16, frames.shape[2], 3)
            np.testing.assert_allclose(strip.reshape(frames.shape).mean((1, 2)), frames.mean((1, 2)), atol=3)
        assert page.get("/clip/12")[0] == 404


def test_other_pages_cannot_label(store: Store) -> None:
    good = json.dumps({"episode": 2, "label": "success"})
    with served(store) as page:
        for path in ("/", "/state", "/clip/0"):
            assert page.get(path, token="")[0] == 403
            assert page.get(path, token="%C3%A9")[0] == 403
            assert page.get(path, host="evil.example")[0] == 403, "a name that was rebound to this machine"
        for headers in ({"X_Token": ""}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:80"}):
            assert page.post("/label", good, **headers)[0] == 403
            assert page.post("/quit", **headers)[0] == 403
        bad = (
            '{"episode": 12, "label": "success"}',
            '{"episode": -1, "label": "success"}',
            '{"episode": true, "label": "success"}',
        )
        for body in (*bad, '{"episode": 2, "label": "maybe"}', '{"episode": 2, "label": []}', "[]", "nonsense"):
            assert page.post("/label", body)[0] == 400
        assert page.post("/label", good + " " * 2000)[0] == 413
        assert page.post("/other", good)[0] == 404
        # Through a tunnel it stands at another port.
        tunnel = "localhost:9999"
        assert page.post("/label", good, Host=tunnel, Origin=f"http://{tunnel}")[0] == 200
    assert len(journal_path(store).read_text().splitlines()) == 1


def test_a_port_that_is_taken_is_told(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be had; choose another one"):
            serve_labeller(store, journal_path(store), taken.getsockname()[1])
