"""One look for both: where policy and critic took their camera networks over from the same run (`--vision`), nobody looks twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from policies.base import Observations, Policy, observation_spec
from policies.history import MASK
from policies.networks.encoder import FEATURES, Cameras
from robot_rl.critic import Critic


def shared_cameras(policy: Policy, critic: Critic) -> tuple[str, ...]:
    """The cameras that both look at through the very same networks; none where the policy looks back in time."""
    ours, theirs = getattr(critic, "cameras", None), getattr(policy, "cameras", None)
    if not isinstance(ours, Cameras) or not isinstance(theirs, Cameras) or observation_spec(policy).window > 1:
        return ()
    return tuple(key for key in ours if key in theirs and _same(ours, theirs, key))


@torch.no_grad()
def look_once(cameras: Cameras, keys: Sequence[str], observations: Observations) -> Observations:
    """With what these cameras see beside their frames; as they are where an observation came without some of them."""
    if MASK in observations or any(key not in observations for key in (*keys, "instruction")):
        return observations
    embeddings = cameras.contract.language.encode(list(observations["instruction"]))
    return {**observations, **{FEATURES + key: _look(cameras, key, observations[key], embeddings) for key in keys}}


def _look(cameras: Cameras, key: str, frames: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    return np.asarray(cameras.see(key, frames, embeddings).cpu())


def _same(ours: Cameras, theirs: Cameras, key: str) -> bool:
    """Weights, size of the frames, and the language that conditions them."""
    if ours.network != theirs.network or ours.contract.images[key] != theirs.contract.images[key]:
        return False
    if ours.contract.language.model != theirs.contract.language.model:
        return False
    own, other = ours[key].state_dict(), theirs[key].state_dict()
    return all(torch.equal(value, other[name].to(value.device)) for name, value in own.items())
