"""diffusion_policy's replay buffers: a zarr folder or .zarr.zip of `data/<key>`, concatenated over time, and `meta/episode_ends`.

Read through the zarr library with whatever compressors numcodecs has, in zarr's format 2 (the original's) or 3. Observations and
actions have the same number of rows. A chunk that is missing reads as the array's fill value, as zarr has it: black frames, zeros;
`gaps` tells where. zarr itself writes no chunk that is all fill value, so of numbers, though hardly of frames, that can be meant.
This is the format of exchange; our own training store has the same layout but is not read here.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.base import Feature
from data.formats.blosc import read_rows
from data.formats.description import find_description, merge_description

_CAMERAS = ("image_primary", "image_secondary", "image_tertiary", "image_quaternary", "image_quinary", "image_senary")
_PROPRIO = ("state", "agent_pos", "robot_eef_pose", "robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width")
_STORE_MARK = "robot_rl_store"


@dataclass(frozen=True)
class ZarrEpisode:
    """Rows start to stop of the arrays. root: the zarr group, which keeps a zip file open."""

    root: Any
    rows: range
    number: int
    source: str
    dataset: DiffusionPolicyDataset

    @property
    def num_steps(self) -> int:
        return len(self.rows)

    def step(self, key: str, limit: int | None = None) -> Any:
        features = self.dataset.features
        if key not in features or features[key].unsupported:
            reason = features[key].unsupported if key in features else f"not there (present: {', '.join(features)})"
            raise InputError(f"{self.source}: data/{key} is {reason}")
        try:
            array = self.root[f"data/{key}"]
            rows = self.rows if limit is None else self.rows[:limit]
            if array.shape[0] < rows.stop:
                raise InputError(
                    f"{self.source}: data/{key} has {array.shape[0]} rows, the episode ends at row {rows.stop}; drop it with --skip-bad"
                )
            values = read_rows(array, rows.start, rows.stop)
        except InputError:
            raise
        except Exception as error:
            # Each compressor has exceptions of its own.
            raise InputError(
                f"{self.source}: data/{key} cannot be decoded ({_line(error)}); copy it again, or drop it with --skip-bad"
            ) from None
        return self._frames(key, values) if features[key].kind == "image" else values

    def _frames(self, key: str, values: np.ndarray) -> np.ndarray:
        """uint8 [N,H,W,3]; the original keeps some images as floats from 0 to 255."""
        if values.dtype == np.uint8:
            return values
        values = values * self.dataset.image_scale[key]
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise InputError(f"{self.source}: data/{key} has pixels that are no numbers from 0 to 255; drop it with --skip-bad")
        return np.rint(values).astype(np.uint8)

    def metadata(self, key: str, default: Any = None) -> Any:
        """An entry of `meta/<key>`, where there is an array with one number an episode."""
        try:
            array = self.root["meta"].get(key)
        except Exception as error:
            raise InputError(f"{self.source}: meta/{key} cannot be read ({_line(error)}); copy it again") from None
        if array is None or getattr(array, "shape", ())[:1] != self.dataset.ends.shape or _unreadable(array):
            return default
        try:
            return read_rows(array, self.number, self.number + 1)[0]
        except Exception as error:
            raise InputError(f"{self.source}: meta/{key} cannot be decoded ({_line(error)}); copy it again") from None

    def texts(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class DiffusionPolicyDataset:
    """An opened dataset. ends: int64 [E], cumulative; image_scale: to 0..255, of images that are kept as floats."""

    path: Path
    name: str
    features: dict[str, Feature]
    ends: np.ndarray
    description: dict[str, Any] | None
    image_scale: dict[str, float] = field(default_factory=dict)
    format: str = "diffusion_policy"

    @property
    def splits(self) -> Mapping[str, int]:
        return {"train": len(self.ends)}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_file():
            return path.name.endswith(".zarr.zip")
        if not path.is_dir() or _is_store(path):
            return False
        return path.suffix == ".zarr" or (path / "meta" / "episode_ends").is_dir()

    @classmethod
    def open(cls, path: str | Path) -> DiffusionPolicyDataset:
        """Open a .zarr folder or a .zarr.zip. InputError says what is missing."""
        path = Path(path)
        root = _open(path)
        ends = _episode_ends(root, path)
        features: dict[str, Feature] = {}
        scales: dict[str, float] = {}
        for key in _children(path, "data"):
            features |= _features(root, path, key, scales)
        if not features:
            raise InputError(f"{path}: no arrays under `data`; give a zarr in diffusion_policy's layout")
        name = path.name.removesuffix(".zip").removesuffix(".zarr")
        description = merge_description(_derive(root, features, ends, name), find_description(path))
        return cls(path, name, features, ends, description, scales)

    def gaps(self, split: str) -> dict[str, list[int]]:
        root, starts = _open(self.path), np.concatenate([[0], self.ends[:-1]])
        found = {}
        for key, feature in self.features.items():
            rows = [] if feature.unsupported else _missing(root, self.path, f"data/{key}")
            hit = np.zeros(len(self.ends), bool)
            for first, last in rows:
                hit |= (starts < last) & (self.ends > first)
            if hit.any():
                found[key] = np.flatnonzero(hit).tolist()
        return found

    def episodes(self, split: str, indices: range) -> Iterator[ZarrEpisode | InputError]:
        root = _open(self.path)
        starts = np.concatenate([[0], self.ends[:-1]])
        for number in indices:
            source = f"{self.name} {split} #{number} ({self.path.name})"
            rows = range(int(starts[number]), int(self.ends[number]))
            if rows:
                yield ZarrEpisode(root, rows, number, source, self)
            else:
                yield InputError(f"{source}: has no steps; drop it with --skip-bad")


def _open(path: Path) -> Any:
    import zarr

    try:
        if path.is_dir():
            return zarr.open_group(str(path), mode="r")
        return zarr.open_group(zarr.storage.ZipStore(str(path), mode="r"), mode="r", path=_prefix(path))
    except Exception as error:
        # zarr's versions 2 and 3 have different ones, and the zip its own.
        raise InputError(f"{path}: not a readable zarr group ({_line(error)}); copy it again") from None


def _prefix(path: Path) -> str:
    """Where in a zip the group is: it may have been packed with its folder."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            before, found, _ = name.partition("meta/episode_ends/")
            if found:
                return before.rstrip("/")
    return ""


