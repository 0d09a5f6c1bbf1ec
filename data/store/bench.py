"""What a trainer gets a second: random transitions from the store, against the ways in which others read the same data, in one run.

A transition is a 64x64 image and the next one, both proprioceptions and a chunk of four actions. All sources hold the same episodes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data.episode import Episode
from data.errors import InputError
from data.formats.rlds_writer import RldsWriter
from data.language import LanguageEncoder
from data.source import EpisodeList
from data.store.conversion import ConversionConfig, convert
from data.store.preparation import Preparation
from data.store.sampler import ChunkSampler
from data.store.store import Store

HORIZON, SIZE, STEPS = 4, 64, 100
Draw = Callable[[np.random.Generator, int], Any]
ACTION = {
    "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
    "units": ["m", "m", "m", "rad", "rad", "rad", "open"],
    "low": [-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0],
    "high": [0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0],
    "frame": "end_effector_delta_base",
    "control_hz": 5.0,
}


def bench_data(episodes: int, batch: int, seconds: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """rows: {what, transitions_per_second, ratio of the store to it}, JSON-ready; transition_bytes; anonymous_growth_mb of sampling."""
    with tempfile.TemporaryDirectory() as folder:
        made = [_episode(seed) for seed in range(episodes)]
        progress("writing the same episodes in every format")
        store = _store(Path(folder) / "raw", made, "raw")
        sampler = ChunkSampler(store, HORIZON)
        jpeg = ChunkSampler(_store(Path(folder) / "jpeg", made, "jpeg"), HORIZON)
        raw_bytes = 2 * SIZE * SIZE * 3 + (2 * 7 + HORIZON * 7) * 4
        memory = {
            "memcpy of as many bytes": _memcpy(raw_bytes),
            "store, raw frames": sampler.batch,
            "store, JPEG frames": jpeg.batch,
        }
        rates = measure(memory, batch, seconds, progress)
        growth = anonymous_growth(sampler, batch, max(int(seconds * 20), 20))
        with _hdf5(Path(folder), made) as peers:
            rates |= measure(peers, batch, seconds, progress)
        rates |= measure(_zarr(Path(folder), made), batch, seconds, progress)
        rates |= measure(_tf_data(Path(folder), made, batch), batch, seconds, progress)
    ours = rates["store, raw frames"]
    rows = [{"what": what, "transitions_per_second": rate, "ratio": ours / rate} for what, rate in rates.items()]
    return {
        "rows": rows,
        "transition_bytes": raw_bytes,
        "batch": batch,
        "episodes": episodes,
        "anonymous_growth_mb": growth,
        "anonymous_mb": anonymous_memory() / 1e6,
    }


def bench_store(path: Path, batch: int, seconds: float) -> dict[str, Any]:
    """The same of a store that is there already, with all of its cameras: its rate and how much anonymous memory sampling takes."""
    store = Store.open(path)
    sampler = ChunkSampler(store, HORIZON)
    rate = measure({"store": sampler.batch}, batch, seconds, lambda _: None)["store"]
    growth = anonymous_growth(sampler, batch, max(int(seconds * 20), 20))
    size = sum(array.dtype.itemsize * int(np.prod(array.shape)) for array in store.arrays.values())
    row = {"what": str(path), "transitions_per_second": rate, "ratio": 1.0}
    return {
        "rows": [row],
        "batch": batch,
        "episodes": store.length,
        "store_gb": size / 1e9,
        "anonymous_growth_mb": growth,
        "anonymous_mb": anonymous_memory() / 1e6,
    }


def anonymous_growth(sampler: ChunkSampler, batch: int, batches: int) -> float:
    """MB of anonymous memory (the system's own count, without mapped files) that `batches` batches leave behind."""
    generator = np.random.default_rng(1)
    sampler.batch(generator, batch)
    before = anonymous_memory()
    for _ in range(batches):
        sampler.batch(generator, batch)
    return (anonymous_memory() - before) / 1e6


def anonymous_memory() -> int:
    """Bytes of this process's anonymous memory, where the system tells (Linux); else 0."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def measure(draws: dict[str, Draw], batch: int, seconds: float, progress: Callable[[str], None]) -> dict[str, float]:
    """Transitions a second of each, the median of five turns that are taken in alternation."""
    times: dict[str, list[float]] = {what: [] for what in draws}
    generator = np.random.default_rng(0)
    for what, draw in draws.items():
        progress(f"measuring {what}")
        draw(generator, batch)
    for _ in range(5):
        for what, draw in draws.items():
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds / 5:
                draw(generator, batch)
                count += batch
            times[what].append((time.perf_counter() - started) / count)
    return {what: 1 / float(np.median(values)) for what, values in times.items()}


def _episode(seed: int) -> Episode:
    """A bright block that moves over a textured table, as a camera would see it: JPEG has something to compress."""
    rng = np.random.default_rng(seed)
    proprio = np.cumsum(rng.normal(0, 0.01, (STEPS + 1, 7)), axis=0).astype(np.float32)
    table = np.kron(rng.integers(60, 180, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.repeat(table[None], STEPS + 1, axis=0)
    for frame, (x, y) in zip(frames, 24 + 20 * np.tanh(proprio[:, :2]), strict=True):
        frame[int(y) : int(y) + 12, int(x) : int(x) + 12] = (230, 40, 30)
    return Episode(
        observations={"image_primary": frames, "proprio": proprio},
        actions=np.diff(proprio, axis=0),
        instruction=f"move the block {('left', 'right')[seed % 2]}",
        success=True,
        source=f"made #{seed}",
        instruction_embedding=np.eye(8, dtype=np.float32)[seed % 2],
    )


def _store(out: Path, episodes: list[Episode], storage: Any) -> Store:
    config = ConversionConfig(Preparation(storage=storage))
    return convert(EpisodeList("bench", ACTION, episodes), out, config, language=LanguageEncoder("dataset")).store


def _memcpy(size: int) -> Draw:
    source = np.ones(size * 4096, np.uint8)

    def draw(generator: np.random.Generator, batch: int) -> Any:
        return source[: size * batch].copy()

    return draw


def _transition_rows(made: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Start rows of all transitions and, for each row, the last row with an action in its episode; T+1 rows an episode."""
    rows = np.arange(len(made) * (STEPS + 1))
    return rows[rows % (STEPS + 1) < STEPS], rows - rows % (STEPS + 1) + STEPS - 1


@contextmanager
def _hdf5(folder: Path, made: list[Episode]) -> Iterator[dict[str, Draw]]:
    """h5py: one contiguous array indexed by sorted rows, and robomimic's layout, a group an episode."""
    import h5py

    with h5py.File(folder / "peers.hdf5", "w") as file:
        for key in ("image_primary", "proprio"):
            file[key] = np.concatenate([episode.observations[key] for episode in made])
        file["action"] = np.concatenate([np.concatenate([episode.actions, episode.actions[-1:]]) for episode in made])
        for index, episode in enumerate(made):
            demo = file.create_group(f"data/demo_{index}")
            demo["actions"] = episode.actions
            for key, value in episode.observations.items():
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = value[:-1], value[1:]
    starts, last = _transition_rows(made)
    with h5py.File(folder / "peers.hdf5", "r") as file:

        def take(key: str, rows: np.ndarray) -> np.ndarray:
            # h5py wants each row once, in order.
            distinct, back = np.unique(rows, return_inverse=True)
            return file[key][distinct][back]

        def fancy(generator: np.random.Generator, batch: int) -> Any:
            rows = generator.choice(starts, batch)
            chunk = np.minimum(rows[:, None] + np.arange(HORIZON), last[rows][:, None])
            observations = [take(key, at) for key in ("image_primary", "proprio") for at in (rows, rows + 1)]
            return *observations, take("action", chunk.ravel()).reshape(batch, HORIZON, -1)

        def robomimic(generator: np.random.Generator, batch: int) -> Any:
            parts: list[list[Any]] = [[] for _ in range(5)]
            for index, step in zip(
                generator.integers(len(made), size=batch), generator.integers(STEPS, size=batch), strict=True
            ):
                demo = file[f"data/demo_{index}"]
                keys = ("obs/image_primary", "next_obs/image_primary", "obs/proprio", "next_obs/proprio")
                for part, key in zip(parts, keys, strict=False):
                    part.append(demo[key][step])
                actions = demo["actions"][step : step + HORIZON]
                parts[4].append(np.pad(actions, ((0, HORIZON - len(actions)), (0, 0)), mode="edge"))
            return [np.stack(part) for part in parts]

        yield {"h5py, fancy indexing": fancy, "h5py, robomimic layout": robomimic}


def _zarr(folder: Path, made: list[Episode]) -> dict[str, Draw]:
    """zarr: random rows of arrays in chunks of 16 steps, uncompressed and with zarr's default compression."""
    import zarr

    arrays = {key: np.concatenate([episode.observations[key] for episode in made]) for key in ("image_primary", "proprio")}
    arrays["action"] = np.concatenate([np.concatenate([episode.actions, episode.actions[-1:]]) for episode in made])
    starts, last = _transition_rows(made)
    draws: dict[str, Draw] = {}
    variants: dict[str, dict[str, Any]] = {"uncompressed": {"compressors": None}, "compressed": {}}
    for name, options in variants.items():
        group = zarr.open_group(str(folder / f"{name}.zarr"), mode="w", zarr_format=2)
        for key, value in arrays.items():
            array = group.create_array(key, shape=value.shape, chunks=(16, *value.shape[1:]), dtype=value.dtype, **options)
            array[:] = value

        def draw(generator: np.random.Generator, batch: int, group: Any = group) -> Any:
            rows = generator.choice(starts, batch)
            chunk = np.minimum(rows[:, None] + np.arange(HORIZON), last[rows][:, None])
            observations = [group[key].oindex[at] for key in ("image_primary", "proprio") for at in (rows, rows + 1)]
            return *observations, group["action"].oindex[chunk.ravel()].reshape(batch, HORIZON, -1)

        draws[f"zarr, {name}"] = draw
    return draws


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """TensorFlow's libraries say what they find out about the machine before anything can tell them not to."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tf_data(folder: Path, made: list[Episode], batch: int) -> dict[str, Draw]:
    """tf.data over the RLDS of the same episodes, decoded and shuffled in parallel as Open-X loaders do."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it is read when this is imported
    try:
        with _native_stderr_closed():
            import tensorflow as tf
            import tensorflow_datasets as tfds
    except ImportError:
        raise InputError(
            "tensorflow-datasets is not installed, so tf.data cannot be measured; pip install 'robot-rl[rlds]'"
        ) from None
    with RldsWriter(folder / "rlds", ACTION, image_format="jpeg") as writer:
        for episode in made:
            writer.add(episode)
    builder = tfds.builder_from_directory(str(folder / "rlds" / "1.0.0"))

    def transitions(episode: Any) -> Any:
        steps = episode["steps"].batch(10_000).get_single_element()
        count = tf.shape(steps["action"])[0] - 1
        chunk = tf.minimum(tf.range(count)[:, None] + tf.range(HORIZON), count - 1)
        image, proprio = steps["observation"]["image_primary"], steps["observation"]["proprio"]
        parts = (image[:-1], image[1:], proprio[:-1], proprio[1:], tf.gather(steps["action"], chunk))
        return tf.data.Dataset.from_tensor_slices(parts)

    dataset = builder.as_dataset(split="train", shuffle_files=True).repeat()
    dataset = dataset.interleave(transitions, cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE)
    batches = dataset.shuffle(10_000).batch(batch).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    return {"tf.data, the same as RLDS": lambda generator, size: next(batches)}
