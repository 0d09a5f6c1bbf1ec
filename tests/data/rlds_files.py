"""RLDS folders of any features, laid out as TFDS lays them out: what tests of foreign datasets read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.formats.tfrecord import build_example, write_record

_PACKAGE = "tensorflow_datasets.core.features"


class Zlib(np.ndarray):
    """Marks a step feature that is kept compressed, as Kuka's poses are."""


def write_rlds(folder: Path, name: str, episodes: list[dict[str, Any]], metadata: list[dict[str, str]] | None = None) -> Path:
    """Write `folder/name/1.0.0`. An episode maps step keys to [N, ...]: images uint8 [N,H,W,3], lists of texts, or numbers."""
    out = folder / name / "1.0.0"
    out.mkdir(parents=True)
    metadata = metadata or [{} for _ in episodes]
    steps = _tree({key: _feature(value) for key, value in episodes[0].items()})
    tree = {
        "steps": {"pythonClassName": f"{_PACKAGE}.dataset_feature.Dataset", "sequence": {"feature": steps, "length": "-1"}},
        "episode_metadata": _tree({key: {"text": {}} for key in metadata[0]}),
    }
    (out / "features.json").write_text(json.dumps({"featuresDict": {"features": tree}}))
    split = {"name": "train", "shardLengths": [str(len(episodes))], "numBytes": "0"}
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (out / "dataset_info.json").write_text(json.dumps(info))
    with (out / f"{name}-train.tfrecord-00000-of-00001").open("wb") as file:
        for episode, texts in zip(episodes, metadata, strict=True):
            values = {f"steps/{key}": _encode(value) for key, value in episode.items()}
            values |= {f"episode_metadata/{key}": [text.encode()] for key, text in texts.items()}
            write_record(file, build_example(values))
    return folder / name


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 4


def _feature(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"pythonClassName": f"{_PACKAGE}.text_feature.Text", "text": {}}
    shape = {"dimensions": [str(size) for size in value.shape[1:]]}
    if _is_image(value):
        return {"pythonClassName": f"{_PACKAGE}.image_feature.Image", "image": {"shape": shape, "dtype": "uint8"}}
    encoding = "zlib" if isinstance(value, Zlib) else "none"
    tensor = {"shape": shape, "dtype": str(value.dtype), "encoding": encoding}
    return {"pythonClassName": f"{_PACKAGE}.tensor_feature.Tensor", "tensor": tensor}


def _encode(value: Any) -> Any:
    if isinstance(value, list):
        return [text.encode() for text in value]
    if _is_image(value):
        return [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in value]
    return [zlib.compress(np.asarray(row).tobytes()) for row in value] if isinstance(value, Zlib) else np.asarray(value)


def _tree(flat: dict[str, dict[str, Any]]) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for key, feature in flat.items():
        head, _, rest = key.partition("/")
        inner.setdefault(head, {})[rest] = feature
    features = {head: parts[""] if "" in parts else _tree(parts) for head, parts in inner.items()}
    return {"pythonClassName": f"{_PACKAGE}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
