"""Formats: one file a reader, one a writer. A reader knows its format and nothing of what the features mean (`data.open_x` does)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from data.errors import InputError

FORMATS = {
    "rlds": "data.formats.rlds:RldsDataset",
    "lerobot": "data.formats.lerobot:LeRobotDataset",
    "robomimic": "data.formats.robomimic:RobomimicDataset",
    "diffusion_policy": "data.formats.diffusion_policy:DiffusionPolicyDataset",
    "minari": "data.formats.minari:MinariDataset",
}
"""name -> module:class, each a `data.formats.base.Dataset`; asked in this order whether they recognise a path."""


def open_format(path: str | Path) -> Any:
    """The dataset at a path, by the first reader that recognises it. InputError when there is none, or it is damaged."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a dataset ({', '.join(FORMATS)})")
    for target in FORMATS.values():
        module, name = target.split(":")
        reader = getattr(import_module(module), name)
        if reader.recognizes(path):
            return reader.open(path)
    raise InputError(
        f"{path}: not a dataset of a known format ({', '.join(FORMATS)}); give the folder with dataset_info.json (RLDS), the folder "
        "above meta/info.json (LeRobot), an .hdf5 file (robomimic), a .zarr folder or .zarr.zip, or a Minari dataset folder"
    )
