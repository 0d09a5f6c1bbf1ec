"""What K samples cost: each family as it samples, against the naive ways, K calls of one or K copies of the observation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from data.language import LanguageEncoder
from data.normalizer import Normalizer
from policies.base import ActionSpec, Observations, ObservationSpec, Policy, observation_spec
from policies.config import AutoregressiveConfig, DiffusionConfig, EncoderConfig, FlowConfig, GaussianConfig
from policies.contract import DataContract

CANDIDATES = (1, 10, 50, 100)


def bench_sampling(policy: Policy, repeats: int = 5, naive: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each K on one thread, JSON-ready: milliseconds (median), ratio to K = 1, and how much dearer the naive ways are.

    The variants of K take turns, so that a machine whose speed drifts slows them all alike. The naive ways are timed once.
    """
    torch.set_num_threads(1)
    seen = observation_spec(policy).example()
    policy.sample(seen, 2)
    times: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    for _ in range(repeats):
        for k, spent in times.items():
            spent.append(_seconds(lambda k=k: policy.sample(seen, k)))  # type: ignore[misc]
    one = statistics.median(times[CANDIDATES[0]])
    for k, spent in times.items():
        median = statistics.median(spent)
        row = {"k": k, "milliseconds": 1e3 * median, "ratio": median / one}
        if naive and k > 1:
            calls = _seconds(lambda k=k: [policy.sample(seen, 1) for _ in range(k)])  # type: ignore[misc]
            copies = _seconds(lambda k=k: policy.sample(_copies(seen, k), 1))  # type: ignore[misc]
            row |= {"calls_milliseconds": 1e3 * calls, "copies_milliseconds": 1e3 * copies}
            row |= {"calls_ratio": calls / median, "copies_ratio": copies / median}
        yield row


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _copies(observations: Observations, k: int) -> dict[str, Any]:
    return {key: value * k if key == "instruction" else np.repeat(value, k, axis=0) for key, value in observations.items()}


_CAMERA = EncoderConfig(inputs=("image_primary", "proprio"), image_encoder="resnet34")


def examples(families: Sequence[str] = ()) -> dict[str, Callable[[], Policy]]:
    """Builders of an untrained policy of each family, of a size that people run; InputError for a family there is none of."""
    builders: dict[str, Callable[[], Policy]] = {
        "gaussian": lambda: _ours(GaussianConfig(_CAMERA)),
        "diffusion": lambda: _ours(DiffusionConfig(_CAMERA, chunk=16, denoiser="unet", hidden=128)),
        "flow": lambda: _ours(FlowConfig(_CAMERA, chunk=16, denoiser="unet", hidden=128)),
        "autoregressive": lambda: _ours(AutoregressiveConfig(_CAMERA, hidden=256, layers=6, heads=8)),
    }
    for family in families:
        if family not in builders:
            raise InputError(f"--families {family}: there are {', '.join(builders)}")
    return {name: build for name, build in builders.items() if not families or name in families}


def _ours(config: Any) -> Policy:
    """An untrained policy for a 128x128 camera, seven numbers of proprioception and seven of action."""
    from policies.loading import family_class

    torch.manual_seed(0)
    one = np.ones(7, np.float32)
    spec = ActionSpec(tuple("xyzabc") + ("gripper",), ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "made_up", 5.0, config.chunk)
    language = LanguageEncoder("dataset", {ObservationSpec().instruction: np.ones(384, np.float32)})
    unit = Normalizer(0 * one, one)
    contract = DataContract(spec, unit, {"proprio": unit}, {"image_primary": (128, 128)}, language, ("made up",))
    return family_class(config.family).create(config, contract).eval()
