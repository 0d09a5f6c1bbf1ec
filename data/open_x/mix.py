"""Mixtures of datasets by name and weight: `bridge:1.0,fractal:0.54`, with the aliases and named mixtures of mixes.json."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import InputError


@cache
def _known() -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "mixes.json").read_text(encoding="utf-8"))
    return values


def named_mixes() -> dict[str, dict[str, float]]:
    """Mixture -> {dataset: weight}, as published (Octo, OpenVLA)."""
    return _known()["mixes"]


def resolve(name: str) -> str:
    """The dataset that an alias stands for (`fractal` -> `fractal20220817_data`); any other name as it is."""
    return str(_known()["aliases"].get(name, name))


def parse_mix(text: str) -> list[tuple[str, float]]:
    """`name[:weight],...` -> [(dataset, weight)], weight 1 by default; a named mixture stands for its datasets.

    Names that are in no list are datasets of the user's own. InputError for bad syntax, a weight that is no positive number, and a
    dataset that comes twice.
    """
    result: dict[str, float] = {}
    for entry in text.split(","):
        name, colon, number = (piece.strip() for piece in entry.partition(":"))
        weight = _weight(number, entry, text) if colon else 1.0
        if not name:
            raise InputError(f"--mix {text!r}: {entry!r} names no dataset; write name:weight,name:weight")
        for dataset, share in named_mixes().get(name, {resolve(name): 1.0}).items():
            if dataset in result:
                raise InputError(f"--mix {text!r}: {dataset} comes twice; give each dataset one weight")
            result[dataset] = share * weight
    return list(result.items())


def _weight(number: str, entry: str, text: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"--mix {text!r}: the weight of {entry.strip()!r} must be a positive number")
    return weight
