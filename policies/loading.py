"""`load_policy`: opens whatever `robot-rl train policy` wrote, by the family that its checkpoint names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from data.errors import InputError
from policies.base import Policy
from policies.checkpoint import read_config, resolve_checkpoint

FAMILIES = {"diffusion": "policies.diffusion:DiffusionPolicy"}


def load_policy(path: Path | str, device: str = "cpu") -> Policy:
    """Load a trained policy from its run folder (or one step of it); InputError when there is none or it is damaged."""
    checkpoint = resolve_checkpoint(path)
    family = read_config(checkpoint).get("family")
    if family not in FAMILIES:
        raise InputError(f"{path}: holds a {family!r}, not a policy; known families: {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    return getattr(import_module(module), name).load(checkpoint).to(device)
