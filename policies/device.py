"""The device of a model, by its name."""

from __future__ import annotations

import torch

from data.errors import InputError


def device_of(name: str) -> torch.device:
    """cpu, cuda, cuda:1 ...; `auto` is a GPU where there is one. InputError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({str(error).splitlines()[0]}); use cpu") from error
