"""The command line: it starts at once, shows its defaults, and answers a mistake with one line and exit code 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import RldsWriter, Store
from policies import FAMILIES, checkpoint, load_policy
from policies.config import DiffusionConfig, EncoderConfig
from policies.loading import family_class
from robot_rl.cli import main
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import CriticConfig
from robot_rl.recipes import train_critic, train_policy
from tests.conftest import ACTION, make_episodes, make_store

BRIDGE = Path(__file__).parents[3] / "shared" / "data" / "bridge_dataset" / "1.0.0"
TINY = TrainingConfig(steps=2, batch_size=4, checkpoint_every=1)
VECTORS = EncoderConfig(inputs=("state", "proprio"), vector_features=8)


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run the command; it must exit with 2 and one line on stderr, which is returned."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    *progress, line = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("robot-rl: ")
    assert all(said.startswith("training the ") for said in progress)
    return line


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["data"],
        ["data", "inspect"],
        ["data", "convert"],
        ["train", "critic"],
        ["train", "policy"],
        ["train", "vision"],
        ["evaluate"],
        ["bench", "sim"],
        ["bench", "steering"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom robot_rl.cli import main\n"
        f"try:\n    main({[*command, '--help']!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'pybullet', 'zarr', 'cv2', 'diffusers', 'gymnasium', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"usage: robot-rl {' '.join(command)}".strip() in shown.stdout
    if command in (["evaluate"], ["train", "critic"], ["demo"]):
        assert "(default: " in shown.stdout


def test_help_answers_at_once():
    """Nothing is imported for it that takes a tenth of a second."""
    code = (
        "import sys\nfrom robot_rl.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print(sorted({'numpy', 'rich', 'scipy', 'PIL', 'huggingface_hub', 'jinja2'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A policy and a critic for tabletop actions, trained for two steps on synthetic data with the tabletop's shapes."""
    import gymnasium

    from robot_rl.collect import Demonstration, action_description, record
    from sim import SUITES

    folder = tmp_path_factory.mktemp("trained")
    env_id = SUITES["tabletop"].tasks["reach"]
    assert gymnasium.spec(env_id)
    with RldsWriter(folder / "reach", action_description(env_id)) as writer:
        for seed in range(3):
            writer.add(record(Demonstration(env_id, 1.0, seed)))
    assert main(["data", "convert", str(folder / "reach"), "--out", str(folder / "store")]) == 0
    train_policy(folder / "store", folder / "policy", DiffusionConfig(encoder=VECTORS, hidden=8), CloningConfig(), TINY)
    train_critic(folder / "store", folder / "critic", CriticConfig(encoder=VECTORS, hidden=8, members=2), TINY)
    return folder


def test_record_convert_train_evaluate(trained, tmp_path, capsys):
    """The whole chain on real simulator data; what is written is what the JSON promises."""
    found = tmp_path / "found.json"
    arguments = ["--policy", trained / "policy", "--critic", trained / "critic", "--env", "Tabletop-Reach-v0", "--episodes", 3]
    arguments += ["--seed", 5, "--num-samples", 2, "--workers", 1, "--json", found]
    assert main(["evaluate", *map(str, arguments)]) == 0
    values = json.loads(found.read_text())
    for arm in ("base", "steered", "random"):
        assert [outcome["seed"] for outcome in values["arms"][arm]["outcomes"]] == [5, 6, 7]
        assert (
            0 <= values["arms"][arm]["interval"][0] <= values["arms"][arm]["success_rate"] <= values["arms"][arm]["interval"][1]
        )
    assert {"difference", "difference_interval", "mcnemar_p"} <= values["steered_vs_base"].keys()
    assert list(tmp_path.iterdir()) == [found]


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if hasattr(family_class(name), "config_type") and name != "openvla"]
)
def test_every_family_is_trained_by_its_name(trained, tmp_path, family):
    """OpenVLA needs a pretrained model: its own tests train it."""
    arguments = [
        "--data",
        trained / "store",
        "--out",
        tmp_path / "run",
        "--policy",
        family,
        "--steps",
        "2",
        "--batch-size",
        "4",
    ]
    assert main(["train", "policy", *map(str, arguments)]) == 0
    assert load_policy(tmp_path / "run").family == family
    assert main(["train", "policy", *map(str, arguments)]) == 0


