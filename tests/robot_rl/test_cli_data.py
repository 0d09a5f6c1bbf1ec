"""`robot-rl data ...` as a user runs it: every format in and out, mixtures, kills, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import LanguageEncoder, ReplayWriter, RldsWriter, Store, open_dataset, read_episodes
from robot_rl.cli import main
from tests.conftest import ACTION, make_episodes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "moves"
    with RldsWriter(out, ACTION) as writer:
        for episode in make_episodes(24):
            writer.add(episode)
    return out


def convert(dataset: Path, out: Path, *options: str) -> int:
    return main(["data", "convert", str(dataset), "--out", str(out), "--language", "dataset", *options])


def fails(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    capsys.readouterr()
    assert main([str(part) for part in command]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("robot-rl: ")]
    assert len(lines) == 1
    return lines[0]


def _said(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    capsys.readouterr()
    assert main([str(part) for part in command]) in (0, 1)
    return " ".join(capsys.readouterr().out.split())


def test_convert_resizes_compresses_and_says_so(dataset, tmp_path, capsys):
    assert convert(dataset, tmp_path / "store", "--image-size", "8x12", "--storage", "jpeg", "--episodes", "20") == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "resized to 8x12",
        "kept as JPEG",
        "first 20 of 24",
        "random frames a second on this machine",
        "--storage raw",
    ):
        assert part in said
    store = Store.open(tmp_path / "store")
    assert store.shape("image_primary") == (8, 12, 3)
    assert store.counts["episodes"] == 20
    # A store is a source too: kept otherwise, the pixels stay.
    assert convert(tmp_path / "store", tmp_path / "raw") == 0
    np.testing.assert_array_equal(Store.open(tmp_path / "raw").load("image_primary"), store.load("image_primary"))


@pytest.mark.parametrize(("to", "options"), [("rlds", []), ("lerobot", ["--images", "png"]), ("robomimic", [])])
def test_export_to_every_format_and_back(dataset, tmp_path, to, options):
    out = tmp_path / ("moves.hdf5" if to == "robomimic" else "moves")
    assert main(["data", "export", str(dataset), "--to", to, "--out", str(out), *options]) == 0
    for ours, theirs in zip(read_episodes(open_dataset(out)), make_episodes(24), strict=True):
        assert (ours.instruction, ours.success) == (theirs.instruction, theirs.success)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        for key, value in theirs.observations.items():
            np.testing.assert_array_equal(ours.observations[key], value)
    assert main(["data", "check", str(out)]) in (0, 1)


def test_a_mixture_trains(dataset, tmp_path):
    (tmp_path / "stores").mkdir()
    for name in ("bridge", "mine"):
        assert convert(dataset, tmp_path / "stores" / name) == 0
    common = ["--data", str(tmp_path / "stores"), "--mix", "bridge:1.0,mine:0.5", "--steps", "2", "--batch-size", "8"]
    critic = [*common, "--max-starts", "3", "--n-step", "2", "--negatives", "0.2", "--out", str(tmp_path / "critic")]
    assert main(["train", "critic", *critic]) == 0
    assert main(["train", "policy", *common, "--max-episodes", "10", "--out", str(tmp_path / "policy")]) == 0


def test_convert_killed_again_and_again_gives_what_one_run_gives(dataset, tmp_path):
    whole = tmp_path / "whole"
    assert convert(dataset, whole) == 0
    command = [sys.executable, "-m", "robot_rl.cli", "data", "convert", str(dataset), "--out", str(tmp_path / "store")]
    command += ["--language", "dataset", "--workers", "2"]
    killed = 0
    for delay in (1.0, 1.5, 2.0, 2.5):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False)
    assert (
        done.returncode == 0 or "replace it with --overwrite" in done.stderr
    )  # the last one may have got there before its kill
    ours, theirs = Store.open(tmp_path / "store"), Store.open(whole)
    ours.verify()
    assert ours.counts == theirs.counts
    for key in theirs.arrays:
        np.testing.assert_array_equal(ours.load(key), theirs.load(key))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "store"}


def test_check_exits_with_1_on_poison_and_2_on_damage(dataset, tmp_path, capsys):
    clean = make_episodes(6)
    with RldsWriter(tmp_path / "copies", ACTION) as writer:
        for episode in [*clean, clean[2]]:
            writer.add(episode)
    assert main(["data", "check", str(tmp_path / "copies"), "--json", str(tmp_path / "found.json")]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["ok"]
    assert "duplicate-episode" in {finding["fault"] for finding in found["findings"]}
    assert convert(dataset, tmp_path / "store") == 0
    file = tmp_path / "store/data/proprio/0.0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    assert "its checksum is wrong" in fails(capsys, "data", "check", tmp_path / "store")


def test_bench_data_measures(tmp_path):
    path = tmp_path / "bench.json"
    # A process of its own: TensorFlow can crash one that has imported everything else before it.
    arguments = ["bench", "data", "--episodes", "10", "--seconds", "0.5", "--json", str(path)]
    script = f"from robot_rl.cli import main; raise SystemExit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert done.returncode == 0
    assert all(line.endswith("...") for line in done.stderr.splitlines())
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    assert {"memcpy of as many bytes", "store, raw frames", "h5py, fancy indexing", "tf.data, the same as RLDS"} <= set(rows)
    assert all(row["transitions_per_second"] > 0 for row in rows.values())
    assert rows["store, raw frames"]["ratio"] == 1


def test_mistakes_are_one_line(dataset, tmp_path, capsys):
    for size in ("64", "0x64", "99999x99999"):
        assert "64x64" in fails(capsys, "data", "convert", dataset, "--out", tmp_path / "s", "--image-size", size)
    assert "no rewards" in fails(
        capsys, "data", "convert", dataset, "--out", tmp_path / "s", "--reward", "given", "--language", "dataset"
    )
    assert "has no camera image_left, proprio; it has image_primary" in fails(
        capsys,
        "data",
        "convert",
        dataset,
        "--out",
        tmp_path / "t",
        "--cameras",
        "image_left",
        "proprio",
        "--language",
        "dataset",
    )
    assert "can be h264, av1, png" in fails(
        capsys, "data", "export", dataset, "--to", "lerobot", "--out", tmp_path / "l", "--images", "jpeg"
    )
    assert "has no store of bridge_dataset" in fails(
        capsys, "train", "critic", "--data", dataset, "--out", tmp_path / "run", "--mix", "bridge"
    )
    (tmp_path / "odd").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path / "odd/README.md")
    assert "not a dataset of a known format" in fails(capsys, "data", "inspect", tmp_path / "odd")


def test_label_by_rule_keeps_labels_unless_told_to_replace_them(dataset, tmp_path, capsys):
    convert(dataset, tmp_path / "store")
    store, rule = Store.open(tmp_path / "store"), ["--using", "rule", "--rule", "proprio[0] > 0"]
    label = ["data", "label", str(tmp_path / "store"), *rule]
    assert main(label) == 0
    assert "nothing changes" in capsys.readouterr().out
    assert main([*label, "--replace", "--dry-run"]) == 0
    np.testing.assert_array_equal(Store.open(tmp_path / "store").success, store.success)
    assert main([*label, "--replace"]) == 0
    assert "agrees with" in " ".join(capsys.readouterr().out.split())
    ends = store.episode_ends
    labelled = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(labelled.success, store.gather("proprio", ends - 1)[:, 0] > 0)
    # A success ends in rewards of 0, a failure in -1: the last transition's row is the one before the final observation.
    np.testing.assert_array_equal(labelled.gather("reward", ends - 2), labelled.success.astype(np.float32) - 1)


def test_label_hindsight_from_the_command_line(dataset, tmp_path):
    convert(dataset, tmp_path / "store")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"go left": "proprio[0] < 0", "go right": "proprio[0] > 0"}))
    before = Store.open(tmp_path / "store").success
    assert main(["data", "label", str(tmp_path / "store"), "--using", "data", "--hindsight", str(rules)]) == 0
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(store.success, before)
    np.testing.assert_array_equal(store.achieved >= 0, before == 0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--using", "rule"], "--rule 'state[6] > 0.1' or --rules FILE"),
        (["--using", "rule", "--rule", "height > 1"], "no 'height'; there are"),
        (["--using", "rule", "--rule", "True", "--browser"], "--browser says nothing with --using rule"),
        (["--using", "classifier"], "--classifier FOLDER"),
        (["--using", "data"], "--hindsight FILE"),
        (["--using", "journal"], "labels by hand"),
        (["--using", "classifier", "--classifier", "x", "--certainty", "0.2"], "between 0.5 and 1"),
    ],
)
def test_mistakes_in_labelling_are_one_line(dataset, tmp_path, capsys, options, part):
    if not (tmp_path / "store").exists():
        convert(dataset, tmp_path / "store")
    assert part in fails(capsys, "data", "label", tmp_path / "store", *options)


def test_what_a_cut_file_has_lost_is_told_once_with_its_number(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "cut")
    (file,) = (tmp_path / "cut/1.0.0").glob("*.tfrecord*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "left-out" not in _said(capsys, "data", "check", dataset)
    told = fails(capsys, "data", "convert", tmp_path / "cut", "--out", tmp_path / "store", "--language", "dataset")
    for part in (file.name, "is truncated", "of its 24 episodes", "--skip-bad"):
        assert part in told
    assert convert(tmp_path / "cut", tmp_path / "whole", "--skip-bad") == 0
    counts = Store.open(tmp_path / "whole").counts
    assert counts["episodes"] + counts["skipped"] == 24
    for command in ("inspect", "check"):
        said = _said(capsys, "data", command, tmp_path / "whole")
        assert f"left-out: {counts['skipped']} episodes of the source" in said
        assert f"#{counts['episodes']} to #23 of train: copy the file again" in said
    for options in (("convert", "--language", "dataset"), ("export", "--to", "robomimic")):
        out = str(tmp_path / ("store" if options[0] == "convert" else "moves.hdf5"))
        capsys.readouterr()
        assert main(["data", options[0], str(tmp_path / "cut"), "--out", out, "--skip-bad", *options[1:]]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("left out (") == 1
        assert "--skip-bad" not in said
        assert f"left out ({counts['skipped']} episodes): " in said


def test_places_that_cannot_be_written_are_told_before_any_work(dataset, tmp_path, capsys, monkeypatch):
    assert convert(dataset, tmp_path / "store", "--episodes", "4") == 0
    (tmp_path / "file").write_text("mine")
    inspect, check = ["data", "inspect", dataset], ["data", "check", dataset]
    label = ["data", "label", tmp_path / "store", "--using", "rule", "--rule", "True", "--replace"]
    convert_to, train = ["data", "convert", dataset, "--out"], ["train", "critic", "--data", tmp_path / "store", "--out"]
    clone = ["train", "policy", "--data", tmp_path / "store", "--out"]

    def nothing_is_read(*_: object, **__: object) -> None:
        raise AssertionError("read before the place was looked at")

    monkeypatch.setattr("data.source.DatasetSource.read", nothing_is_read)
    monkeypatch.setattr("data.language._load", nothing_is_read)
    monkeypatch.setattr("data.store.store.Store.read", nothing_is_read)
    for place in ("/proc/nowhere", tmp_path / "file" / "below"):  # nobody may write in /proc, the superuser neither
        for command in ([*inspect, "--html"], [*inspect, "--json"], [*inspect, "--draft"], [*check, "--json"], convert_to):
            assert f"{place}: " in fails(capsys, *command, place)
        for command in ([*label, "--out"], [*label, "--json"], train, clone):
            assert "no folder that can be written to" in fails(capsys, *command, place)
    for command in (convert_to, [*label, "--out"], train, clone):
        assert "is a file" in fails(capsys, *command, tmp_path / "file")
    for option in ("--json", "--html"):
        assert f"{option} .: is a folder; give a file in it" in fails(capsys, *inspect, option, "")
    assert (tmp_path / "file").read_text() == "mine"


EXPORTS = {"rlds": [], "lerobot": [], "lerobot png": ["--images", "png"], "robomimic": []}


@pytest.mark.parametrize("kind", EXPORTS)
def test_export_that_cannot_be_written_names_its_place(dataset, tmp_path, capsys, kind):
    to, name = kind.split()[0], "moves.hdf5" if kind == "robomimic" else "moves"
    export = ["data", "export", dataset, "--to", to, *EXPORTS[kind], "--out"]
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is no folder that can be written to" in fails(capsys, *export, tmp_path / "file" / name)
    assert f"/proc/{name}" in fails(capsys, *export, f"/proc/{name}")
    (tmp_path / "deep").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 3000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            told = fails(capsys, *export, tmp_path / "deep" / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert told.startswith(f"robot-rl: {tmp_path / 'deep' / name}: File too large")
        assert list((tmp_path / "deep").iterdir()) == []
    assert main([str(part) for part in [*export, tmp_path / "new" / "folders" / name]]) == 0


def test_convert_on_a_full_disk_names_the_store_and_resumes(dataset, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        told = fails(capsys, "data", "convert", dataset, "--out", tmp_path / "store", "--language", "dataset")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"what was done so far is in {tmp_path / '.store.partial'}; make room, and the same command goes on" in told
    assert convert(dataset, tmp_path / "store") == 0


def test_convert_says_what_became_of_an_earlier_run_and_what_comes_next(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "cut")
    shard = next((tmp_path / "cut").rglob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    store = tmp_path / "a store"
    assert "--skip-bad" in fails(capsys, "data", "convert", tmp_path / "cut", "--out", store, "--language", "dataset")
    assert convert(tmp_path / "cut", store, "--skip-bad", "--image-size", "8x8", "--success-steps", "9") == 0
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert re.search(r"an earlier run with other settings had stopped after \d+ episodes; they were discarded", said)
    assert f"robot-rl train critic --data '{store}' --out runs/critic" in said
    lengths, success = np.diff(Store.open(store).episode_ends, prepend=0) - 1, Store.open(store).success
    assert f"{((lengths <= 9) & (success == 1)).sum()} of {len(lengths)} episodes have no more than the 9 steps" in said


def test_a_store_that_is_being_written_is_looked_at_as_far_as_it_goes(tmp_path, capsys):
    path, language = tmp_path / "online", LanguageEncoder("dataset", {"go left": np.ones(4)})
    with ReplayWriter(path, ACTION, language=language) as writer:
        for episode in range(3):
            writer.begin({"proprio": np.zeros(2, np.float32)}, "go left")
            for step in range(5 if episode < 2 else 2):
                proprio = np.random.default_rng([episode, step]).normal(size=2).astype(np.float32)
                writer.step(np.full(3, 0.01 * step), {"proprio": proprio}, terminated=step == 4, success=episode == 1)
        for command in ("check", "inspect"):
            assert main(["data", command, str(path)]) in (0, 1)
            said = " ".join(capsys.readouterr().err.split())
            assert "not finished" in said
            assert "of the 3 episodes that it holds now, the last of which has not ended" in said
    assert main(["data", "inspect", str(path)]) == 0
    shown = capsys.readouterr()
    assert "not finished" not in shown.err
    assert "1 succeed, 2 fail" in shown.out
    assert "-1 in 75%, 0 in 25% of the steps" in shown.out
    assert main(["data", "check", str(path)]) in (0, 1)


def test_skipped_episodes_are_reported_and_no_fault(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "cut")
    shard = next((tmp_path / "cut").rglob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert main(["data", "check", str(tmp_path / "cut")]) == 1
    assert "error: unusable-episode: 1 of 24 episodes cannot be used" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "check", str(tmp_path / "cut"), "--skip-bad"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: unusable-episode" in said
    assert said.count("--skip-bad") == 1


def test_a_terminated_convert_lets_go_of_its_workers(dataset, tmp_path):
    command = [sys.executable, "-m", "robot_rl.cli", "data", "convert", str(dataset), "--out", str(tmp_path / "store")]
    command += ["--language", "dataset", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".store.partial").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    process.terminate()
    assert process.communicate(timeout=60)[1].splitlines() == ["stopped; the same command resumes"]
    assert process.returncode == 143
