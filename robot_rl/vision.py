"""Camera networks taken over from another run, as they are: frames are looked at once, before training, and never again.

On a CPU nine tenths of training with cameras is the cameras' networks. What one run has learned to see serves others, of whatever
family, on data of the same cameras; a critic's can come from a policy that was cloned from the critic's own data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from data.store.store import Store
from policies.checkpoint import read_config, read_tensors, resolve_checkpoint
from policies.networks.encoder import FEATURES, ObservationEncoder

_FRAMES = 256
_CAMERAS = "encoder.cameras."
LookProgress = Callable[[int, "int | None"], None]
"""Called with (frames done, frames in all)."""
Derived = dict[str, dict[str, np.ndarray]]


def take_cameras(encoder: ObservationEncoder, run: Path | str) -> None:
    """Give an encoder the camera networks of a run, frozen. InputError when the run has not these cameras, at this size."""
    checkpoint = resolve_checkpoint(run)
    values, tensors = read_config(checkpoint), read_tensors(checkpoint, "model")
    contract, theirs = values.get("contract", {}), values.get("config", {}).get("encoder", {})
    given = {
        "network": theirs.get("image_encoder"),
        "language model": contract.get("language", {}).get("model"),
        **{key: tuple(size) for key, size in contract.get("images", {}).items()},
    }
    wanted: dict[str, Any] = {"network": encoder.config.image_encoder, "language model": encoder.contract.language.model}
    wanted |= {key: encoder.contract.images[key] for key in encoder.image_keys}
    for what, value in wanted.items():
        if given.get(what) != value:
            raise InputError(
                f"--vision {run}: its {what} is {given.get(what)}, {value} is needed; give a run on the same cameras"
            )
    state = encoder.cameras.state_dict()
    try:
        encoder.cameras.load_state_dict({key: tensors[_CAMERAS + key] for key in state})
    except (KeyError, RuntimeError) as error:
        raise InputError(f"--vision {run}: damaged, or of another version ({str(error).splitlines()[0]})") from error
    encoder.cameras.requires_grad_(False)


@torch.inference_mode()
def features_of(encoder: ObservationEncoder, store: Store, progress: LookProgress | None = None) -> Derived:
    """Camera -> {its name among the observations: float16 [rows, F]}, by the encoder's networks; what `ChunkSampler` calls derived.

    They are of each episode's own instruction.
    """
    table, rows = store.language.encode(store.instructions), store.rows
    numbers, result = store.load("instruction_index"), {}
    for index, key in enumerate(encoder.image_keys):
        seen = []
        for start in range(0, rows, _FRAMES):
            at = np.arange(start, min(start + _FRAMES, rows))
            seen.append(encoder.features(key, store.gather(key, at), table[numbers[at]]).half().cpu().numpy())
            if progress is not None:
                progress(index * rows + int(at[-1]) + 1, len(encoder.image_keys) * rows)
        result[key] = {FEATURES + key: np.concatenate(seen)}
    return result
