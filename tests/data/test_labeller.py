"""Labels by hand: what a key says is on the disk when the next one is pressed, in the terminal and in the browser."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data import Episode, InputError, LanguageEncoder, RldsWriter, Store, convert, open_dataset
from data.labels.labeller import Journal, clip, journal_path, read_journal
from data.labels.relabel import relabel


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
        first = clip(store, 2, 2 * (30 - 5), 80)[0]
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
        # Faster than anything is drawn: forward twice, back once, failure, success, back, unlabelled, the next unlabelled, quit.
        terminal.press(" \x1b[Cbfs\x1b[Du")
        terminal.wait("episode 4: unlabelled")
        terminal.wait("episode 5 (6 of 12)")
        terminal.press("n")
        terminal.wait("episode 8 (9 of 12)")
        terminal.press("q")
        terminal.wait("\x1b[?1049l")
        assert terminal.process.wait(timeout=20) == 0
        assert termios.tcgetattr(terminal.terminal) == terminal.before
    lines = [json.loads(line) for line in journal_path(store).read_text().splitlines()]
    assert [(line["episode"], line["label"]) for line in lines] == [(3, "failure"), (4, "success"), (4, "unlabelled")]


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
