"""DataContract: what a model was trained on, hence what it must be given. It travels inside every checkpoint of ours.

Policies and critics hold one each and never share it: an action passes from one to the other in physical units only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from data.language import LanguageEncoder
from data.normalizer import Kind, Normalizer
from policies.base import ActionSpec, ObservationSpec
from policies.checkpoint import read_config, read_tensors

ACTION_NORMALIZATION: Kind = "quantile"


@dataclass(frozen=True)
class DataContract:
    """Action meaning, normalisers, input shapes, language model and provenance of one trained model.

    vectors: normaliser of each vector input (`proprio`, `state`). images: (height, width) of each camera. statistics: the dataset's
    own, per key. reward: the data's convention and `discount` per control step. mixed: of a model that was trained on several datasets,
    each with its own normalisation, their {"action": description, "statistics": per key} by name; the first is the model's own. moved:
    where the model acts on another one's robot, by what each vector is brought to where it would lie in the first one's units.
    """

    action_spec: ActionSpec
    action_normalizer: Normalizer
    vectors: dict[str, Normalizer]
    images: dict[str, tuple[int, int]]
    language: LanguageEncoder
    datasets: tuple[str, ...]
    reward: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    mixed: dict[str, Any] = field(default_factory=dict)
    moved: dict[str, tuple[Normalizer, Normalizer]] = field(default_factory=dict)

    @classmethod
    def from_stores(cls, stores: Sequence[Any], chunk: int, inputs: tuple[str, ...]) -> DataContract:
        """The contract of a model trained on a mixture, each dataset normalised by its own statistics; it acts as in the first one."""
        contract = cls.from_store(stores[0], chunk, inputs)
        if len(stores) == 1:
            return contract
        table = {text: vector for store in reversed(stores) for text, vector in store.language.table.items()}
        names = [store.name for store in stores]
        if len(set(names)) < len(names):
            names = [store.path.name for store in stores]  # several stores of one dataset
        if len(set(names)) < len(names):
            raise InputError(f"two of the stores are called {names[0]!r}; give their folders different names")
        mixed = {name: {"action": s.action, "statistics": s.statistics} for name, s in zip(names, stores, strict=True)}
        language = LanguageEncoder(contract.language.model, table)
        return replace(contract, language=language, datasets=tuple(mixed), mixed=mixed)

    def for_dataset(self, name: str) -> DataContract:
        """The same model on the robot of another dataset of its mixture. InputError when it saw none of that name."""
        if name not in self.mixed:
            raise InputError(
                f"the model was trained on {', '.join(self.datasets)}, not on {name!r}; choose one of them as dataset"
            )
        entry = self.mixed[name]
        statistics = entry["statistics"]
        return replace(
            self,
            action_spec=ActionSpec.from_json({**entry["action"], "chunk": self.action_spec.chunk}),
            action_normalizer=Normalizer.from_statistics(statistics["action"], ACTION_NORMALIZATION),
            moved={key: (Normalizer.from_statistics(statistics[key], "mean_std"), own) for key, own in self.vectors.items()},
            statistics=statistics,
        )

    def own_units(self, key: str, values: torch.Tensor) -> torch.Tensor:
        """A vector observation [...,D] of the robot at hand in the units that the model was trained in."""
        if key not in self.moved:
            return values
        theirs, own = self.moved[key]
        return own.unnormalize(theirs.normalize(values))

    @classmethod
    def from_store(cls, store: Any, chunk: int, inputs: tuple[str, ...]) -> DataContract:
        """The contract of a model with these `inputs`, trained on a `data.Store` with chunks of `chunk` actions."""
        images = {key: (store.shape(key)[0], store.shape(key)[1]) for key in inputs if key.startswith("image_")}
        vectors = {
            key: Normalizer.from_statistics(store.statistics[key], "mean_std") for key in inputs if not key.startswith("image_")
        }
        return cls(
            action_spec=ActionSpec.from_json({**store.action, "chunk": chunk}),
            action_normalizer=Normalizer.from_statistics(store.statistics["action"], ACTION_NORMALIZATION),
            vectors=vectors,
            images=images,
            language=store.language,
            datasets=(store.name,),
            reward=store.reward,
            statistics=dict(store.statistics),
        )

    @property
    def observation_spec(self) -> ObservationSpec:
        vectors = {key: len(normalizer.offset) for key, normalizer in self.vectors.items()}
        return ObservationSpec(self.images, vectors, instruction=next(iter(self.language.table)))

    def to_json(self) -> dict[str, Any]:
        return {
            "action_spec": self.action_spec.to_json(),
            "action_normalizer": self.action_normalizer.to_json(),
            "vectors": {key: value.to_json() for key, value in self.vectors.items()},
            "images": {key: list(value) for key, value in self.images.items()},
            "language": {"model": self.language.model, "instructions": list(self.language.table)},
            "datasets": list(self.datasets),
            "reward": self.reward,
            "statistics": self.statistics,
            "mixed": self.mixed,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], embeddings: np.ndarray) -> DataContract:
        """embeddings: float32 [N,L], row i for instruction i of the language table."""
        language = values["language"]
        table = dict(zip(language["instructions"], embeddings, strict=True))
        return cls(
            action_spec=ActionSpec.from_json(values["action_spec"]),
            action_normalizer=Normalizer.from_json(values["action_normalizer"]),
            vectors={key: Normalizer.from_json(value) for key, value in values["vectors"].items()},
            images={key: (value[0], value[1]) for key, value in values["images"].items()},
            language=LanguageEncoder(language["model"], table),
            datasets=tuple(values["datasets"]),
            reward=values["reward"],
            statistics=values["statistics"],
            mixed=values.get("mixed", {}),
        )

    def embeddings(self) -> np.ndarray:
        """The language table as float32 [N,L], in the order of `to_json`."""
        return np.stack(list(self.language.table.values())).astype(np.float32)

    def with_chunk(self, chunk: int) -> DataContract:
        return replace(self, action_spec=replace(self.action_spec, chunk=chunk))


Module = TypeVar("Module", bound=nn.Module)


def load_trained(
    checkpoint: Path, what: str, build: Callable[[Mapping[str, Any], DataContract], Module], dataset: str | None = None
) -> Module:
    """The model of a step folder: `build` makes it from its config and contract, then its weights are loaded. InputError if damaged.

    dataset: of a model trained on a mixture, whose robot it shall act on or judge.
    """
    values, tensors = read_config(checkpoint), read_tensors(checkpoint, "model")
    try:
        contract = DataContract.from_json(values["contract"], tensors.pop("language_table").numpy())
        contract = contract.for_dataset(dataset) if dataset else contract
        module = build(values["config"], contract)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{checkpoint}: not a {what} of this version ({str(error).splitlines()[0]})") from error
    if wrong := _first_wrong(module.state_dict(), tensors):
        raise InputError(f"{checkpoint / 'model.safetensors'}: {wrong}; the checkpoint is damaged, or of another version")
    module.load_state_dict(tensors)
    return module.eval()


def _first_wrong(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str | None:
    for key in (*expected, *given):
        if key not in given:
            return f"lacks {key!r}"
        if key not in expected:
            return f"has an unknown {key!r}"
        ours, theirs = expected[key], given[key]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"{key!r} is {theirs.dtype} {tuple(theirs.shape)}, not {ours.dtype} {tuple(ours.shape)}"
        if theirs.is_floating_point() and not theirs.isfinite().all():
            return f"{key!r} has values that are not finite"
    return None