def test_the_families_are_listed(tmp_path, capsys):
    assert main(["policies", "--json", str(tmp_path / "families.json")]) == 0
    families = {row["family"]: row for row in json.loads((tmp_path / "families.json").read_text())["families"]}
    assert families.keys() == FAMILIES.keys()
    assert all("sample" in row["abilities"] and row["what"] for row in families.values())
    assert families["gaussian"]["abilities"] == ["sample", "encode once", "loss", "log-prob"]


def test_a_family_that_cannot_be_trained_is_named(capsys, tmp_path):
    said = fails(capsys, "train", "policy", "--data", "d", "--out", tmp_path / "o", "--policy", "juggler")
    assert "juggler" in said
    assert "flow" in said


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the BridgeData slice is not here (../shared/data)")
def test_real_open_x_data_from_inspection_to_a_policy(tmp_path):
    found, store = tmp_path / "inspected.json", tmp_path / "store"
    assert main(["data", "inspect", str(BRIDGE), "--json", str(found)]) == 0
    values = json.loads(found.read_text())
    assert (values["episodes"], values["steps"], values["transitions"]) == (25, 250, 225)
    assert sum(values["instructions"].values()) == 25
    assert set(values["statistics"]) == {"mean", "std", "min", "max", "q01", "q99"}
    assert main(["data", "convert", str(BRIDGE), "--out", str(store)]) == 0
    for name, expected in values["statistics"].items():
        assert Store.open(store).statistics["action"][name] == pytest.approx(expected, abs=1e-9)
    common = ["--data", str(store), "--steps", "2", "--batch-size", "4"]
    assert main(["train", "critic", *common, "--out", str(tmp_path / "critic"), "--algorithm", "calql"]) == 0
    assert main(["train", "policy", *common, "--out", str(tmp_path / "policy")]) == 0
    assert json.loads((tmp_path / "critic" / "step_00000002" / "config.json").read_text())["contract"]["datasets"] == [
        "bridge_dataset"
    ]


def test_benchmarks_measure(tmp_path, trained):
    """What they measure depends on the machine; that they do, and with respect to what, does not."""
    assert main(["bench", "sim", "--seconds", "0.6", "--json", str(tmp_path / "sim.json")]) == 0
    rates = json.loads((tmp_path / "sim.json").read_text())
    assert rates.keys() == {"tabletop/stack", "robosuite/stack"}
    assert all(rate > 0 for task in rates.values() for rate in task.values())
    pair = ["--policy", str(trained / "policy"), "--critic", str(trained / "critic")]
    command = ["bench", "steering", *pair, "--repeats", "2", "--json", str(tmp_path / "steering.json")]
    assert main([*command, "--env", "tabletop/reach", "--episodes", "2", "--workers", "1"]) == 0
    rows = json.loads((tmp_path / "steering.json").read_text())["rows"]
    assert rows[0]["what"] == "policy alone"
    assert rows[0]["ratio"] == 1
    decisions = [row for row in rows if "ratio" in row]
    assert len(decisions) < len(rows)
    assert all(0 <= row["interval"][0] <= row["success"] <= row["interval"][1] <= 1 for row in decisions)


