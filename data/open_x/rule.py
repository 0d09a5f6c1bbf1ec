"""Rule: how to read one dataset, as data. From a robot_rl.json, from what the format itself says, or from the Open-X registry.

    {"action": {"names", "units", "low", "high", "frame", "control_hz"},
     "observations": {our key: their key, or parts (of a camera: data.open_x.parts.Camera)}, "actions": their key or parts,
     "instruction": their text key or {"text": "..."}, "reward": their key, "terminated": their key,
     "success": a metadata key, {"step": key}, {"reward": threshold} or {"metadata": key, "contains": text},
     "camera_flags": {our camera: metadata flag}, "skip": ["no instruction", "failures"], "first_step": 1, "every": 5,
     "notes": ["for people"]}

A null `reward` or `terminated` means that the data do not say. Only `action` and `observations` are required. data.open_x.parts says
what parts are; none of this is code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.episode import check_action
from data.errors import InputError
from data.formats.base import DESCRIPTION_FILE, Feature
from data.formats.description import description_file, merge_description
from data.open_x.parts import Camera, Part, parse_parts

SKIP = ("no instruction", "failures")
_FIELDS = {
    *("action", "observations", "actions", "instruction", "reward", "terminated", "success"),
    *("camera_flags", "skip", "first_step", "every", "notes"),
}


@dataclass(frozen=True)
class Rule:
    """See the module. observations holds the vectors, cameras the images; a None reward, terminated or success is not in the data.

    instruction: a step feature, or "" where `text` is the instruction of every episode. success: (kind, key, value), kind one of
    "metadata", "step", "reward", "contains". first_step, every: which steps are read.
    """

    action: dict[str, Any]
    actions: tuple[Part, ...]
    observations: dict[str, tuple[Part, ...]]
    cameras: dict[str, Camera]
    instruction: str = ""
    text: str = ""
    reward: str | None = None
    terminated: str | None = None
    success: tuple[str, str, Any] = ("metadata", "success", None)
    camera_flags: dict[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    first_step: int = 0
    every: int = 1
    notes: tuple[str, ...] = ()

    @property
    def reads(self) -> dict[str, set[str]]:
        """Our key ("action", "reward", ... too) -> the step features that it is made of."""
        parts = {"action": self.actions, **self.observations}
        made = {ours: {name for part in pieces for name in part.features} for ours, pieces in parts.items()}
        made |= {ours: {camera.key} for ours, camera in self.cameras.items()}
        of_success = self.success[1] if self.success[0] == "step" else None
        single = {"instruction": self.instruction, "reward": self.reward, "terminated": self.terminated, "success": of_success}
        return made | {ours: {name} for ours, name in single.items() if name}

    @property
    def changes(self) -> tuple[str, ...]:
        """What standardisation does to the data, a line each, for people."""
        lines = [f"action: {line}" for part in self.actions for line in part.changes()]
        for key, parts in self.observations.items():
            lines += [f"{key}: {line}" for part in parts for line in part.changes()]
        for key, camera in self.cameras.items():
            lines += [f"{key}: {line}" for line in camera.changes()]
        lines += [f"the first {self.first_step} steps of an episode are left out"] if self.first_step else []
        lines += [f"only every {self.every}th step is read"] if self.every > 1 else []
        lines.append(
            "an episode of N observations has N-1 transitions: an action of the last one has no outcome and is left out"
        )
        lines += [f"episodes left out: {what}" for what in self.skip]
        return (*lines, *self.notes)


def rule_for(dataset: Any, description: str | Path | None = None) -> Rule:
    """The rule of a dataset: `description` (a file) over the dataset's own, else the registry's. InputError tells what is wrong."""
    values: dict[str, Any] | None
    if description is not None:
        where, values = str(description), merge_description(dataset.description or {}, read_description(Path(description)))
    elif dataset.description is not None:
        where, values = str(description_file(dataset.path) or dataset.path), dataset.description
    else:
        from data.open_x.registry import registry

        where, values = f"{dataset.path} (the registry's {dataset.name})", registry().get(dataset.name)
    if values is None:
        raise InputError(
            f"{dataset.path}: no description of dataset {dataset.name!r}; write {DESCRIPTION_FILE} beside it, which `robot-rl data "
            f"inspect --draft {DESCRIPTION_FILE}` drafts; its step features are {', '.join(sorted(dataset.features))}"
        )
    return make_rule(values, dataset.features, where)


def read_description(path: Path) -> dict[str, Any]:
    """A robot_rl.json. InputError when it is missing or no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: no description of a dataset can be read there ({error.strerror}); give a {DESCRIPTION_FILE}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable description of a dataset, for it is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {json.dumps(values)[:40]}, expected a JSON object as in the README")
    return values


