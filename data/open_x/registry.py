"""The registry of Open-X datasets: registry.json, a description (as in robot_rl.json) a dataset, read once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def registry() -> dict[str, dict[str, Any]]:
    """Dataset name (as dataset_info.json has it) -> its description."""
    values: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "registry.json").read_text(encoding="utf-8"))
    return values
