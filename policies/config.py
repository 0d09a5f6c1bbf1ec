"""Settings of the networks here. Free of heavy imports, so that `--help` can show every default at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

ImageEncoderName = Literal["resnet_small", "resnet34"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class EncoderConfig:
    """inputs: observation keys to look at; none means what the data have: `state`, else `image_primary`, and `proprio`.

    image_encoder: small for a CPU, resnet34 as in V-GPS.
    """

    inputs: tuple[str, ...] = ()
    image_encoder: ImageEncoderName = "resnet_small"
    vector_features: int = 256


@dataclass(frozen=True)
class DiffusionConfig:
    """train_timesteps, inference_steps: length of the noising process, and DDIM steps at run time."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4
    hidden: int = 256
    blocks: int = 3
    train_timesteps: int = 100
    inference_steps: int = 10
    prediction: Literal["epsilon", "sample"] = "epsilon"
    clip_sample: float = 1.5


def config_from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config with an `encoder`, back from `dataclasses.asdict` and JSON."""
    encoder = {**values["encoder"], "inputs": tuple(values["encoder"]["inputs"])}
    return kind(**{**values, "encoder": EncoderConfig(**encoder)})
