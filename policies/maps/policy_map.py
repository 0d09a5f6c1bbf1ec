"""PolicyMap: turns the observations and actions of another client, server or checkpoint into ours, and back.

A map is a JSON file, or the name of one in `presets/`:

    {"about": "what it is for",
     "observation": {"image_primary": {"key": "observation/image", "layout": "HWC", "values": "uint8"},
                     "proprio": {"parts": [{"key": "observation/state", "slice": [0, 6]}, {"key": "gripper", "size": 1}]},
                     "instruction": {"key": ["prompt", "task"]}},
     "actions": {"frame": "end_effector_delta_base", "control_hz": 20,
                 "segments": [{"theirs": [0, 3], "names": ["x", "y", "z"], "unit": "m", "low": -0.05, "high": 0.05, "scale": 0.05}]}}

Image, Piece, Text (entries.py), Segment and Reference (actions.py) say what may stand in each part. Without `actions` they stay as
they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from policies.base import ActionSpec, ObservationSpec
from policies.maps.actions import ActionMap
from policies.maps.fields import Fields
from policies.maps.grippers import StickyGripper
from policies.maps.observations import ObservationMap

_PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class PolicyMap:
    """Observations are single, without B; actions have any leading axes, the last before D being the chunk's.

    proprio: ours, [P] or with the actions' first axes; needed only by maps between positions and motions. A map with a memory (a
    sticky gripper) maps actions only in a `session`, one an episode.
    """

    name: str
    observation: ObservationMap
    actions: ActionMap | None
    source: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, values: Any, name: str = "map") -> PolicyMap:
        """InputError names the field that is wrong; `name` stands for the file there."""
        fields = Fields(values, name)
        fields.text("about", "")
        observation = ObservationMap.read(Fields(fields.take("observation"), f"{name}: observation"), fields.flag("nested"))
        actions = fields.take("actions", None)
        mapped = None if actions is None else ActionMap.read(Fields(actions, f"{name}: actions"))
        fields.done()
        return cls(name, observation, mapped, dict(values))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return json.loads(json.dumps(self.source))

    @property
    def observation_spec(self) -> ObservationSpec:
        """What the map asks of ours, as far as it knows."""
        return self.observation.spec

    def observation_from_theirs(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """InputError, one line, for an entry that is missing or of another kind than the map says."""
        return self.observation.from_theirs(theirs)

    def observation_to_theirs(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        return self.observation.to_theirs(ours)

    def actions_from_theirs(self, actions: np.ndarray, proprio: np.ndarray | None = None) -> np.ndarray:
        """[..., D] -> [..., A] in our physical units; float64 stays float64, all else becomes float32."""
        return np.asarray(actions) if self.actions is None else self._memoryless().from_theirs(actions, proprio, {})

    def actions_to_theirs(self, actions: np.ndarray, proprio: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(actions) if self.actions is None else self._memoryless().to_theirs(actions, proprio, {})

    def action_spec(self, chunk: int) -> ActionSpec:
        """What our actions mean; InputError where the map leaves actions as they are."""
        if self.actions is None:
            raise InputError(f"{self.name}: this map does not say what actions mean; add 'actions' to a file of your own")
        return self.actions.spec(chunk)

    def has_memory(self) -> bool:
        return self.actions is not None and bool(self.actions.grippers())

    def session(self) -> PolicyMap | MapSession:
        """For one episode: the map itself where it remembers nothing."""
        return MapSession(self) if self.has_memory() else self

    def _memoryless(self) -> ActionMap:
        assert self.actions is not None
        if self.has_memory():
            raise InputError(
                f"{self.name}: this map remembers the gripper over an episode; a session of it maps actions, not the map"
            )
        return self.actions


class MapSession:
    """A map with a memory in one episode, which goes on by every action that is mapped, once a way: map what is executed.

    Several chunks side by side ([K,H,D]) are alternatives: all begin as the episode stands, and the first is what happened.
    """

    def __init__(self, policy_map: PolicyMap) -> None:
        if policy_map.actions is None:
            raise InputError(f"{policy_map.name}: this map has no actions to remember")
        self.map, self._actions = policy_map, policy_map.actions
        self._given: Mapping[str, StickyGripper] = self._actions.grippers()
        self._received: Mapping[str, StickyGripper] = self._actions.grippers()

    def observation_from_theirs(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        return self.map.observation_from_theirs(theirs)

    def observation_to_theirs(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        return self.map.observation_to_theirs(ours)

    def actions_from_theirs(self, actions: np.ndarray, proprio: np.ndarray | None = None) -> np.ndarray:
        return self._actions.from_theirs(actions, proprio, self._received)

    def actions_to_theirs(self, actions: np.ndarray, proprio: np.ndarray | None = None) -> np.ndarray:
        return self._actions.to_theirs(actions, proprio, self._given)

    def action_spec(self, chunk: int) -> ActionSpec:
        return self.map.action_spec(chunk)


def presets() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.json")))


def load_map(name_or_path: Path | str) -> PolicyMap:
    """A preset by its name, or a JSON file; InputError when there is neither, or the file is wrong (it says which field)."""
    name = str(name_or_path)
    path = _PRESETS / f"{name}.json" if name in presets() else Path(name)
    if not path.is_file():
        raise InputError(f"{name!r} is neither a map file nor a preset; presets are {', '.join(presets())}")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    return PolicyMap.from_json(values, name)
