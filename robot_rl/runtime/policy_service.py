"""PolicyService: a policy of ours behind the protocol. Observations are checked, mapped, given their history, and sampled."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from data.errors import InputError
from policies.base import ObservationSpec, Policy, observation_spec
from policies.history import MASK, History, has_window
from policies.remote import latest_proprio, spec_to_json
from robot_rl.runtime.batching import Batcher

MAX_SAMPLES = 256
MAX_INSTRUCTION = 4096


class PolicyService:
    """Serves `policy`. Of an observation `num_samples` asks for K chunks [K,H,D], `seed` for samples that depend on nothing else, and
    `reset` (or a new connection) begins an episode; without them the reply has one chunk [H,D], as openpi's have.
    """

    def __init__(
        self, policy: Policy, policy_map: Any = None, map_name: str | None = None, seed: int = 0, identity: str | None = None
    ) -> None:
        """identity: what tells this policy from any other that might be served at this address."""
        self.policy, self.map, self._identity = policy, policy_map, identity
        self.spec = observation_spec(policy)
        self.batcher = Batcher(policy, seed)
        self._map_name = map_name

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "robot_rl": {
                "version": version("robot-rl"),
                "action_spec": self.policy.action_spec.to_json(),
                "observation_spec": spec_to_json(self.spec),
                "max_samples": MAX_SAMPLES,
                "seeded": True,
                "map": self._map_name,
                "policy": self._identity,
            }
        }

    async def start(self) -> None:
        self.batcher.warm_up()

    def session(self) -> PolicySession:
        return PolicySession(self)

    async def close(self) -> None:
        self.batcher.close()


class PolicySession:
    """One connection: its episode's history, where the policy looks back."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service
        self._history: History | None = None
        self._map = service.map

    async def answer(self, observation: dict[str, Any], message: bytes) -> dict[str, Any]:
        service = self._service
        wanted = observation.pop("num_samples", None)
        num_samples = 1 if wanted is None else _integer("num_samples", wanted, 1, MAX_SAMPLES)
        seed = observation.pop("seed", None)
        seed = None if seed is None else _integer("seed", seed, 0, 2**63 - 1)
        if observation.pop("reset", False) or self._history is None:
            self._begin()
        ours = observation if self._map is None else self._map.observation_from_theirs(observation)
        ours = checked(ours, service.spec)
        if service.spec.window > 1 and MASK not in ours:
            assert self._history is not None
            self._history.append(ours)
            ours = self._history.observation()
        sampled = await service.batcher.sample(ours, num_samples, seed)
        actions = sampled.actions
        if self._map is not None:
            # Several chunks are alternatives, of which a map with a memory takes the first for what happens.
            actions = np.asarray(self._map.actions_to_theirs(actions, latest_proprio(ours)), np.float32)
        reply: dict[str, Any] = {
            "actions": actions[0] if wanted is None else actions,
            "server_timing": {"infer_ms": 1e3 * sampled.seconds},
        }
        if sampled.values is not None:
            value, candidates = sampled.values
            reply["steering"] = {"steered": True, "candidates": len(candidates), "value": value}
        return reply

    async def close(self) -> None:
        pass

    def _begin(self) -> None:
        self._history = History(self._service.spec.window)
        # A map with a memory, such as a sticky gripper's, begins anew with the episode too.
        self._map = None if self._service.map is None else self._service.map.session()


def checked(observation: Mapping[str, Any], spec: ObservationSpec) -> dict[str, Any]:
    """One observation by our names (no batch axis), with what the spec names; InputError says which entry is missing or misshapen.

    A window that the client keeps itself comes with `timestep_pad_mask` [T] and an axis T before the others. Cameras may be missing:
    some policies can do without, and those that cannot say so.
    """
    windowed = MASK in observation
    axes = 1 if windowed else 0
    kept: dict[str, Any] = {}
    for key, value in observation.items():
        if key == "instruction":
            if not isinstance(value, str):
                raise InputError(f"'instruction' must be text, not {type(value).__name__}")
            if len(value) > MAX_INSTRUCTION:
                raise InputError(f"'instruction' has {len(value)} characters; at most {MAX_INSTRUCTION} are read")
            kept[key] = str(value)
        elif key == MASK:
            kept[key] = _array(key, value, 1).astype(bool)
        elif key.startswith("image_") and (key in spec.images or not spec.images):
            kept[key] = _image(key, value, axes)
        elif key.startswith("goal_image_"):
            kept[key] = _image(key, value, 0)
        elif key in spec.vectors:
            kept[key] = _vector(key, value, spec.vectors[key], axes)
        elif not (spec.images or spec.vectors) and isinstance(value, np.ndarray):
            kept[key] = value
    if "instruction" not in kept:
        raise InputError(f"the observation has no 'instruction'; it has {_names(observation)}")
    for key in spec.vectors:
        if key not in kept:
            raise InputError(f"the observation has no {key!r}; it has {_names(observation)}")
    if spec.images and not any(key in kept for key in spec.images):
        raise InputError(f"the observation has no {next(iter(spec.images))!r}; it has {_names(observation)}")
    if windowed and any(len(value) != len(kept[MASK]) for key, value in kept.items() if has_window(key)):
        raise InputError(f"with {MASK!r} every entry must have as many steps as it has, {len(kept[MASK])}")
    return kept


def _image(key: str, value: Any, axes: int) -> np.ndarray:
    array = _array(key, value, axes + 3)
    if array.dtype.char != "B" or array.shape[-1] != 3 or not array.size:
        raise InputError(
            f"{key!r} must be uint8 with axes {'T' * axes}HWC, 3 channels, not {array.dtype} of {list(array.shape)}"
        )
    return np.ascontiguousarray(array)  # torch takes no turned pictures


def _vector(key: str, value: Any, size: int, axes: int) -> np.ndarray:
    array = _array(key, value, axes + 1)
    if array.dtype.kind not in "fiub" or array.shape[-1] != size or not array.size:
        raise InputError(f"{key!r} must be {size} numbers, not {array.dtype} of {list(array.shape)}")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{key!r} has entries that are not finite")
    return array


def _array(key: str, value: Any, axes: int) -> np.ndarray:
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except ValueError:
        raise InputError(f"{key!r} is not an array: its rows differ in length") from None
    if array.ndim != axes:
        raise InputError(f"{key!r} must have {axes} axes, without one for the batch, not the shape {list(array.shape)}")
    return array


def _integer(key: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InputError(f"{key!r} must be a whole number from {low} to {high}, not {str(value)[:40]}")
    return int(value)


def _names(observation: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(observation)[:12])) or "nothing"
