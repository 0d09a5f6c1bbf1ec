"""LanguageEncoder: tables first, models only when they are needed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import InputError, LanguageEncoder

ROOT = Path(__file__).parents[2]
TABLE = {"open": np.float32([3, 4]), "close": np.float32([0, 2]), "": np.float32([0, 0])}


def test_table_is_unit_norm_and_needs_no_model() -> None:
    encoder = LanguageEncoder("there is no such model", TABLE)
    assert encoder.dim == 2
    embeddings = encoder.encode(["close", "open", "close", ""])
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, [[0, 1], [0.6, 0.8], [0, 1], [0, 0]], atol=1e-6)
    assert encoder.encode([]).shape == (0, 2)


def test_embeddings_of_the_data_cannot_be_extended() -> None:
    encoder = LanguageEncoder("dataset", TABLE)
    with pytest.raises(InputError, match=r"unknown instruction 'jump'.*cover 3 instructions \('open', 'close', ''\)"):
        encoder.encode(["open", "jump"])
    with pytest.raises(InputError, match="has 3 dimensions, the others have 2"):
        encoder.remember("wide", np.zeros(3))
    with pytest.raises(InputError, match="no instruction embeddings came with the data"):
        _ = LanguageEncoder("dataset").dim


def test_built_in_model() -> None:
    encoder = LanguageEncoder()
    texts = ["put the carrot on the plate", "place a carrot onto a plate", "turn off the lamp"]
    embeddings = encoder.encode(texts)
    assert embeddings.shape == (3, encoder.dim) == (3, 384)
    similarity = embeddings @ embeddings.T
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    assert similarity[0, 1] > 0.8 > 0.4 > similarity[0, 2]
    assert not encoder.table
    encoder._loaded = None
    # From the cache: the same bits, without a model.
    np.testing.assert_array_equal(encoder.encode(texts[::-1]), embeddings[::-1])
    assert encoder._loaded is None


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.language._CACHE_SIZE", 3)
    encoder = LanguageEncoder("stub", {"known": np.float32([1, 0])})
    monkeypatch.setattr(encoder, "_embed", lambda texts: np.float32([[len(text), 0] for text in texts]))
    encoder.encode(["a", "bb"])
    np.testing.assert_array_equal(encoder.encode(["bb", "ccc", "known", "dddd"])[:, 0], [2, 3, 1, 4])
    assert len(encoder._cache) == 3


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("/no/such/folder", "is not there"),
        ("~/no/such", "is not there"),
        ("", "is not there"),
        ("no-such-owner/no-such-model", "is no folder, not in the Hugging Face cache, and the Hub cannot be reached"),
    ],
)
def test_model_that_is_nowhere_is_told_at_once(model: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(InputError, match=f"language model '{model}' {part}; give a sentence-transformers name") as caught:
        LanguageEncoder(model).encode(["x"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 5


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        LanguageEncoder(str(tmp_path)).encode(["x"])


def test_importing_data_is_cheap() -> None:
    code = "import sys, data; print(sorted({m.split('.')[0] for m in sys.modules} & set('%s'.split())))"
    heavy = "numpy zarr cv2 torch google sentence_transformers transformers rich"
    result = subprocess.run([sys.executable, "-c", code % heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
