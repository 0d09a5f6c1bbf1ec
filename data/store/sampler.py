"""ChunkSampler: batches of action chunks from a store, for critics and policies. All of it is vectorised; images come by memory map.

A transition here is H control steps long: from s_t the chunk a_t .. a_{t+H-1} leads to s_{t+H}, so TD over it is one H-step backup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import InputError
from data.labels.relabelling import Relabelling, relabelled
from data.store.store import Store

_LABELS = ("reward", "discount", "mc_return")


class ChunkSampler:
    """Draws windows of `horizon` H actions, uniformly over the valid start rows (`starts`).

    The backup is N steps long, H unless `n_step` says otherwise. In an episode of T transitions, with n = min(N, T - t) steps recorded
    from t on:
        reward   = sum_{i<n} gamma^i r_{t+i} prod_{j<i} mask_{t+j}
        discount = gamma^n prod_{i<n} mask_{t+i}                     (the factor of the next value, gamma and mask included)
    and the next observation is row t+n. Where T - t < H the chunk is padded with the last action. Where an episode ends in a terminal
    step (a success) those steps have discount 0, so the padding is never bootstrapped through. An episode that does not (a failure, one
    that was cut off or still runs) would give a padded chunk the value of actions that were never taken, so critics start there
    only where t + max(H, N) <= T. `every_start` (behaviour cloning) starts anywhere, and leaves out the next observations, which
    cloning has no use for.
    """

    def __init__(
        self,
        store: Store,
        horizon: int,
        discount: float | None = None,
        keys: tuple[str, ...] | None = None,
        every_start: bool = False,
        window: int = 1,
        n_step: int | None = None,
        relabelling: Relabelling | None = None,
        starts_per_episode: int | None = None,
        episodes: int | None = None,
        derived: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """discount: gamma of one control step, the store's own if None. keys: the observations to return, all if None.

        window: with W > 1 each observation comes with those before it, [B,W,...], and `timestep_pad_mask` as in policies/history.py.
        relabelling: instructions other than the episode's own (see data/labels/relabelling.py). episodes, starts_per_episode: draw
        from so many episodes only, evenly spread, and from so many starts of each. derived: what is returned
        beside the observations of the store, [rows, ...] by name; the store must not grow then.
        """
        if horizon < 1 or (n_step is not None and n_step < 1):
            raise InputError(f"the chunk must have at least one action and the backup one step, got {horizon} and {n_step}")
        self.store, self.horizon, self.window, self.every_start = store, horizon, window, every_start
        self.n_step = n_step or horizon
        self.discount = float(store.reward["discount"] if discount is None else discount)
        self.keys = tuple(store.observation_keys) if keys is None else keys
        for key in self.keys:
            store.shape(key)
        self.relabelling = relabelling or Relabelling()
        self.relabelling.check(store)
        self._starts_per_episode, self._episodes = starts_per_episode, episodes
        self._derived = dict(derived or {})
        # Everything but the images is small: it lives in memory.
        self._ram: dict[str, np.ndarray] = {}
        self._buffers: dict[str, np.ndarray] = {}
        self.starts = np.empty(0, np.int64)
        self._drawn = np.empty(0, np.int64)
        self._texts = np.empty(0, object)
        self._read(0, 0)
        longest = int(np.diff(store.episode_ends, prepend=0).max()) - 1
        # A chunk longer than every episode is a mistake, not data, although `every_start` would pad it.
        if not len(self.starts) or horizon > longest:
            raise InputError(
                f"{store.path}: no episode is long enough for a chunk of {max(horizon, self.n_step)} actions (the longest has "
                f"{longest}); choose a shorter --chunk"
            )

    def refresh(self) -> bool:
        """See what a writer in another process has committed since; whether there was anything."""
        self.store.refresh()
        if self.store.committed == self._seen:
            return False
        closed = self._seen.episodes
        # An episode that still ran has other labels now.
        self._read(closed, int(self.store.episode_ends[closed - 1]) if closed else 0)
        return True

    def _read(self, episode: int, start: int) -> None:
        """Load what lies behind row `start`, where episode number `episode` begins."""
        store, new, self._seen = self.store, np.arange(start, self.store.rows), self.store.committed
        vectors = {key: store.gather(key, new) for key in self.keys if not key.startswith("image_")}
        reward, mask, mc_return = store.labels(start)
        ends = store.episode_ends[episode:]
        rows = np.diff(ends, prepend=start)
        # The first and the final observation's row of each row's episode, and which episode that is.
        loaded = {
            **vectors,
            "action": store.gather("action", new),
            "instruction_index": store.gather("instruction_index", new),
            "mc_return": mc_return,
            "first": np.repeat(ends - rows, rows),
            "final": np.repeat(ends - 1, rows),
            "episode": np.repeat(np.arange(episode, episode + len(rows)), rows),
        }
        loaded["reward"], loaded["discount"] = self._backup(reward, mask, loaded["final"] - start)
        loaded["terminal"] = mask == 0
        for key, values in loaded.items():
            self._extend(key, start, values)
        if len(store.instructions) > len(self._texts):
            self._embeddings = store.language.encode(store.instructions)
            self._texts = np.asarray(store.instructions, dtype=object)
        drawn = self._choose_episodes()
        before, after = (episodes[: np.searchsorted(episodes, episode)] for episodes in (self._drawn, drawn))
        if np.array_equal(before, after):
            kept, new = self.starts[: np.searchsorted(self.starts, start)], drawn[len(after) :]
        else:
            kept, new = self.starts[:0], drawn  # others are evenly spread over the episodes now
        self.starts, self._drawn = np.concatenate([kept, self._find_starts(new)]), drawn

    def _extend(self, key: str, start: int, values: np.ndarray) -> None:
        """Put values behind the first `start` rows. A store that grows step by step is not copied step by step."""
        rows, buffer = start + len(values), self._buffers.get(key)
        if buffer is None or rows > len(buffer):
            grown = np.empty((max(rows, 2 * start), *values.shape[1:]), values.dtype)
            if buffer is not None:
                grown[:start] = buffer[:start]
            self._buffers[key] = buffer = grown
        buffer[start:rows] = values
        self._ram[key] = buffer[:rows]

    def _choose_episodes(self) -> np.ndarray:
        """The numbers of the episodes to draw from, in order."""
        count = self.store.length
        if self._episodes is None or self._episodes >= count:
            return np.arange(count)
        return np.linspace(0, count - 1, self._episodes).round().astype(np.int64)

    def _find_starts(self, episodes: np.ndarray) -> np.ndarray:
        """The valid start rows of some episodes, in order."""
        final = self.store.episode_ends[episodes] - 1
        first, last = self._ram["first"][final], final - 1
        if not self.every_start:
            last = np.where(self._ram["terminal"][final - 1], last, final - max(self.horizon, self.n_step))
        length = np.maximum(last - first + 1, 0)
        count = length if self._starts_per_episode is None else np.minimum(length, self._starts_per_episode)
        # Of an episode's `length` starts the i-th of `count`, evenly spread: ceil(i length / count).
        i = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        first, length, count = (np.repeat(values, count) for values in (first, length, count))
        return first - (-i * length) // count

    def __len__(self) -> int:
        """Number of valid starts."""
        return len(self.starts)

    def _backup(self, reward: np.ndarray, mask: np.ndarray, final: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = np.arange(len(reward))
        total, factor = np.zeros(len(reward)), np.ones(len(reward))
        for i in range(self.n_step):
            at = np.minimum(row + i, final)
            inside = row + i < final
            total += np.where(inside, factor * reward[at], 0.0)
            factor *= np.where(inside, self.discount * mask[at], 1.0)
        return total.astype(np.float32), factor.astype(np.float32)

    def batch(self, rows: np.random.Generator | np.ndarray, size: int | None = None) -> dict[str, Any]:
        """B windows: `size` drawn by a generator, or those that start at the given rows [B], which are not relabelled.

        observations, next_observations: {key: [B,...], "instruction": B strings, "instruction_embedding": float32 [B,D]}; actions:
        float32 [B,H,A], physical units; reward, discount (see above), mc_return (at the start): float32 [B]; rows: int64 [B].
        """
        generator = rows if isinstance(rows, np.random.Generator) else None
        if isinstance(rows, np.random.Generator):
            rows = self.starts[rows.integers(len(self.starts), size=size)]
        ram, final = self._ram, self._ram["final"][rows]
        instruction = ram["instruction_index"][rows]
        labels = {key: ram[key][rows] for key in _LABELS}
        if generator is not None and self.relabelling.active:
            steps = final - rows
            fits = steps >= max(self.horizon, self.n_step)
            achieved = self.store.achieved[ram["episode"][rows]]
            instruction, labels = relabelled(
                self.relabelling, generator, instruction, labels, achieved, steps, fits, self.n_step, self.discount, self.store
            )
        chunk = np.minimum(rows[:, None] + np.arange(self.horizon), final[:, None] - 1)
        following = (
            {}
            if self.every_start
            else {"next_observations": self._observations(np.minimum(rows + self.n_step, final), instruction)}
        )
        return {
            "observations": self._observations(rows, instruction),
            **following,
            "actions": ram["action"][chunk],
            **labels,
            "rows": rows,
        }

    def _observations(self, rows: np.ndarray, instruction: np.ndarray) -> dict[str, Any]:
        episode = {"instruction": self._texts[instruction].tolist(), "instruction_embedding": self._embeddings[instruction]}
        if self.window > 1:
            back = rows[:, None] - np.arange(self.window - 1, -1, -1)
            first = self._ram["first"][rows][:, None]
            episode["timestep_pad_mask"] = back >= first
            rows = np.maximum(back, first)
        steps = {key: self._ram[key][rows] if key in self._ram else self._gather(key, rows) for key in self.keys}
        made = {name: values[rows] for name, values in self._derived.items()}
        return {**steps, **made, **episode}

    def _gather(self, key: str, rows: np.ndarray) -> np.ndarray:
        return self.store.gather(key, rows.ravel()).reshape(*rows.shape, *self.store.shape(key))
