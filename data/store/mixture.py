"""MixtureSampler: one batch from several stores. Open-X mixtures by weight, offline with online data by ratio.

Datasets of different robots are each normalised by their own statistics: an action of another dataset is moved to where it would lie in
the first one's physical units, so that a model has one normaliser, that of the first dataset, and sees every dataset through its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.errors import InputError
from data.normalizer import Kind, Normalizer
from data.store.sampler import ChunkSampler


class MixtureSampler:
    """Draws each window from one of the samplers, with `probabilities` [N]. `batch` is that of a ChunkSampler."""

    def __init__(
        self, samplers: Sequence[ChunkSampler], probabilities: Sequence[float], normalization: Kind | None = None
    ) -> None:
        """normalization: of the actions, where each dataset has its own; None where all are of one robot. InputError when the stores do
        not fit together."""
        weights = np.asarray(probabilities, np.float64)
        if len(samplers) != len(weights) or not len(samplers) or (weights < 0).any() or not weights.sum():
            raise InputError(
                f"a mixture of {len(samplers)} datasets needs as many weights, not all 0, got {list(probabilities)}"
            )
        self.samplers, self.probabilities = list(samplers), weights / weights.sum()
        for sampler in self.samplers[1:]:
            _check_fit(self.samplers[0], sampler)
        self._scales = [
            _scales(self.samplers[0], sampler, normalization) if normalization and index else {}
            for index, sampler in enumerate(self.samplers)
        ]

    @classmethod
    def weighted(cls, samplers: Sequence[ChunkSampler], weights: Sequence[float], normalization: Kind) -> MixtureSampler:
        """An Open-X mixture: a dataset is drawn from in proportion to its weight times its size, as Octo balances its mixtures."""
        sizes = [weight * len(sampler) for weight, sampler in zip(weights, samplers, strict=True)]
        return cls(samplers, sizes, normalization)

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.samplers)

    def refresh(self) -> bool:
        """See what writers of the stores have committed since; whether there was anything."""
        return sum(sampler.refresh() for sampler in self.samplers) > 0

    def batch(self, generator: np.random.Generator, size: int) -> dict[str, Any]:
        """`size` windows, in the order of the samplers."""
        # The whole part of each share is certain, the rest is drawn: exact ratios, and unbiased.
        shares = self.probabilities * size
        counts = np.floor(shares).astype(int)
        left = size - int(counts.sum())
        if left:
            rest = shares - counts
            counts += generator.multinomial(left, rest / rest.sum())
        parts = []
        for index, (sampler, count) in enumerate(zip(self.samplers, counts, strict=True)):
            if count:
                part = sampler.batch(generator, int(count))
                self._rescale(part, index)
                parts.append(part)
        return _concatenate(parts)

    def _rescale(self, part: dict[str, Any], index: int) -> None:
        for key, (theirs, ours) in self._scales[index].items():
            if key == "action":
                part["actions"] = ours.unnormalize(theirs.normalize(part["actions"]))
                continue
            for when in ("observations", "next_observations"):
                if when in part:
                    part[when][key] = ours.unnormalize(theirs.normalize(part[when][key]))


def _scales(reference: ChunkSampler, sampler: ChunkSampler, normalization: Kind) -> dict[str, tuple[Normalizer, Normalizer]]:
    """(theirs, ours) of the action and of each vector, which models standardise (see policies/contract.py)."""
    kinds: dict[str, Kind] = {"action": normalization}
    kinds |= {key: "mean_std" for key in sampler.keys if not key.startswith("image_")}
    return {
        key: (
            Normalizer.from_statistics(sampler.store.statistics[key], kind),
            Normalizer.from_statistics(reference.store.statistics[key], kind),
        )
        for key, kind in kinds.items()
    }


def _check_fit(first: ChunkSampler, other: ChunkSampler) -> None:
    a, b = first.store, other.store
    where = f"{b.path} cannot be mixed with {a.path}"
    if a.action["names"] != b.action["names"]:
        raise InputError(f"{where}: actions {b.action['names']}, not {a.action['names']}")
    if a.attributes["language_model"] != b.attributes["language_model"]:
        theirs, ours = b.attributes["language_model"], a.attributes["language_model"]
        raise InputError(f"{where}: instructions embedded by {theirs}, not {ours}; convert with one --language")
    if a.reward != b.reward and not first.every_start:
        raise InputError(f"{where}: rewards {b.reward}, not {a.reward}; convert with one --gamma, --success-steps and --reward")
    if set(first.keys) != set(other.keys):
        raise InputError(
            f"{where}: inputs {', '.join(other.keys)}, not {', '.join(first.keys)}; choose common ones with --inputs"
        )
    for key in first.keys:
        if a.shape(key) != b.shape(key):
            how = "convert with one --image-size" if key.startswith("image_") else "choose other --inputs"
            raise InputError(f"{where}: {key} is {b.shape(key)}, not {a.shape(key)}; {how}")


def _concatenate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    if len(parts) == 1:
        return parts[0]
    result: dict[str, Any] = {}
    for key, value in parts[0].items():
        values = [part[key] for part in parts]
        if isinstance(value, dict):
            result[key] = _concatenate(values)
        elif isinstance(value, list):
            result[key] = [item for part in values for item in part]
        else:
            result[key] = np.concatenate(values)
    return result
