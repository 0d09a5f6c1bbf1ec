"""Step features that only TFDS itself can read (ragged, video, depth images, ...), through tensorflow-datasets where it is installed.

Slow: it decodes whole records with TensorFlow, and is asked only for features that data.formats.features does not support.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Feature


def decode_by_tfds(folder: Path, record: bytes, leaf: Feature, source: str) -> Any:
    """A step feature of a record: [N, ...] as TFDS decodes it, or a list of N strings. InputError when that is no array."""
    try:
        connector = _connector(folder)
    except ImportError:
        raise InputError(
            f"{source}: {leaf.name} is {leaf.unsupported}, which is read by tensorflow-datasets: pip install 'robot-rl[rlds]'"
        ) from None
    path = leaf.name.split("/")[1:]
    try:
        steps = [_leaf(step, path) for step in connector.deserialize_example(record)["steps"]]
    except Exception as error:  # TensorFlow raises whatever its operations raise
        raise InputError(f"{source}: {leaf.name} cannot be decoded ({' '.join(str(error).split())[:200]})") from None
    values = [step.numpy() if hasattr(step, "numpy") else step for step in steps]
    if all(isinstance(value, bytes) for value in values):
        return [value.decode("utf-8", errors="replace") for value in values]
    if len({np.shape(value) for value in values}) > 1 or any(np.asarray(value).dtype == object for value in values):
        raise InputError(f"{source}: {leaf.name} has another shape in each step, so it makes no array over time")
    return np.stack(values)


@cache
def _connector(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeatureConnector.from_config(str(folder))


def _leaf(step: Any, path: list[str]) -> Any:
    """The value under a flattened name; a feature's own name may hold slashes."""
    if not path:
        return step
    for length in range(len(path), 0, -1):
        key = "/".join(path[:length])
        if isinstance(step, dict) and key in step:
            return _leaf(step[key], path[length:])
    raise KeyError("/".join(path))
