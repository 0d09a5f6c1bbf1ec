"""OpenVLA (Kim et al. 2406.09246) from its Hugging Face folder, with no code of the folder's: `openvla:FOLDER?unnorm_key=DATASET`.

An action is one token per dimension. The picture and the prompt are read once, whatever the number of samples
(policies/networks/shared_prefix.py), and only action tokens can be drawn, where the original clips whatever else it drew. A folder
with an OFT action head beside the weights becomes a policies.openvla_oft.OFTPolicy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, Policy, SamplesOnceEncoded
from policies.checkpoint import read_config, read_tensors
from policies.config import CameraConfig, OpenVLAConfig
from policies.contract import DataContract
from policies.formats.openvla import (
    PictureProcessor,
    Prompter,
    Range,
    read_openvla_config,
    read_pixels,
    read_prompts,
    read_range,
    read_statistics,
)
from policies.history import latest
from policies.networks.oft import is_oft
from policies.networks.prismatic import Prismatic, load_prismatic
from policies.networks.shared_prefix import Prefix, hidden_states, prefill, sample_tokens, score_tokens
from policies.open_x import open_x_spec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STOP = 2  # `</s>`, which training appends to every action


class OpenVLAPolicy(SamplesOnceEncoded, nn.Module):
    """OpenVLA, which draws an action token by token, and OpenVLA-OFT, which regresses a chunk.

    See policies.base: Policy, Encodes, Trainable, HasLogProb. Axes: B batch, K samples, H chunk, A action, V action tokens.
    """

    family = "openvla"
    config_type = OpenVLAConfig
    values: torch.Tensor
    edges: torch.Tensor

    def __init__(
        self,
        model: Prismatic,
        folder: Path,
        spec: ActionSpec,
        unit: Range,
        observation_spec: ObservationSpec,
        *,
        prompt: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> None:
        """unit: what -1 and 1 mean in each dimension of an action."""
        super().__init__()
        if temperature < 0:
            raise InputError(f"temperature={temperature}: must be 0 (the likeliest tokens) or more")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}: must be 1 or more")
        self.model, self.unit, self.action_spec, self.observation_spec = model, unit, spec, observation_spec
        self.temperature, self.top_k = temperature, top_k
        self.prompter, self.pictures = Prompter(folder, prompt), PictureProcessor(folder)
        self.adapted: tuple[OpenVLAConfig, DataContract] | None = None
        config = read_openvla_config(folder)
        bins = int(config["n_action_bins"])
        # The vocabulary's end is padding; before it, the rarest tokens stand for the bins, the first bin last.
        self.first = model.decoder.config.vocab_size - int(config["pad_to_multiple_of"]) - bins
        if not 2 <= bins <= self.first + bins:
            raise InputError(f"{folder / 'config.json'}: {bins} action bins do not fit the vocabulary")
        edges = np.linspace(-1, 1, bins)
        # 256 edges have 255 centres: two tokens mean the last.
        centres = ((edges[:-1] + edges[1:]) / 2)[np.minimum(np.arange(bins)[::-1], bins - 2)]
        values = unit.unnormalize(np.repeat(centres[:, None], spec.dim, axis=1)).clip(spec.low, spec.high)
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("edges", torch.tensor(edges), persistent=False)

    @classmethod
    def load(
        cls,
        location: Path,
        device: str = "cpu",
        *,
        unnorm_key: str | None = None,
        prompt: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        dtype: str = "auto",
        device_map: str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        control_hz: float | None = None,
        cameras: str | None = None,
        chunk: int | None = None,
        pretrained: Path | None = None,
    ) -> Policy:
        """The policy of OpenVLA's folder, or of a step folder that fine-tuning here wrote; InputError where something is wrong.

        unnorm_key: the dataset whose units the actions are in; needed where the checkpoint knows several. prompt: `default` or
        `v01`, by the folder's name if None. temperature: 0 takes the likeliest tokens, so that all samples are alike; 1, or what it
        was fine-tuned with, if None. top_k: draws from the k likeliest tokens. dtype: `auto` is float32 on a CPU and bfloat16
        elsewhere. device_map (`auto`, ...), load_in_4bit, load_in_8bit: the language model is loaded by transformers with accelerate
        and bitsandbytes. control_hz: if the table of policies.open_x is wrong. cameras, chunk: of OFT alone, see
        policies.openvla_oft. pretrained: where the model now is that was fine-tuned here.
        """
        if load_in_4bit and load_in_8bit:
            raise InputError("load_in_4bit and load_in_8bit exclude each other; choose one")
        bits = 4 if load_in_4bit else 8 if load_in_8bit else None
        if read_config(location).get("family") == cls.family:
            if (unnorm_key, prompt, device_map, bits, cameras, chunk, control_hz) != (None,) * 7:
                raise InputError(f"{location}: was fine-tuned here; its options are temperature, top_k, dtype and pretrained")
            return cls._load_adapted(location, device, dtype, temperature, top_k, pretrained)
        precision, config = _dtype(dtype, device), read_openvla_config(location)
        dataset, statistics = read_statistics(location, config, unnorm_key)
        if is_oft(location):
            from policies.openvla_oft import OFTPolicy

            model = load_prismatic(location, config, device, precision, device_map, bits)
            return OFTPolicy(model, location, dataset, statistics, prompt, control_hz, cameras, chunk)
        if cameras is not None or chunk is not None:
            raise InputError(
                f"{location}: cameras and chunk are for OFT checkpoints; there is no action_head--*_checkpoint.pt here"
            )
        unit = read_range(statistics, "action", location)
        low, high = (unit.unnormalize(np.full(len(unit.low), side)) for side in (-1.0, 1.0))
        spec = open_x_spec(dataset, low, high, chunk=1, control_hz=control_hz)
        pictures = ObservationSpec({"image_primary": PictureProcessor(location).size})
        model = load_prismatic(location, config, device, precision, device_map, bits)
        heat = 1.0 if temperature is None else temperature
        policy = cls(model, location, spec, unit, pictures, prompt=prompt, temperature=heat, top_k=top_k)
        policy.values, policy.edges = policy.values.to(model.device), policy.edges.to(model.device)
        return policy.eval()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the folder's config.json is OpenVLA's."""
        try:
            config = json.loads((path / "config.json").read_text())
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and config.get("model_type") == "openvla"

    @classmethod
    def create(cls, config: OpenVLAConfig, contract: DataContract) -> OpenVLAPolicy:
        """The pretrained model with adapters that change nothing yet, for data of this contract, in whose quantiles the bins now lie.

        torch's global generator initialises the adapters.
        """
        return cls._with_adapters(config, contract, _dtype(config.dtype, "cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def _with_adapters(
        cls, config: OpenVLAConfig, contract: DataContract, precision: torch.dtype, top_k: int | None = None
    ) -> OpenVLAPolicy:
        folder = config.pretrained
        if not folder.is_dir():
            raise InputError(f"--pretrained {folder}: there is no such folder; give that of an OpenVLA checkpoint")
        if not cls.recognizes(folder):
            raise InputError(f"--pretrained {folder}: holds no OpenVLA checkpoint, whose config.json has model_type openvla")
        if is_oft(folder):
            raise InputError(f"--pretrained {folder}: is an OFT checkpoint, which draws no tokens; give an OpenVLA one")
        model = load_prismatic(folder, read_openvla_config(folder), "cpu", precision)
        _add_adapters(model, config)
        contract = contract.with_chunk(config.chunk)
        normalizer = contract.action_normalizer
        offset, scale = normalizer.offset.astype(np.float64), normalizer.scale.astype(np.float64)
        unit = Range(offset - scale, offset + scale, np.ones(len(offset), bool))
        pictures = ObservationSpec({key: contract.images[key] for key in config.encoder.inputs})
        policy = cls(model, folder, contract.action_spec, unit, pictures, temperature=config.temperature, top_k=top_k)
        policy.adapted = (config, contract)
        return policy.eval()

    @classmethod
    def _load_adapted(
        cls,
        location: Path,
        device: str,
        dtype: str,
        temperature: float | None,
        top_k: int | None,
        pretrained: Path | None,
    ) -> OpenVLAPolicy:
        values, tensors = read_config(location), read_tensors(location, "model")
        try:
            contract = DataContract.from_json(values["contract"], tensors.pop("language_table").numpy())
            config = OpenVLAConfig(
                **{
                    **values["config"],
                    "pretrained": pretrained or Path(values["config"]["pretrained"]),
                    "encoder": CameraConfig(tuple(values["config"]["encoder"]["inputs"])),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{location}: not an openvla policy of this version ({str(error).splitlines()[0]})") from error
        if not config.pretrained.is_dir():
            raise InputError(
                f"{location}: was fine-tuned from {config.pretrained}, which is gone; say where by pretrained=FOLDER"
            )
        precision = _dtype(config.dtype if dtype == "auto" else dtype, device)
        policy = cls._with_adapters(config, contract, precision, top_k)
        policy.temperature = config.temperature if temperature is None else temperature
        expected = policy.checkpoint_tensors()
        wrong = [key for key in {**expected, **tensors} if _shape(expected, key) != _shape(tensors, key)]
        if wrong:
            raise InputError(
                f"{location}: its adapters do not fit {config.pretrained} ({wrong[0]}); give what it was trained from"
            )
        policy.load_state_dict(tensors, strict=False)
        return policy.to(device)

    def to_json(self) -> dict[str, Any]:
        config, contract = self._adapted()
        saved = {**asdict(config), "pretrained": str(config.pretrained.resolve())}
        return {"family": self.family, "config": saved, "contract": contract.to_json()}

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """The adapters; all else is in the pretrained folder."""
        return {name: parameter for name, parameter in self.named_parameters() if "lora_" in name}

    def _adapted(self) -> tuple[OpenVLAConfig, DataContract]:
        if self.adapted is None:
            raise InputError("this OpenVLA has no adapters to train; begin with `robot-rl train policy --policy openvla`")
        return self.adapted

    @property
    def device(self) -> torch.device:
        return self.values.device

    def encode(self, observations: Observations) -> Prefix:
        embeddings, mask, _ = self._sequence(observations)
        return prefill(self.model.decoder, embeddings, mask)

    @torch.no_grad()
    def sample_encoded(self, encoding: Prefix, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        spec = self.action_spec
        indices = sample_tokens(
            self.model.decoder,
            self._head,
            self._embed,
            encoding,
            num_samples,
            spec.chunk * spec.dim,
            temperature=self.temperature,
            top_k=self.top_k,
            generator=generator,
        )
        indices = indices.unflatten(-1, (spec.chunk, spec.dim)).to(self.device)
        return self.values[indices, torch.arange(spec.dim, device=self.device)]

    def log_prob(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        """Log-probability of the actions' tokens among all action tokens, at temperature 1: float32 [B,K] of chunks [B,K,H,A]."""
        prefix, bins = self.encode(observations), self.bins(actions).flatten(2)
        return score_tokens(self.model.decoder, self._head, self._embed, prefix, bins).sum(-1)

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Mean cross-entropy of the action tokens and the `</s>` after them, over the whole vocabulary, as OpenVLA is trained."""
        targets = F.pad(self.bins(actions).flatten(1) + self.first, (0, 1), value=_STOP).to(self.model.device)
        embeddings, mask, starts = self._sequence(observations, targets[:, :-1])
        hidden = hidden_states(self.model.decoder, embeddings, mask)
        # A position predicts the next token.
        where = (starts - 1)[:, None] + torch.arange(targets.shape[1], device=starts.device)
        logits = self.model.language_model.lm_head(
            torch.take_along_dim(hidden, where[..., None].to(hidden.device), dim=1)
        ).float()
        losses = F.cross_entropy(logits.mT, targets.to(logits.device), reduction="none").mean(-1).to(self.device)
        return losses if weights is None else losses * weights

    def bins(self, actions: torch.Tensor) -> torch.Tensor:
        """int64 [...,A] of actions [...,A] in physical units: places among the action tokens, as OpenVLA's tokenizer puts them."""
        # In float32, as theirs, so that the upper end of the data is exactly 1.
        normalized = self.unit.normalize(actions.to(self.device, torch.float32)).clamp(-1, 1)
        return len(self.edges) - torch.bucketize(normalized.double(), self.edges, right=True)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [...,V] of the action tokens alone."""
        weight = self.model.language_model.lm_head.weight[self.first : self.first + len(self.edges)]
        return F.linear(hidden.to(weight.device), weight).float()

    def _embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(indices + self.first)

    def _sequence(
        self, observations: Observations, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        seen = latest(observations)
        pixels = read_pixels(seen, tuple(self.observation_spec.images), self.pictures)
        tail = None if tokens is None else self.model.embed_tokens(tokens)
        return self.model.sequence(read_prompts(seen, self.prompter), self.model.embed_images(pixels), tail)


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise InputError(f"dtype={name}: must be auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _add_adapters(model: Prismatic, config: OpenVLAConfig) -> None:
    """LoRA on every linear layer but the output's, as the original fine-tunes; all else stays frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith("lm_head")]
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules=targets
    )
    inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            # Steps of the optimiser would be lost in bfloat16's rounding.
            parameter.data = parameter.data.float()


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None
