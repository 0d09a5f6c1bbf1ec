"""RldsWriter: Episodes -> an RLDS dataset folder that TFDS opens (`tfds.builder_from_directory`), written without TensorFlow.

Standard RLDS: an episode of T transitions has T+1 steps; the last one is `is_last`, and `is_terminal` when the task ended there (after
a success, where the episode does not say); its action is zero and means nothing. Without rewards of its own an episode gets 1 after a
success and 0 otherwise. What RLDS has no place for, the action description first of all, goes to `robot_rl.json` beside it.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np

from data.atomic import replacing
from data.episode import Episode, check_action
from data.errors import InputError
from data.formats.base import DESCRIPTION_FILE
from data.formats.tfrecord import build_example, write_record

VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20
_JPEG_QUALITY = 95
_FEATURES = "tensorflow_datasets.core.features"


@dataclass
class _Split:
    shard_lengths: list[int] = field(default_factory=list)
    num_bytes: int = 0
    file: BinaryIO | None = None


class RldsWriter:
    """Writes `out/1.0.0/`; the dataset is called as the folder `out` is. The first episode fixes the features of all.

    Used as a context manager: the folder appears when the block ends well, and nothing is left of it when the block raises. One
    episode at a time is in memory.
    """

    def __init__(
        self, out: str | Path, action: dict[str, Any], image_format: Literal["png", "jpeg"] = "png", overwrite: bool = False
    ) -> None:
        """action: names, units, low, high, frame, control_hz. image_format: png is lossless, jpeg about ten times smaller."""
        self.out, self.action, self.image_format = Path(out), check_action(action, str(out)), image_format
        name = re.sub(r"\W+", "_", Path(out).resolve().name.lower())
        self.name = name if name[:1].isalpha() else f"dataset_{name}"
        self._overwrite = overwrite
        self._splits: dict[str, _Split] = {}
        self._steps: dict[str, tuple[Any, ...]] = {}
        self._metadata: list[str] = []
        self._said: dict[str, bool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> RldsWriter:
        with self._stack as stack:
            temporary = stack.enter_context(replacing(self.out, self._overwrite, _is_own, "RLDS dataset of robot-rl"))
            self._folder = temporary / VERSION
            self._folder.mkdir()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with suppress(OSError):
                self._close_files()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._close_files()
            self._finish()

    def _close_files(self) -> None:
        for split in self._splits.values():
            if split.file is not None:
                split.file.close()

    def add(self, episode: Episode, split: str = "train") -> None:
        """Append an episode. InputError when it is not valid or its keys, shapes or metadata differ from the first one's."""
        episode.validate()
        if episode.actions.shape[1] != len(self.action["names"]):
            raise InputError(
                f"{episode.source}: {episode.actions.shape[1]} action dimensions, described are {self.action['names']}"
            )
        steps = self._step_arrays(episode)
        metadata = {"source": episode.source, **episode.info}
        described = {key: _describe(value) for key, value in steps.items()}
        said = {"reward": episode.rewards is not None, "terminated": episode.terminated is not None}
        if not self._splits:
            self._steps, self._metadata, self._said = described, sorted(metadata), said
        elif (described, sorted(metadata), said) != (self._steps, self._metadata, self._said):
            changed = [key for key in {**described, **self._steps} if described.get(key) != self._steps.get(key)]
            changed += [f"whether it has {key}" for key in said if said[key] != self._said[key]]
            what = ", ".join(sorted(changed or set(metadata) ^ set(self._metadata)))
            raise InputError(f"{episode.source}: differs from the first episode in {what}; a dataset has one set of features")
        features = {f"steps/{key}": self._encode(key, value) for key, value in steps.items()}
        features |= {f"episode_metadata/{key}": [value.encode()] for key, value in metadata.items()}
        features["episode_metadata/success"] = np.array([bool(episode.success)])
        features["episode_metadata/has_success"] = np.array([episode.success is not None])
        self._write(build_example(features), self._splits.setdefault(split, _Split()), split)

    def _step_arrays(self, episode: Episode) -> dict[str, Any]:
        count = len(episode) + 1
        index = np.arange(count)
        last = index == len(episode)
        steps: dict[str, Any] = {f"observation/{key}": value for key, value in episode.observations.items()}
        steps["action"] = np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])]).astype(np.float32)
        ended = bool(episode.success if episode.terminated is None else episode.terminated)
        steps["reward"] = (last & bool(episode.success)).astype(np.float32)
        if episode.rewards is not None:
            # The last step is where the last reward led; nothing is earned after it.
            steps["reward"] = np.append(episode.rewards, 0).astype(np.float32)
        steps["is_first"], steps["is_last"], steps["is_terminal"] = index == 0, last, last & ended
        steps["discount"] = (~steps["is_terminal"]).astype(np.float32)
        steps["language_instruction"] = [episode.instruction] * count
        if episode.instruction_embedding is not None:
            steps["language_embedding"] = np.tile(np.float32(episode.instruction_embedding), (count, 1))
        return steps

    def _encode(self, key: str, value: Any) -> np.ndarray | list[bytes]:
        if isinstance(value, list):
            return [text.encode() for text in value]
        if not key.startswith("observation/image_"):
            return np.asarray(value)
        import cv2

        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if self.image_format == "jpeg" else []
        frames = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR) for frame in value)
        return [cv2.imencode(f".{self.image_format}", frame, options)[1].tobytes() for frame in frames]

    def _write(self, data: bytes, split: _Split, name: str) -> None:
        if split.file is None or split.file.tell() > SHARD_BYTES:
            if split.file is not None:
                split.file.close()
            split.file = (self._folder / f"{name}.{len(split.shard_lengths)}").open("wb")
            split.shard_lengths.append(0)
        write_record(split.file, data)
        split.shard_lengths[-1] += 1
        split.num_bytes += len(data)

    def _finish(self) -> None:
        if not self._splits:
            raise InputError(f"{self.out}: no episode was written; a dataset needs at least one")
        for name, split in self._splits.items():
            count = len(split.shard_lengths)
            for shard in range(count):
                # How many shards there are is part of their names, and known only now.
                (self._folder / f"{name}.{shard}").rename(
                    self._folder / f"{self.name}-{name}.tfrecord-{shard:05d}-of-{count:05d}"
                )
        texts = {key: _text() for key in self._metadata}
        flags = {key: _tensor("bool", ()) for key in ("success", "has_success")}
        steps = {
            "pythonClassName": f"{_FEATURES}.dataset_feature.Dataset",
            "sequence": {
                "feature": _nest({key: self._feature(key, what) for key, what in self._steps.items()}),
                "length": "-1",
            },
        }
        observations = {key.split("/", 1)[1]: key for key in self._steps if key.startswith("observation/")}
        files = {
            "features.json": _dict({"steps": steps, "episode_metadata": _dict({**texts, **flags})}),
            "dataset_info.json": self._info(),
            DESCRIPTION_FILE: {
                "action": self.action,
                "observations": observations,
                "reward": "reward" if self._said["reward"] else None,
                "terminated": "is_terminal" if self._said["terminated"] else None,
            },
        }
        for name, content in files.items():
            (self._folder / name).write_text(json.dumps(content, indent=1))

    def _feature(self, key: str, what: tuple[Any, ...]) -> dict[str, Any]:
        dtype, shape = what
        if dtype == "string":
            return _text()
        if key.startswith("observation/image_"):
            image = {"shape": _dimensions(shape), "dtype": "uint8", "encodingFormat": self.image_format}
            return {"pythonClassName": f"{_FEATURES}.image_feature.Image", "image": image}
        return _tensor(dtype, shape)

    def _info(self) -> dict[str, Any]:
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        return {
            "description": f"Robot episodes written by robot-rl; {DESCRIPTION_FILE} says what the actions mean.",
            "fileFormat": "tfrecord",
            "moduleName": "robot_rl",
            "name": self.name,
            "releaseNotes": {VERSION: "Initial release."},
            "splits": [
                {
                    "filepathTemplate": template,
                    "name": name,
                    "numBytes": str(split.num_bytes),
                    "shardLengths": [str(length) for length in split.shard_lengths],
                }
                for name, split in self._splits.items()
            ],
            "version": VERSION,
        }


def _is_own(path: Path) -> bool:
    return (path / VERSION / DESCRIPTION_FILE).exists()


def _describe(value: Any) -> tuple[Any, ...]:
    return ("string", ()) if isinstance(value, list) else (str(value.dtype), value.shape[1:])


def _dimensions(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dimensions": [str(size) for size in shape]} if shape else {}


def _tensor(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    return {
        "pythonClassName": f"{_FEATURES}.{kind}",
        "tensor": {"shape": _dimensions(shape), "dtype": dtype, "encoding": "none"},
    }


def _text() -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}


def _dict(features: dict[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def _nest(flat: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"observation/proprio": f} -> a FeaturesDict within a FeaturesDict."""
    inner = {key.split("/", 1)[1]: value for key, value in flat.items() if key.startswith("observation/")}
    outer = {key: value for key, value in flat.items() if not key.startswith("observation/")}
    return _dict({**outer, "observation": _dict(inner)})
