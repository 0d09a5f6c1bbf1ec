"""relabel: new success labels for a store, and the rewards, masks and returns that follow from them. The frames are not touched.

The store is made anew beside itself with its frames linked, and takes its own place in one step: one that is killed leaves the old one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from data.atomic import replacing
from data.errors import InputError
from data.labels.rewards import RewardConfig
from data.store.array import write_array, write_group
from data.store.commit import COMMIT, CommitFile, Committed
from data.store.store import Store, is_store
from data.store.writer import LOCK, lock

_REWRITTEN = ("data/reward", "data/mask", "data/mc_return", "meta/success", "meta/achieved")


def relabel(
    path: str | Path,
    success: np.ndarray,
    reward: RewardConfig | None = None,
    achieved: np.ndarray | None = None,
    out: str | Path | None = None,
    note: str = "success was labelled again",
) -> Store:
    """Write success int8 [E] (1, 0, -1 unlabelled) into a store and label its rewards by it; returns it, opened.

    reward: the convention, by default the store's own success_steps and discount. achieved: int32 [E], the instruction that each
    episode achieved or -1; None keeps what is there. out: leave the store alone and write a labelled copy, which shares the frames on
    the disk. note: what is added to the store's list of changes. InputError when the arrays do not fit, the store still runs, or it
    is being written to.
    """
    path = Path(path)
    handle = lock(path) if is_store(path) else -1
    try:
        return _relabel(Store.open(path), path, success, reward, achieved, out, note)
    finally:
        if handle >= 0:
            os.close(handle)


def _relabel(
    store: Store,
    path: Path,
    success: np.ndarray,
    reward: RewardConfig | None,
    achieved: np.ndarray | None,
    out: str | Path | None,
    note: str,
) -> Store:
    if store.reward["kind"] == "given" and reward is None:
        raise InputError(
            f"{path}: keeps given rewards, which labels of success would replace; convert it with --reward success first"
        )
    if store.running:
        raise InputError(f"{path}: its last episode has not ended; close its writer first")
    for what, values in (("success", success), ("achieved", store.achieved if achieved is None else achieved)):
        highest = 1 if what == "success" else len(store.instructions) - 1
        if values.shape != (store.length,) or values.min() < -1 or values.max() > highest:
            raise InputError(f"{path}: {what} must be {store.length} numbers from -1 to {highest}, an episode each")
    reward = reward or RewardConfig(**{key: store.reward[key] for key in ("success_steps", "discount") if key in store.reward})
    with replacing(Path(out or path), out is None, is_store, "training store") as folder:
        _link(path, folder)
        labels = _label(store, success, reward)
        for key, values in labels.items():
            write_array(folder / "data" / key, values)
        write_array(folder / "meta" / "success", success.astype(np.int8))
        write_array(folder / "meta" / "achieved", (store.achieved if achieved is None else achieved).astype(np.int32))
        lengths = np.diff(store.episode_ends, prepend=0) - 1
        outdated = RewardConfig.from_json(store.reward).assumptions(store.success, lengths)
        kept = [line for line in store.changes if line not in outdated]
        changes = [*kept, *reward.assumptions(success, lengths), note]
        write_group(folder, {**store.attributes, "reward": reward.to_json(), "changes": changes})
        os.sync()
        commit = CommitFile(folder / "meta" / COMMIT)
        commit.commit(Committed(store.rows, store.length, store.committed.position), sync=True)
        commit.close()
    return Store.open(out or path)


def _label(store: Store, success: np.ndarray, reward: RewardConfig) -> dict[str, np.ndarray]:
    columns: dict[str, list[np.ndarray]] = {"reward": [], "mask": [], "mc_return": []}
    for length, code in zip(np.diff(store.episode_ends, prepend=0) - 1, success, strict=True):
        labels = reward.label(int(length), None if code < 0 else bool(code))
        for column, values in zip(columns.values(), labels, strict=True):
            column.append(np.append(values, np.float32(0)))
    return {key: np.concatenate(parts) for key, parts in columns.items()}


def _link(source: Path, target: Path) -> None:
    """All but the labels: frames by hard link where the file system can, small files and the last chunk of each array by copy."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(relative.is_relative_to(name) for name in _REWRITTEN) or relative.name in (LOCK, COMMIT, ".zattrs"):
            if relative.name == ".zattrs" and relative.parent.parts[:1] == ("jpeg",):
                shutil.copy2(path, target / relative)
            continue
        if path.is_dir():
            (target / relative).mkdir()
        elif _is_sealed(path):
            try:
                os.link(path, target / relative)
            except OSError:
                shutil.copy2(path, target / relative)
        else:
            shutil.copy2(path, target / relative)


def _is_sealed(path: Path) -> bool:
    """Whether a file is a chunk that appending will not write to: not the last one of its array."""
    index = path.name.split(".")[0]
    if not index.isdigit():
        return False
    shape = json.loads((path.parent / ".zarray").read_text())
    return int(index) < shape["shape"][0] // shape["chunks"][0] - (shape["shape"][0] % shape["chunks"][0] == 0)
