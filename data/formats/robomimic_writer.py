"""RobomimicWriter: Episodes -> one HDF5 file that robomimic's SequenceDataset opens.

An episode of T transitions is T rows of `obs`, `next_obs`, `actions`, `rewards` and `dones`; its split is a mask (filter key).
Actions stay in physical units, for they must read back as they were: to train robomimic on ranges beyond [-1, 1], normalise them
there. What the format has no place for is in attributes, which robomimic ignores.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data.atomic import replacing_file
from data.episode import Episode, check_action
from data.errors import InputError
from data.formats.robomimic import OWN
from data.formats.sink import Sink

_GYM = 2
"""robomimic's number for an environment that is no robosuite; it makes none unless it is told to roll out."""


class RobomimicWriter:
    """Writes the file `out`. The first episode fixes the keys and shapes of all.

    Used as a context manager: the file appears when the block ends well, and nothing is left of it when the block raises. One
    episode at a time is in memory. Rewards and ends that not every episode has are not described, and read back as unknown.
    """

    def __init__(self, out: str | Path, action: dict[str, Any], overwrite: bool = False) -> None:
        """action: names, units, low, high, frame, control_hz."""
        self.out, self.action = Path(out), check_action(action, str(out))
        if self.out.suffix not in (".hdf5", ".h5"):
            raise InputError(f"{out}: robomimic's files end in .hdf5, such as {self.out.with_suffix('.hdf5')}")
        self._overwrite = overwrite
        self._shapes: dict[str, tuple[Any, ...]] = {}
        self._splits: dict[str, list[str]] = {}
        self._steps = 0
        self._has_rewards = self._has_ends = True
        self._stack = ExitStack()

    def __enter__(self) -> RobomimicWriter:
        import h5py

        with self._stack as stack:
            temporary = stack.enter_context(replacing_file(self.out, self._overwrite, _is_own, "file of robot-rl"))
            self._sink = stack.enter_context(Sink(temporary, "w+"))
            self._file = stack.enter_context(h5py.File(self._sink, "w"))
            self._data = self._file.create_group("data")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()
            self._file.close()
            self._sink.check()

    def add(self, episode: Episode, split: str = "train") -> None:
        """Append an episode. InputError when it is not valid, its keys or shapes differ from the first one's."""
        episode.validate()
        if episode.actions.shape[1] != len(self.action["names"]):
            raise InputError(
                f"{episode.source}: {episode.actions.shape[1]} action dimensions, described are {self.action['names']}"
            )
        shapes = {key: (str(value.dtype), value.shape[1:]) for key, value in episode.observations.items()}
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            changed = [key for key in {**shapes, **self._shapes} if shapes.get(key) != self._shapes.get(key)]
            raise InputError(
                f"{episode.source}: differs from the first episode in {', '.join(sorted(changed))}; a file has one set of them"
            )
        name = f"demo_{sum(map(len, self._splits.values()))}"
        self._write(self._data.create_group(name), episode)
        self._sink.check()
        self._splits.setdefault(split, []).append(name)
        self._steps += len(episode)
        self._has_rewards &= episode.rewards is not None
        self._has_ends &= episode.terminated is not None

    def _write(self, group: Any, episode: Episode) -> None:
        last = np.arange(len(episode)) == len(episode) - 1
        for key, value in episode.observations.items():
            group[f"obs/{key}"], group[f"next_obs/{key}"] = value[:-1], value[1:]
        if "state" in episode.observations:
            group["states"] = episode.observations["state"][:-1]
        group["actions"] = episode.actions.astype(np.float32)
        rewards = last & bool(episode.success) if episode.rewards is None else episode.rewards
        group["rewards"] = rewards.astype(np.float32)
        ended = bool(episode.success) if episode.terminated is None else episode.terminated
        group["dones"] = (last & ended).astype(np.int64)
        attributes = {"num_samples": len(episode), "language_instruction": episode.instruction}
        attributes |= {f"info/{key}": value for key, value in {"source": episode.source, **episode.info}.items()}
        if episode.success is not None:
            attributes["success"] = episode.success
        group.attrs.update(attributes)
        if episode.instruction_embedding is not None:
            group.attrs["language_embedding"] = episode.instruction_embedding.astype(np.float32)

    def _finish(self) -> None:
        if not self._splits:
            raise InputError(f"{self.out}: no episode was written")
        description: dict[str, Any] = {
            "action": self.action,
            "actions": "actions",
            "observations": {key: f"obs/{key}" for key in self._shapes},
            **({"reward": "rewards"} if self._has_rewards else {}),
            **({"terminated": "dones"} if self._has_ends else {}),
        }
        environment = {
            "env_name": self.out.stem,
            "type": _GYM,
            "env_kwargs": {"control_freq": self.action["control_hz"]},
        }
        self._data.attrs.update({"total": self._steps, "env_args": json.dumps(environment), OWN: json.dumps(description)})
        for split, names in self._splits.items():
            self._file[f"mask/{split}"] = np.array(names, dtype=np.bytes_)


def _is_own(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return OWN in file["data"].attrs
    except (OSError, KeyError):
        return False