@pytest.mark.parametrize(
    ("command", "wrong", "says"),
    [
        (["train", "critic", "--data", "d", "--out", "o"], ["--chunk", "0"], "--chunk is 0; it must be 1 or more"),
        (["train", "critic", "--data", "d", "--out", "o"], ["--expectile", "5"], "between 0.01 and 0.99"),
        (["train", "critic", "--data", "d", "--out", "o"], ["--steps", "0"], "--steps"),
        (["train", "critic", "--data", "d", "--out", "o"], ["--batch-size", "999999999"], "between 1 and 65536"),
        (["train", "critic", "--data", "d", "--out", "o"], ["--learning-rate", "2"], "between 1e-12 and 1"),
        (["train", "policy", "--data", "d", "--out", "o"], ["--inference-steps", "1000"], "between 1 and 100"),
        (["evaluate", "--policy", "p", "--critic", "c"], ["--num-samples", "0"], "--num-samples"),
        (["evaluate", "--policy", "p", "--critic", "c"], ["--temperature", "-1"], "--temperature"),
        (["evaluate", "--policy", "p", "--critic", "c"], ["--workers", "0"], "--workers"),
        (["data", "convert", "d", "--out", "o"], ["--gamma", "2"], "--gamma"),
        (["demo"], ["--episodes", "0"], "--episodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_setting_out_of_range_is_named(capsys, command, wrong, says):
    assert says in fails(capsys, *command, *wrong)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "robot-rl needs one of demo, collect, "),
        ("train", "robot-rl train needs one of critic, policy, vision; see `robot-rl train --help`"),
        ("evaluat", "robot-rl does not know 'evaluat'; see `robot-rl --help`"),
        ("collect --out o --episodes 5", "robot-rl collect does not know '--episodes'; see `robot-rl collect --help`"),
        ("evaluate --policy p", "robot-rl evaluate needs --critic; see `robot-rl evaluate --help`"),
        ("data inspect", "robot-rl data inspect needs PATH"),
        ("demo --episodes 1e3", "--episodes: '1e3' is not a whole number; see `robot-rl demo --help`"),
        ("train critic --data d --out o --max-episodes 1e3", "--max-episodes: '1e3' is not a whole number"),
        ("train critic --data d --out o --learning-rate x", "--learning-rate: 'x' is not a number"),
        ("train critic --data d --out o --learning-rate", "--learning-rate needs a value"),
        ("train critic --data d --out o --head x", "--head: 'x' is none of scalar, hl_gauss"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(capsys, command, says):
    assert says in fails(capsys, *command.split())


def test_missing_things_are_named(tmp_path, capsys, trained):
    assert "nothing" in fails(capsys, "data", "inspect", tmp_path / "nothing")
    assert "nothing" in fails(capsys, "data", "convert", tmp_path / "nothing", "--out", tmp_path / "store")
    assert "convert" in fails(capsys, "train", "critic", "--data", tmp_path / "nothing", "--out", tmp_path / "run")
    pair = ("--policy", trained / "policy", "--critic", trained / "critic")
    assert "Tabletop-Lift-v0" in fails(capsys, "evaluate", *pair, "--env", "Tabletop-Juggle-v0")
    assert "no checkpoint" in fails(capsys, "evaluate", "--policy", tmp_path, "--critic", trained / "critic")
    assert "not a policy" in fails(capsys, "evaluate", "--policy", trained / "critic", "--critic", trained / "critic")
    assert "not a critic" in fails(capsys, "evaluate", "--policy", trained / "policy", "--critic", trained / "policy")
    assert not (tmp_path / "store").exists()


def test_a_critic_for_other_actions_is_refused(tmp_path, capsys, trained, store):
    train_critic(store.path, tmp_path / "critic", CriticConfig(encoder=VECTORS, hidden=8, members=2), TINY)
    assert "names" in fails(capsys, "evaluate", "--policy", trained / "policy", "--critic", tmp_path / "critic")
    other = make_store(tmp_path / "other", {**ACTION, "control_hz": 10.0})
    train_critic(other.path, tmp_path / "fast", CriticConfig(encoder=VECTORS, hidden=8, members=2), TINY)
    train_policy(store.path, tmp_path / "policy", DiffusionConfig(encoder=VECTORS, hidden=8), CloningConfig(), TINY)
    assert "control_hz" in fails(capsys, "evaluate", "--policy", tmp_path / "policy", "--critic", tmp_path / "fast")


def test_damaged_data_are_named(tmp_path, capsys):
    with RldsWriter(tmp_path / "moves", ACTION) as writer:
        for episode in make_episodes(4):
            writer.add(episode)
    (record,) = (tmp_path / "moves").rglob("*.tfrecord*")
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    assert record.name in fails(capsys, "data", "convert", tmp_path / "moves", "--out", tmp_path / "store")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    record.write_bytes(bytes(flipped))
    assert record.name in fails(capsys, "data", "inspect", tmp_path / "moves")
    (features,) = (tmp_path / "moves").rglob("features.json")
    record.write_bytes(whole)
    features.write_text(features.read_text().replace('"action"', '"acted"'))
    assert "action" in fails(capsys, "data", "convert", tmp_path / "moves", "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_nan_in_actions_is_named(tmp_path, capsys):
    import data.episode

    bad = make_episodes(2)[1]
    bad.actions[3, 1] = np.nan
    validate = data.episode.Episode.validate
    data.episode.Episode.validate = lambda episode: episode  # our own writer refuses NaN, others' do not
    try:
        with RldsWriter(tmp_path / "moves", ACTION) as writer:
            writer.add(make_episodes(1)[0])
            writer.add(bad)
    finally:
        data.episode.Episode.validate = validate
    assert "step 3" in fails(capsys, "data", "convert", tmp_path / "moves", "--out", tmp_path / "store")
    assert (
        main(
            [
                "data",
                "convert",
                str(tmp_path / "moves"),
                "--out",
                str(tmp_path / "store"),
                "--skip-bad",
                "--language",
                "dataset",
            ]
        )
        == 0
    )
    assert Store.open(tmp_path / "store").counts["episodes"] == 1


def test_a_full_disk_loses_nothing(tmp_path, capsys, store, monkeypatch):
    run = tmp_path / "run"
    arguments = [
        "train",
        "policy",
        "--data",
        store.path,
        "--out",
        run,
        "--steps",
        4,
        "--checkpoint-every",
        2,
        "--batch-size",
        4,
    ]
    write = Path.write_bytes
    written = []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in fails(capsys, *arguments)
    monkeypatch.undo()
    assert checkpoint.latest_checkpoint(run).name == "step_00000002"
    assert not list(run.glob(".*.partial"))
    assert main([str(argument) for argument in arguments]) == 0
    assert checkpoint.latest_checkpoint(run).name == "step_00000004"


def test_json_goes_to_files_only(tmp_path, capsys, trained):
    os.mkfifo(tmp_path / "pipe")
    assert "device or pipe" in fails(capsys, "data", "inspect", trained / "store", "--json", tmp_path / "pipe")
    assert "is a folder" in fails(capsys, "data", "inspect", trained / "store", "--json", tmp_path)
    (tmp_path / "file").write_text("")
    assert "no folder" in fails(capsys, "data", "inspect", trained / "store", "--json", tmp_path / "file" / "x.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    assert main(["data", "inspect", str(trained / "store"), "--json", str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "target.json").read_text())["episodes"] == 3


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe\x00", b""])
def test_a_config_that_is_none_is_named(tmp_path, capsys, trained, content):
    shutil.copytree(trained / "critic", tmp_path / "critic")
    (tmp_path / "critic" / "step_00000002" / "config.json").write_bytes(content)
    assert "damaged" in fails(capsys, "evaluate", "--policy", trained / "policy", "--critic", tmp_path / "critic")


def test_a_truncated_checkpoint_is_named(tmp_path, capsys, trained):
    shutil.copytree(trained / "critic", tmp_path / "critic")
    weights = tmp_path / "critic" / "step_00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    assert "damaged" in fails(capsys, "evaluate", "--policy", trained / "policy", "--critic", tmp_path / "critic")