def _children(path: Path, within: str) -> list[str]:
    """Names below a group. Not by asking zarr, which stops at the first array whose compressor it does not know."""
    if path.is_dir():
        folder = path / within
        return sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    prefix = "".join(f"{part}/" for part in (_prefix(path), within) if part)
    with zipfile.ZipFile(path) as archive:
        names = [name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)]
    return sorted({name.partition("/")[0] for name in names if "/" in name})


def _missing(root: Any, path: Path, name: str) -> list[tuple[int, int]]:
    """Rows [first, last) of the chunks of an array that are not in its folder or zip file."""
    array = root[name]
    if path.is_dir():
        folder = path / name
        there = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
    else:
        prefix = "".join(f"{part}/" for part in (_prefix(path), name) if part)
        with zipfile.ZipFile(path) as archive:
            there = {entry.removeprefix(prefix) for entry in archive.namelist() if entry.startswith(prefix)}
    sizes = array.shards or array.chunks  # what is one file
    grid = (range(-(-length // size)) for length, size in zip(array.shape, sizes, strict=True))
    missing = {place[0] for place in product(*grid) if array.metadata.encode_chunk_key(place) not in there}
    return [(row * sizes[0], (row + 1) * sizes[0]) for row in sorted(missing)]


def _features(root: Any, path: Path, key: str, scales: dict[str, float]) -> dict[str, Feature]:
    """The features of `data/<key>`, an array or a group of arrays; scales of float images are added to `scales`."""
    try:
        array = root[f"data/{key}"]
    except Exception as error:
        return {key: Feature(key, "tensor", unsupported=f"not readable ({_line(error)}); install its codec, or copy it again")}
    if not hasattr(array, "dtype"):
        return {
            name: f
            for child in _children(path, f"data/{key}")
            for name, f in _features(root, path, f"{key}/{child}", scales).items()
        }
    reason, shape = _unreadable(array), tuple(array.shape[1:])
    if not array.shape:
        return {}
    image = len(shape) == 3 and shape[-1] == 3 and array.dtype.kind in "uf" and array.dtype.itemsize in (1, 2, 4, 8)
    if image and array.dtype != np.uint8 and not reason:
        try:
            scales[key] = 1.0 if read_rows(array, 0, 1).max(initial=0) > 1 else 255.0
        except Exception as error:
            reason = f"not readable ({_line(error)}); copy it again"
    return {key: Feature(key, "image" if image else "tensor", str(array.dtype), shape, reason)}


def _unreadable(array: Any) -> str:
    """Why an array is not read: it holds no numbers, or would have to be unpickled."""
    # zarr 3 has several compressors, zarr 2 one.
    codecs = [*(array.filters or ()), *(array.compressors if hasattr(array, "compressors") else (array.compressor,))]
    if array.dtype.kind not in "biuf":
        return f"of {array.dtype}, not numbers"
    if any("pickle" in repr(codec).lower() for codec in codecs):
        return "pickled, and nothing is unpickled here"
    return ""


def _episode_ends(root: Any, path: Path) -> np.ndarray:
    try:
        array = root["meta/episode_ends"]
        reason = _unreadable(array)
        ends = np.empty(0) if reason else read_rows(array, 0, array.size)
        lost = not reason and _missing(root, path, "meta/episode_ends")
    except KeyError:
        raise InputError(f"{path}: no meta/episode_ends; give a zarr in diffusion_policy's layout") from None
    except Exception as error:
        raise InputError(f"{path}: meta/episode_ends cannot be read ({_line(error)}); copy it again") from None
    if reason or ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise InputError(f"{path}: meta/episode_ends is {reason or f'{ends.dtype}{ends.shape}'}, expected whole numbers [E]")
    if lost:
        raise InputError(f"{path}: meta/episode_ends has lost a chunk, so where its episodes end is not known; copy it again")
    ends = ends.astype(np.int64)
    falls = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if len(falls):
        raise InputError(
            f"{path}: meta/episode_ends falls at episode {falls[0]} ({ends[falls[0]]} rows after "
            f"{ends[falls[0] - 1] if falls[0] else 0}); it must hold where each episode ends, counted from the first row"
        )
    return ends


def _derive(root: Any, features: dict[str, Feature], ends: np.ndarray, name: str) -> dict[str, Any]:
    """What can be said without being told: cameras and proprio by name, and of real robots, which keep times, the rate."""
    observations: dict[str, Any] = {}
    images = [key for key, feature in features.items() if feature.kind == "image" and not feature.unsupported]
    wrists = [key for key in images if "wrist" in key or "hand" in key]
    if wrists:
        observations["image_wrist"] = wrists[0]
    observations |= dict(zip(_CAMERAS, [key for key in images if key not in wrists[:1]], strict=False))
    vectors = [key for key in _PROPRIO if key in features and features[key].kind == "tensor" and not features[key].unsupported]
    if vectors:
        observations["proprio"] = vectors
    derived: dict[str, Any] = {"observations": observations, "instruction": {"text": name.replace("_", " ")}}
    actions = features.get("action")
    if actions is None or actions.unsupported or len(actions.shape) != 1 or not len(ends):
        return derived
    try:
        values = read_rows(root["data/action"], 0, int(ends[-1]))
        times = read_rows(root["data/timestamp"], 0, int(ends[0])).reshape(-1) if "timestamp" in features else np.empty(0)
    except Exception:
        # Reading the episodes says what is damaged.
        return derived
    if not len(values):
        return derived
    size, step = actions.shape[0], float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    derived["action"] = {
        "names": [f"action_{index}" for index in range(size)],
        "units": ["1"] * size,
        "low": np.nanmin(values, axis=0).tolist(),
        "high": np.nanmax(values, axis=0).tolist(),
        "frame": "unknown",
        **({"control_hz": round(1 / step, 3)} if step > 0 else {}),
    }
    derived["notes"] = ["the format does not say what actions are: they are unnamed and their limits are those of the data"]
    return derived


def _is_store(path: Path) -> bool:
    try:
        return _STORE_MARK in json.loads((path / ".zattrs").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
