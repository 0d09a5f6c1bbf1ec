"""Settings of the networks here. Free of heavy imports, so that `--help` can show every default at once.

The comments are what `--help` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from data.errors import NONNEGATIVE, POSITIVE, RATE, InputError, check_settings

ImageEncoderName = Literal["resnet_small", "resnet34"]
DenoiserName = Literal["mlp", "unet", "transformer"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class EncoderConfig:
    """How observations are encoded."""

    inputs: tuple[str, ...] = ()  # observation keys; none means --vision's cameras, else state, else image_primary; and proprio
    image_encoder: ImageEncoderName = "resnet_small"  # small for a CPU; resnet34 is V-GPS's
    vision: str | None = None  # a run of `train vision`, whose camera networks are taken over as they are: minutes on a CPU
    vector_features: int = 128  # width of the branch for proprio and state

    def __post_init__(self) -> None:
        check_settings(self, vector_features=POSITIVE)
        _check_inputs(self.inputs)


@dataclass(frozen=True)
class GaussianConfig:
    """The Gaussian policy."""

    family: ClassVar[str] = "gaussian"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4  # actions predicted together, H
    hidden: int = 256
    blocks: int = 3  # residual blocks of the head
    min_std: float = 0.01  # least standard deviation, in units of the data's range

    def __post_init__(self) -> None:
        check_settings(self, chunk=POSITIVE, hidden=POSITIVE, blocks=NONNEGATIVE, min_std=RATE)


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion policy."""

    family: ClassVar[str] = "diffusion"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4  # actions predicted together, H
    denoiser: DenoiserName = "mlp"  # mlp for short chunks on a CPU; unet and transformer are Chi et al.'s
    hidden: int = 256
    blocks: int = 3  # of the denoiser: residual blocks, layers, or levels of the UNet
    train_timesteps: int = 100  # length of the noising process
    inference_steps: int = 10  # DDIM steps at run time
    prediction: Literal["epsilon", "sample"] = "epsilon"  # what the denoiser predicts
    clip_sample: float = 1.5  # bound of a denoised action, in units of the data's range

    def __post_init__(self) -> None:
        check_settings(self, chunk=POSITIVE, hidden=POSITIVE, blocks=NONNEGATIVE, train_timesteps=POSITIVE, clip_sample=RATE)
        check_settings(self, inference_steps=(1, self.train_timesteps))


@dataclass(frozen=True)
class FlowConfig:
    """The flow-matching policy."""

    family: ClassVar[str] = "flow"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4  # actions predicted together, H
    denoiser: DenoiserName = "mlp"  # the velocity field's network, as for diffusion
    hidden: int = 256
    blocks: int = 3  # of the network: residual blocks, layers, or levels of the UNet
    inference_steps: int = 10  # Euler steps at run time

    def __post_init__(self) -> None:
        check_settings(self, chunk=POSITIVE, hidden=POSITIVE, blocks=NONNEGATIVE, inference_steps=POSITIVE)


@dataclass(frozen=True)
class AutoregressiveConfig:
    """The action-token policy."""

    family: ClassVar[str] = "autoregressive"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chunk: int = 4  # actions predicted together, H
    bins: int = 256  # action tokens: equal bins of the data's range
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    prefix: int = 8  # tokens that the encoded observation becomes
    temperature: float = 1.0  # of sampling

    def __post_init__(self) -> None:
        check_settings(self, chunk=POSITIVE, bins=(2, 65536), hidden=POSITIVE, layers=POSITIVE, heads=POSITIVE, prefix=POSITIVE)
        check_settings(self, temperature=RATE)
        if self.hidden % (2 * self.heads):
            raise InputError(f"--hidden is {self.hidden}; it must be a multiple of twice the {self.heads} heads")


@dataclass(frozen=True)
class CameraConfig:
    """What it looks at."""

    inputs: tuple[str, ...] = ("image_primary",)  # the one camera's key

    def __post_init__(self) -> None:
        if len(self.inputs) != 1 or not self.inputs[0].startswith("image_"):
            raise InputError(f"--inputs is {' '.join(self.inputs) or 'empty'}; it must be one camera, such as image_primary")


@dataclass(frozen=True)
class OpenVLAConfig:
    """OpenVLA, fine-tuned by LoRA. The defaults are those of PA-RL (2412.06685)."""

    family: ClassVar[str] = "openvla"
    pretrained: Path  # folder of the OpenVLA checkpoint to begin with; it is needed again whenever the result is loaded
    encoder: CameraConfig = field(default_factory=CameraConfig)
    chunk: int = 1  # actions predicted together, H, as one row of tokens
    lora_rank: int = 32  # of the adapters, which are on every linear layer but the output's
    lora_alpha: int = 16  # the adapters' scale is alpha / rank
    lora_dropout: float = 0.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the frozen weights; auto is bfloat16 where there is a GPU
    temperature: float = 1.0  # of sampling; 0 takes the likeliest token

    def __post_init__(self) -> None:
        check_settings(
            self, chunk=POSITIVE, lora_rank=POSITIVE, lora_alpha=POSITIVE, lora_dropout=(0, 0.99), temperature=(0, 1e6)
        )


@dataclass(frozen=True)
class OctoTokensConfig:
    """What becomes tokens."""

    inputs: tuple[str, ...] = ()  # observation keys; none means --vision's cameras, else state, else image_primary; and proprio
    window: int = 1  # control steps that it looks back on, this one included
    language: str = "minilm"  # minilm: tokens of the installed encoder; sentence: the data's own embedding; or a T5's folder
    vision: str | None = None  # a run of `train vision`: what its camera networks see is a token a camera, in place of patches
    image_encoder: ImageEncoderName = "resnet_small"  # the network of that run

    def __post_init__(self) -> None:
        check_settings(self, window=POSITIVE)
        _check_inputs(self.inputs)


@dataclass(frozen=True)
class OctoConfig:
    """The Octo policy (2405.12213), from nothing or fine-tuned."""

    family: ClassVar[str] = "octo"
    encoder: OctoTokensConfig = field(default_factory=OctoTokensConfig)
    chunk: int = 4  # actions predicted together, H
    size: Literal["tiny", "small", "base"] = "tiny"  # tiny for a CPU; the others are Octo's
    width: int | None = None  # features of a token; the size's own if None, as with the next two
    layers: int | None = None
    heads: int | None = None
    diffusion_steps: int = 20
    noise_draws: int = 4  # noises that an example is trained on at once
    pretrained: Path | None = None  # checkpoint to fine-tune, of Octo's authors or ours; its sizes and language are kept

    def __post_init__(self) -> None:
        check_settings(self, chunk=POSITIVE, diffusion_steps=POSITIVE, noise_draws=POSITIVE)
        if self.pretrained is not None and self.encoder.vision is not None:
            raise InputError(
                "--vision is for an octo that begins from nothing: --pretrained brings its own; leave one of them out"
            )
        for name in ("width", "layers", "heads"):
            if getattr(self, name) is not None:
                check_settings(self, **{name: POSITIVE})


def _check_inputs(inputs: tuple[str, ...]) -> None:
    if len(set(inputs)) != len(inputs):
        raise InputError(f"--inputs names one twice: {' '.join(inputs)}")


def config_from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config with an `encoder`, back from `dataclasses.asdict` and JSON."""
    encoder = {**values["encoder"], "inputs": tuple(values["encoder"]["inputs"])}
    return kind(**{**values, "encoder": EncoderConfig(**encoder)})
