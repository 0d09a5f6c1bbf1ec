"""Where a dataset's robot_rl.json is: within its folder, or beside its file, for this file alone or for the whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.episode import ACTION_FIELDS
from data.formats.base import DESCRIPTION_FILE


def find_description(path: Path) -> dict[str, Any] | None:
    """The robot_rl.json of a dataset, or None. InputError when it is damaged."""
    from data.open_x.rule import read_description

    found = description_file(path)
    return None if found is None else read_description(found)


def description_file(path: Path) -> Path | None:
    """Where the robot_rl.json of a dataset is.

    Of a folder: within it. Of anything, in this order: `<name>.robot_rl.json` beside it, and robot_rl.json beside it (that of all the
    datasets of a folder); `name` is the path's without .hdf5, .zarr, .zarr.zip.
    """
    stem = path.name.removesuffix(".zip").rpartition(".")[0] or path.name
    places = [path / DESCRIPTION_FILE] if path.is_dir() else []
    places += [path.parent / f"{stem}.{DESCRIPTION_FILE}", path.parent / DESCRIPTION_FILE]
    return next((place for place in places if place.is_file()), None)


def merge_description(derived: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the format itself says, field by field (of the action too) overruled by what the user says.

    None when nobody has said what is required of the action. Notes are of what was derived, so they go when an action is given.
    """
    ours, theirs = derived.get("action", {}), (given or {}).get("action", {})
    if given is None:
        return derived if set(ours) == set(ACTION_FIELDS) else None
    description = {**derived, **given, "action": {**ours, **theirs} if isinstance(theirs, dict) else theirs}
    if theirs and "notes" not in given:
        description.pop("notes", None)
    return description