def make_rule(values: dict[str, Any], features: Mapping[str, Feature], where: str) -> Rule:
    """Parse a description and hold it against the features of a dataset. InputError names the field, and the features there are."""
    unknown = sorted(set(values) - _FIELDS)
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(map(repr, unknown))}; there are {', '.join(sorted(_FIELDS))}")
    action, observations = check_action(values.get("action"), where), values.get("observations")
    if not isinstance(observations, dict) or not observations:
        raise InputError(f'{where}: `observations` must map our names to step features, as {{"proprio": "observation/state"}}')
    cameras = {
        ours: Camera.parse(theirs, f"{where}: {ours}") for ours, theirs in observations.items() if ours.startswith("image_")
    }
    instruction = values.get("instruction", "language_instruction")
    fixed = isinstance(instruction, dict)
    named = instruction.get("text") if fixed else instruction
    if not isinstance(named, str) or not named.strip():
        raise InputError(
            f'{where}: `instruction` is {instruction!r}; it must be a step feature or {{"text": "what the task is"}}'
        )
    rule = Rule(
        action=action,
        actions=parse_parts(values.get("actions", "action"), f"{where}: actions"),
        observations={
            ours: parse_parts(theirs, f"{where}: {ours}") for ours, theirs in observations.items() if ours not in cameras
        },
        cameras=cameras,
        instruction="" if fixed else named,
        text=named if fixed else "",
        reward=_optional(values, "reward", "reward", features, where),
        terminated=_optional(values, "terminated", "is_terminal", features, where),
        success=_success(values.get("success", "success"), where),
        camera_flags=_flags(values.get("camera_flags", {}), where),
        skip=_skip(values.get("skip", []), where),
        first_step=_count(values, "first_step", 0, where),
        every=_count(values, "every", 1, where),
        notes=_notes(values.get("notes", []), where),
    )
    _check_features(rule, features, where)
    return rule


def _check_features(rule: Rule, features: Mapping[str, Feature], where: str) -> None:
    missing = sorted(set().union(*rule.reads.values()) - set(features))
    if missing:
        raise InputError(f"{where}: needs step features {', '.join(missing)}, has {', '.join(sorted(features))}")
    for ours, camera in rule.cameras.items():
        if features[camera.key].kind != "image":
            raise InputError(f"{where}: {ours} is {camera.key}, which holds no images but {features[camera.key].kind}s")
    for part in (*rule.actions, *(part for parts in rule.observations.values() for part in parts)):
        for name in part.features:
            if features[name].kind != "tensor":
                raise InputError(f"{where}: {name} holds {features[name].kind}s, a part needs numbers")


def _optional(values: dict[str, Any], name: str, default: str, features: Mapping[str, Feature], where: str) -> str | None:
    # A default that is not there means that the data do not say; one that the user named must be there.
    value = values.get(name, default if default in features else None)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: `{name}` is {value!r}; it must be a step feature, or null where the data do not say")
    return value


def _flags(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(flag, str) for flag in value.values()):
        raise InputError(f"{where}: `camera_flags` is {value!r}; it must map our cameras to metadata keys")
    return value


def _notes(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(f"{where}: `notes` is {value!r}; it must be a list of texts")
    return tuple(map(str, value))


def _success(value: Any, where: str) -> tuple[str, str, Any]:
    if isinstance(value, str):
        return "metadata", value, None
    if isinstance(value, dict) and set(value) == {"reward"} and isinstance(value["reward"], (int, float)):
        return "reward", "", float(value["reward"])
    if isinstance(value, dict) and set(value) == {"metadata", "contains"}:
        return "contains", str(value["metadata"]), str(value["contains"])
    if isinstance(value, dict) and set(value) == {"step"}:
        return "step", str(value["step"]), None
    raise InputError(
        f"{where}: `success` is {value!r}; it must be a metadata key, "
        '{"step": key}, {"reward": threshold} or {"metadata": key, "contains": text}'
    )


def _skip(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not set(value) <= set(SKIP):
        raise InputError(f"{where}: `skip` is {value!r}; it may list {', '.join(map(repr, SKIP))}")
    return tuple(value)


def _count(values: dict[str, Any], name: str, least: int, where: str) -> int:
    value = values.get(name, least)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{where}: `{name}` is {value!r}; it must be a whole number of at least {least}")
    return value
