"""inspect and its rendering: what it says of known data, in flat memory, of any source."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from data.episode import Episode
from data.errors import InputError
from data.formats.rlds_writer import RldsWriter
from data.quality.inspection import inspect, report
from data.quality.sample import EPISODES
from data.quality.signals import LaggedCorrelation, Reservoir, steps, wrapping
from data.quality.survey import survey
from data.quality.terminal import render
from data.source import EpisodeList, open_dataset
from data.statistics import compute_statistics
from data.store.store import Store
from tests.data.arm_data import ACTION, clean, each


def text_of(renderable: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_report(written: Path) -> None:
    found = inspect(open_dataset(written))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["episodes"], found["steps"], found["transitions"]) == (12, 79, 67)
    assert found["success"] == {"true": 4, "false": 4, "unlabelled": 4}
    assert found["instructions"] == {"close the drawer": 6, "öffne the drawer": 6}
    length = found["episode_length"]
    assert (length["min"], length["median"], length["max"], sum(length["histogram"]["counts"])) == (3, 5.5, 9, 12)
    assert found["cameras"] == {"image_primary": [12, 16], "image_wrist": [8, 8]}
    assert found["vectors"] == {"proprio": 5, "state": 9}
    assert set(found["statistics"]) == {"mean", "std", "min", "max", "q01", "q99"}
    text = text_of(render(found))
    for part in ("made_dataset", "79 (67 transitions)", "gripper", "close the drawer", "end_effector_delta_base"):
        assert part in text


def test_dead_dimensions_and_bad_episodes(tmp_path: Path, make_episode: Callable[..., Episode], action: dict) -> None:
    episode = make_episode(0, 5)
    episode.actions[:, 1] = 0.01
    episode.actions[:, 3] = [0, 1, 0, 1, 0]
    with RldsWriter(tmp_path / "still", action) as writer:
        for _ in range(3):
            writer.add(episode)
    shard = next((tmp_path / "still/1.0.0").glob("*.tfrecord*"))
    assert inspect(open_dataset(tmp_path / "still"))["dead_dimensions"] == ["y"]
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="record 2 is corrupt"):
        inspect(open_dataset(tmp_path / "still"))
    found = inspect(open_dataset(tmp_path / "still"), skip_bad=True)
    assert found["episodes"] == 2
    assert "record 2 is corrupt" in found["skipped"][0]
    assert found["findings"][0]["fault"] == "unusable-episode"


def test_statistics_are_those_of_the_trainer() -> None:
    data = clean(0)
    exact = compute_statistics(np.concatenate([episode.actions for episode in data.items]))
    for key, values in inspect(data)["statistics"].items():
        np.testing.assert_allclose(values, exact[key], rtol=1e-4, atol=1e-7)


def test_limit_and_lags() -> None:
    found = inspect(clean(1), limit=10)
    assert found["episodes"] == 10
    assert found["looked_at"]["episodes"] == 10
    lags = found["lag"]
    assert set(lags) == {"proprio after the actions", "image_primary after proprio", "image_wrist after proprio"}
    assert all(lag["steps"] == 0 for lag in lags.values())
    assert 0 < found["idle"] < 0.1
    assert "nothing suspicious was found" in text_of(render(found))


def test_one_step_of_one_dimension() -> None:
    """As little as can be: nothing to correlate, nothing to bin."""
    action = {**ACTION, "names": ["x"], "units": ["m"], "low": [0.0], "high": [1.0]}
    episode = Episode({}, np.full((1, 1), 0.5, np.float32), "go", source="one")
    found = inspect(EpisodeList("one", action, [episode]))
    assert (found["transitions"], found["lag"], found["vectors"]) == (1, {}, {})
    assert "one" in text_of(render(found))


@dataclass(frozen=True)
class Endless:
    """A source that makes its episodes while it is read: nothing of them stays unless the reader keeps it."""

    length: int
    name: str = "endless"
    location: str = "nowhere"
    split: str = "train"
    changes: tuple[str, ...] = ()
    action: dict = field(default_factory=lambda: ACTION)
    episode: ClassVar[Episode] = clean(0, count=1).items[0]

    def read(self, indices: range, images: bool = True) -> Iterator[Episode]:
        for index in indices:
            base = Endless.episode
            actions = base.actions + np.random.default_rng(index).normal(0, 1e-4, base.actions.shape).astype(np.float32)
            episode = replace(base, actions=actions, source=f"#{index}")
            yield episode if images else episode.without_images()


def test_memory_is_flat() -> None:
    """Per episode a kilobyte or two may stay, of the 300 kB that one of these has with its frames."""

    def peak(length: int) -> int:
        tracemalloc.start()
        survey(Endless(length))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few, many = peak(EPISODES), peak(5 * EPISODES)
    grown = (many - few) / (4 * EPISODES)
    rows = 53 * (7 + 7 + 12) * 4  # the reservoir is filling up still
    assert grown < rows + 6000


def test_reservoir_is_uniform_and_its_moments_are_exact() -> None:
    values = np.random.default_rng(0).normal(5, 2, (20_000, 1)) + np.linspace(0, 10, 20_000)[:, None]
    reservoir = Reservoir(2_000)
    for block in np.array_split(values, 37):
        reservoir.add(block)
    assert len(reservoir.rows()) == 2_000
    np.testing.assert_allclose([reservoir.mean, reservoir.std], [values.mean(0), values.std(0)], rtol=1e-6)
    assert abs(reservoir.rows().mean() - values.mean()) < 4 * values.std() / 2_000**0.5


@pytest.mark.parametrize("lag", [-3, 0, 2])
def test_lagged_correlation_finds_the_lag(lag: int) -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(200, 2))
    lagged = LaggedCorrelation(2, 5)
    for part in np.array_split(signal, 4):
        delayed = np.roll(part, lag, axis=0) * [-2.0, 3.0] + rng.normal(0, 0.1, part.shape)
        lagged.add(part, delayed)
    assert lagged.peak().steps == lag
    np.testing.assert_allclose(lagged.slopes()[:, 5 + lag], [-2, 3], rtol=0.15)


def test_angles_step_the_short_way_round() -> None:
    values = np.array([[3.1, 0.0], [-3.1, 4.0], [3.1, 8.0]], np.float32)
    wraps = wrapping([values])
    assert wraps.tolist() == [True, False]
    np.testing.assert_allclose(steps(values, wraps), [[2 * np.pi - 6.2, 4], [6.2 - 2 * np.pi, 4]], atol=1e-6)


def test_bridge_report(bridge: Path) -> None:
    found = report(survey(open_dataset(bridge)))
    assert found["episodes"] == 25
    assert found["lag"]["proprio after the actions"]["steps"] == 0
    assert found["rewards"] == {"episodes": 25, "min": 0.0, "max": 0.0, "steps": {"0": 25 * 9}}


def test_rewards_of_a_store_and_rewards_of_many_values(made_store: Store) -> None:
    found = inspect(made_store)
    successes, failures = made_store.success != 0, made_store.success == 0
    lengths = np.diff(made_store.episode_ends, prepend=0) - 1
    zeros = int(np.minimum(lengths, 3)[successes].sum())
    assert failures.any()
    assert found["rewards"]["steps"] == {"-1": int(lengths.sum()) - zeros, "0": zeros}
    text = text_of(render(found))
    assert f"-1 in {100 - 100 * zeros / lengths.sum():.3g}%" in text
    dense = each(clean(0), lambda e: replace(e, rewards=np.linspace(0, 1, len(e), dtype=np.float32)))
    assert inspect(dense)["rewards"] == {"episodes": 24, "min": 0.0, "max": 1.0, "steps": {}}
    assert "0 to 1" in text_of(render(inspect(dense)))
