"""ChunkSampler: batches of action chunks from a store, for critics and policies. All of it is vectorised; images come by memory map.

A transition here is H control steps long: from s_t the chunk a_t .. a_{t+H-1} leads to s_{t+H}, so TD over it is one H-step backup.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.errors import InputError
from data.store.store import Store


class ChunkSampler:
    """Draws windows of `horizon` H actions, uniformly over the valid start rows (`starts`).

    In an episode of T transitions, with n = min(H, T - t) steps recorded from t on:
        reward   = sum_{i<n} gamma^i r_{t+i} prod_{j<i} mask_{t+j}
        discount = gamma^n prod_{i<n} mask_{t+i}                     (the factor of the next value, gamma and mask included)
    and the next observation is row t+n. Where n < H the chunk is padded with the last action. In a success those steps are terminal
    (discount 0), so the padding is never bootstrapped through. A failure is not terminal: there a padded chunk would get the
    value of actions that were never taken, so critics start only where t + H <= T. `every_start` (behaviour cloning) starts anywhere,
    and leaves out the next observations, which cloning has no use for.
    """

    def __init__(
        self,
        store: Store,
        horizon: int,
        discount: float | None = None,
        keys: tuple[str, ...] | None = None,
        every_start: bool = False,
        window: int = 1,
    ) -> None:
        """discount: gamma of one control step, the store's own if None. keys: the observations to return, all if None.

        window: with W > 1 each observation comes with those before it, [B,W,...], and `timestep_pad_mask` as in policies/history.py.
        """
        if horizon < 1:
            raise InputError(f"the chunk must have at least one action, got {horizon}")
        self.store, self.horizon, self.window, self.every_start = store, horizon, window, every_start
        self.discount = float(store.reward["discount"] if discount is None else discount)
        self.keys = tuple(store.observation_keys) if keys is None else keys
        for key in self.keys:
            store.shape(key)
        # Everything but the images is small: it lives in memory.
        self._ram = {key: store.load(key) for key in self.keys if not key.startswith("image_")}
        self._action, self._mc_return = store.load("action"), store.load("mc_return")
        self._instruction = store.load("instruction_index")
        self._embeddings = store.language.encode(store.instructions)

        rows = np.diff(store.episode_ends, prepend=0)
        self._texts = np.asarray(store.instructions, dtype=object)
        # The first and the final observation's row of each row's episode.
        self._first = np.repeat(store.episode_ends - rows, rows)
        self._final = np.repeat(store.episode_ends - 1, rows)
        self._reward, self._discount = self._chunk_returns(store.load("reward"), store.load("mask"))
        row = np.arange(len(self._final))
        last_start = self._final - 1
        if not every_start:
            last_start = np.where(np.repeat(store.success == 0, rows), self._final - horizon, last_start)
        self.starts = np.flatnonzero(row <= last_start)
        longest = rows.max() - 1
        if horizon > longest or not len(self.starts):
            raise InputError(
                f"{store.path}: no episode is long enough for a chunk of {horizon} actions (the longest has {longest}); choose a "
                "shorter --chunk"
            )

    def __len__(self) -> int:
        """Number of valid starts."""
        return len(self.starts)

    def _chunk_returns(self, reward: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = np.arange(len(reward))
        total, factor = np.zeros(len(reward)), np.ones(len(reward))
        for i in range(self.horizon):
            at = np.minimum(row + i, self._final)
            inside = row + i < self._final
            total += np.where(inside, factor * reward[at], 0.0)
            factor *= np.where(inside, self.discount * mask[at], 1.0)
        return total.astype(np.float32), factor.astype(np.float32)

    def batch(self, rows: np.random.Generator | np.ndarray, size: int | None = None) -> dict[str, Any]:
        """B windows: `size` drawn by a generator, or those that start at the given rows [B].

        observations, next_observations: {key: [B,...], "instruction": B strings, "instruction_embedding": float32 [B,D]}; actions:
        float32 [B,H,A], physical units; reward, discount (see above), mc_return (at the start): float32 [B]; instruction_index: int32
        [B]; rows: int64 [B].
        """
        if isinstance(rows, np.random.Generator):
            rows = self.starts[rows.integers(len(self.starts), size=size)]
        final = self._final[rows]
        chunk = np.minimum(rows[:, None] + np.arange(self.horizon), final[:, None] - 1)
        following = (
            {} if self.every_start else {"next_observations": self._observations(np.minimum(rows + self.horizon, final))}
        )
        return {
            "observations": self._observations(rows),
            **following,
            "actions": self._action[chunk],
            "reward": self._reward[rows],
            "discount": self._discount[rows],
            "mc_return": self._mc_return[rows],
            "instruction_index": self._instruction[rows],
            "rows": rows,
        }

    def _observations(self, rows: np.ndarray) -> dict[str, Any]:
        instruction = self._instruction[rows]
        episode = {"instruction": self._texts[instruction].tolist(), "instruction_embedding": self._embeddings[instruction]}
        if self.window > 1:
            back = rows[:, None] - np.arange(self.window - 1, -1, -1)
            first = self._first[rows][:, None]
            episode["timestep_pad_mask"] = back >= first
            rows = np.maximum(back, first)
        steps = {key: self._ram[key][rows] if key in self._ram else self._gather(key, rows) for key in self.keys}
        return {**steps, **episode}

    def _gather(self, key: str, rows: np.ndarray) -> np.ndarray:
        return self.store.gather(key, rows.ravel()).reshape(*rows.shape, *self.store.shape(key))
