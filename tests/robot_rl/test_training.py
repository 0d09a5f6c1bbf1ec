"""Training is deterministic, survives kill -9, resumes to the identical bits, and refuses what it cannot resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InputError
from policies.checkpoint import latest_checkpoint, read_tensors
from policies.config import DiffusionConfig, EncoderConfig
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import CriticConfig, make_learner
from robot_rl.recipes import train_critic, train_policy

VECTORS = EncoderConfig(inputs=("state", "proprio"), vector_features=16)
CRITICS = {
    "iql": CriticConfig(encoder=VECTORS, hidden=16, members=2),
    "calql": CriticConfig(algorithm="calql", encoder=VECTORS, hidden=16, members=2),
    "cql": CriticConfig(algorithm="cql", encoder=VECTORS, hidden=16, members=2, importance_sampling=False),
    "hl_gauss": CriticConfig(encoder=VECTORS, hidden=16, members=2, head="hl_gauss", bins=31),
    "image": CriticConfig(encoder=EncoderConfig(inputs=("image_primary",)), hidden=16, members=2),
}
SMALL = TrainingConfig(steps=12, batch_size=8, log_every=4, checkpoint_every=4)


def weights(run: Path) -> bytes:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_that_stopped_resumes_to_the_same_bits(store, tmp_path, name):
    whole = train_critic(store.path, tmp_path / "whole", CRITICS[name], SMALL)

    class StoppedError(Exception):
        pass

    def stop(step: int, steps: int, row: object) -> None:
        if step == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_critic(store.path, tmp_path / "parts", CRITICS[name], SMALL, stop)
    resumed = train_critic(store.path, tmp_path / "parts", CRITICS[name], SMALL)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert [row["step"] for row in resumed] == [row["step"] for row in whole] == [4, 8, 12]


def test_a_policy_killed_by_the_system_resumes_to_the_same_bits(store, tmp_path):
    command = [sys.executable, "-m", "robot_rl.cli", "train", "policy", "--data", str(store.path), "--hidden", "16"]
    command += ["--steps", "400", "--batch-size", "8", "--log-every", "10", "--checkpoint-every", "10"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while latest_checkpoint(tmp_path / "killed") is None:
        time.sleep(0.005)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert latest_checkpoint(tmp_path / "killed").name != "step_00000400", "it was killed too late to prove anything"
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_other_settings_are_refused_and_nothing_is_lost(store, tmp_path):
    run = tmp_path / "run"
    train_critic(store.path, run, CRITICS["iql"], SMALL)
    before = weights(run)
    with pytest.raises(InputError, match=r"hidden was 16, is 32.*--out"):
        train_critic(store.path, run, CriticConfig(encoder=VECTORS, hidden=32, members=2), SMALL)
    assert weights(run) == before


def test_weights_that_are_not_finite_are_never_kept(store, tmp_path, monkeypatch):
    def hopeless(*arguments):
        learner = make_learner(*arguments)
        for group in learner.optimizers["critic"].param_groups:
            group["lr"] = 1e6  # more than may be asked for
        return learner

    monkeypatch.setattr("robot_rl.recipes.make_learner", hopeless)
    settings = TrainingConfig(steps=40, batch_size=8, log_every=1000, checkpoint_every=1)
    with pytest.raises(InputError, match="diverged"):
        train_critic(store.path, tmp_path / "run", CRITICS["iql"], settings)
    checkpoint = latest_checkpoint(tmp_path / "run")
    if checkpoint is not None:
        assert all(bool(value.isfinite().all()) for value in read_tensors(checkpoint, "model").values())


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-5] + b"\xff")]
)
def test_damaged_metrics_do_not_hinder_training(store, tmp_path, damage):
    train_critic(store.path, tmp_path / "run", CRITICS["iql"], SMALL)
    damage(tmp_path / "run" / "metrics.jsonl")
    assert len(train_critic(store.path, tmp_path / "run", CRITICS["iql"], SMALL)) < 3


def test_two_processes_do_not_train_in_one_folder(store, tmp_path):
    refused = []

    def again(step: int, steps: int, row: object) -> None:
        with pytest.raises(InputError, match="another process is training") as caught:
            train_critic(store.path, tmp_path / "run", CRITICS["iql"], SMALL)
        refused.append(caught)

    train_critic(store.path, tmp_path / "run", CRITICS["iql"], SMALL, again)
    assert refused


def test_progress_begins_with_the_first_step_and_metrics_keep_their_own_pace(store, tmp_path):
    shown = []
    metrics = train_critic(store.path, tmp_path / "run", CRITICS["iql"], SMALL, lambda step, steps, row: shown.append(step))
    assert shown[0] == 1
    assert set(shown) >= {4, 8, 12}
    assert [row["step"] for row in metrics] == [4, 8, 12]


def test_a_folder_that_holds_something_else_is_refused(store, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match="no training run"):
        train_policy(store.path, tmp_path, DiffusionConfig(encoder=VECTORS), CloningConfig(), SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_inputs_that_the_data_lack_are_named(store, tmp_path):
    with pytest.raises(InputError, match=r"image_wrist.*--inputs can be"):
        train_critic(store.path, tmp_path / "run", CriticConfig(encoder=EncoderConfig(inputs=("image_wrist",))), SMALL)


def test_critics_learn_what_succeeds(store, tmp_path):
    """After a little training the right direction is worth more than the wrong one, for either instruction."""
    import numpy as np
    import torch

    from robot_rl.critic import load_critic

    config = replace(CRITICS["iql"], tau=0.05, learning_rate=3e-3)
    train_critic(store.path, tmp_path / "run", config, TrainingConfig(steps=800, batch_size=64))
    critic = load_critic(tmp_path / "run")
    observations = {
        "state": np.zeros((2, 4), np.float32),
        "proprio": np.zeros((2, 2), np.float32),
        "instruction": ["go left", "go right"],
    }
    chunks = torch.zeros(2, 2, 4, 3)
    chunks[:, 0, :, 0], chunks[:, 1, :, 0] = -0.03, 0.03
    values = critic.values(critic.encode(observations), chunks).min(dim=0).values
    # Whichever way success lies for the first instruction, it lies the other way for the second.
    assert torch.equal(values.argmax(dim=-1).sort().values, torch.tensor([0, 1]))
