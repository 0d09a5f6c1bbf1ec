"""Octo (2405.12213): a transformer over tokens of the instruction, goal and observations, and a diffusion head on its readout.

Opens the checkpoints of its authors (1.0 and 1.5, small and base) without jax, and trains new ones or fine-tunes those. A missing
instruction or goal, or a camera of theirs that is missing, is what it was in their training: masked, black, left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from data.normalizer import Normalizer
from policies.base import ActionSpec, Observations, ObservationSpec, SamplesOnceEncoded
from policies.checkpoint import read_config, read_tensors, resolve_checkpoint
from policies.config import OctoConfig, OctoTokensConfig
from policies.contract import DataContract
from policies.formats import octo as octo_format
from policies.formats.octo_layout import adapted_layout, new_layout
from policies.formats.octo_weights import load_parameters
from policies.history import MASK, to_tensor, windowed
from policies.networks.encoder import FEATURES, Cameras, vector_features
from policies.networks.lanczos import lanczos3
from policies.networks.octo_heads import Head, make_head
from policies.networks.octo_tokenizers import CameraTokenizer, VectorTokenizer
from policies.networks.octo_transformer import Layout, OctoInputs, OctoTransformer, initialize
from policies.networks.text_tokens import (
    SentenceTokens,
    TextTokens,
    find_text_encoder,
    make_t5,
    minilm,
    read_t5_config,
    read_tokenizer,
    t5,
)
from policies.open_x import open_x_spec

_INSTRUCTION_TOKENS = 16
_BOUND = 5.0  # Normalised actions beyond it are clipped.
_PRESENT, _TEXT = "present_", "text/"


class OctoPolicy(SamplesOnceEncoded, nn.Module):
    """Octo 1.0 and 1.5 as published, or trained here: a transformer over tokens with a diffusion head.

    See policies.base: Policy, Encodes, Trainable. Axes: B batch, K samples, H chunk, A action, T steps, D features.
    """

    family = "octo"
    config_type = OctoConfig
    head: Head
    low: torch.Tensor
    high: torch.Tensor
    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        layout: Layout,
        text: TextTokens | SentenceTokens,
        normalizers: Mapping[str, Normalizer],
        spec: ActionSpec,
        config: OctoConfig | None = None,
        contract: DataContract | None = None,
    ) -> None:
        """normalizers: of `action` and the vectors. config, contract: of a policy that is trained here, not by Octo's authors."""
        super().__init__()
        self.layout, self.text, self.normalizers = layout, text, dict(normalizers)
        self.action_spec, self.config, self.contract = spec, config, contract
        self.transformer = OctoTransformer(layout)
        seen = [module for module in self.transformer.tokenizers.values() if isinstance(module, CameraTokenizer)]
        self.cameras: Cameras | None = None
        if seen:
            # Their weights are another run's (robot_rl/vision.py), and stay as they are.
            assert contract is not None
            keys = [key for module in seen for key in module.keys]
            self.cameras = Cameras(keys, seen[0].network, contract).requires_grad_(False)
        self.head = make_head(layout.model["heads"]["action"], self.transformer.width)
        if self.head.readout not in self.transformer.readouts:
            raise InputError(
                f"the action head reads {self.head.readout!r}, but there are {', '.join(self.transformer.readouts)}"
            )
        for name, values in (("low", spec.low), ("high", spec.high)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        action = self.normalizers["action"]
        self.register_buffer("offset", torch.from_numpy(action.offset), persistent=False)
        self.register_buffer("scale", torch.from_numpy(action.scale), persistent=False)

    @classmethod
    def load(
        cls,
        location: Path,
        device: str = "cpu",
        *,
        unnorm_key: str | None = None,
        text_encoder: str | None = None,
        step: int | None = None,
        control_hz: float | None = None,
        chunk: int | None = None,
        normalization: str | None = None,
    ) -> OctoPolicy:
        """A policy of Octo's authors or of ours; InputError when it is damaged, or an option does not suit it.

        unnorm_key: the dataset whose actions to give, needed where there are several. text_encoder: folder of the T5's config and
        tokenizer; if None, the one that the checkpoint names, beside it or in the Hugging Face cache. step: None takes the newest.
        control_hz: None looks the dataset up. chunk: actions to give; all that it predicts if None. normalization: of actions, `normal`
        (mean and deviation) or `bounds` (1st and 99th percentile); what the checkpoint was trained with if None.
        """
        if not octo_format.recognizes(location):
            if any(option is not None for option in (unnorm_key, text_encoder, step, control_hz, chunk, normalization)):
                raise InputError(f"{location}: was trained here and takes no options; leave them out")
            return _load_ours(location).to(device).eval()
        if normalization not in (None, "normal", "bounds"):
            raise InputError(f"normalization={normalization}: must be normal or bounds")
        checkpoint = octo_format.read_checkpoint(location)
        bounds = checkpoint.bounds if normalization is None else normalization == "bounds"
        dataset, statistics = octo_format.read_statistics(location, unnorm_key)
        folder = Path(text_encoder) if text_encoder else find_text_encoder(checkpoint.text_encoder, location)
        t5_config = read_t5_config(folder)
        layout = replace(checkpoint.layout, language=(checkpoint.layout.language[0], int(t5_config["d_model"])))
        keys = ("action", *layout.vectors)
        normalizers = {key: octo_format.normalizer(statistics, key, bounds, location) for key in keys}
        try:
            head = make_head(layout.model["heads"]["action"], int(layout.model["token_embedding_size"]))
            action, predicted = normalizers["action"], (head.horizon, head.actions)
            if chunk is not None and not 1 <= chunk <= predicted[0]:
                raise InputError(f"chunk={chunk}: this policy predicts {predicted[0]} actions")
            if len(action.offset) > predicted[1]:
                raise InputError(
                    f"{location}: predicts {predicted[1]} dimensions; {dataset!r} has statistics of {len(action.offset)}"
                )
            ends = [action.unnormalize(np.full(len(action.offset), side, np.float32)) for side in (-head.bound, head.bound)]
            low, high = np.minimum(*ends).tolist(), np.maximum(*ends).tolist()
            spec = open_x_spec(dataset, low, high, chunk or predicted[0], control_hz)
            model = make_t5(t5_config)
            text = TextTokens(model, read_tokenizer(folder), layout.language[0], masks_padding=False)
            policy = cls(layout, text, normalizers, spec)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError(f"{location / 'config.json'}: describes no network that can be made ({what})") from error
        parameters, where = octo_format.read_parameters(location, step)
        load_parameters(policy.transformer, policy.head, model, layout, parameters, where)
        return policy.to(device).eval()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return octo_format.recognizes(path)

    @classmethod
    def create(cls, config: OctoConfig, contract: DataContract) -> OctoPolicy:
        """A policy for data of this contract: untrained, initialised by torch's global generator, or `config.pretrained`."""
        if config.pretrained is None:
            text = _language(config.encoder.language, contract)
            policy = _for_contract(new_layout(config, contract, (text.length, text.features)), text, config, contract)
            initialize([policy.transformer, policy.head])
            return policy
        base = _pretrained(config)
        text = base.text if isinstance(base.text, TextTokens) else SentenceTokens(contract.language)
        names = base.layout.model["observation_tokenizers"]
        tokenizers: dict[str, Any] = {name: base.transformer.tokenizers[f"obs_{name}"].keys for name in names}
        layout = adapted_layout(base.layout, tokenizers, config, contract, (text.length, text.features))
        policy = _for_contract(layout, text, config, contract)
        initialize([policy.transformer, policy.head])
        # New inputs, and a head for other actions, begin as they were initialised.
        own, given = policy.state_dict(), base.state_dict()
        fits = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
        policy.load_state_dict({**own, **fits})
        return policy

    def to_json(self) -> dict[str, Any]:
        """Of a policy that is trained here."""
        assert self.config is not None
        assert self.contract is not None
        config = asdict(self.config)
        if self.config.pretrained is not None:
            config["pretrained"] = str(self.config.pretrained)
        return {
            "family": self.family,
            "config": config,
            "contract": self.contract.to_json(),
            "layout": self.layout.to_json(),
            "text": self.text.to_json(),
        }

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """What is trained; and the text encoder, unless it is the installed one."""
        return {**self.state_dict(), **{_TEXT + key: value for key, value in self.text.tensors().items()}}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The observation keys that it looks at."""
        return (*self.layout.images, *self.layout.vectors)

    @property
    def observation_spec(self) -> ObservationSpec:
        spec = ObservationSpec(self.layout.images, self.layout.vectors, self.layout.window)
        return spec if self.contract is None else replace(spec, instruction=self.contract.observation_spec.instruction)

    @property
    def device(self) -> torch.device:
        return self.low.device

    def encode(self, observations: Observations) -> torch.Tensor:
        """The pooled readout of the newest step [B,D]; of a discrete head, its logits."""
        return self.head.pool(self.transformer(self.tensors(observations), self.head.readout)[:, -1])

    @torch.no_grad()
    def sample_encoded(
        self, encoding: torch.Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self._physical(self.head.sample(encoding, num_samples, len(self.offset), generator))

    def loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Of the newest step's chunk alone; the original trains those of the whole window."""
        if actions.shape[1:] != (self.head.horizon, len(self.offset)):
            wanted = f"(B, {self.head.horizon}, {len(self.offset)})"
            raise InputError(f"actions of shape {tuple(actions.shape)}; this policy learns chunks of {wanted}")
        chunks = (actions - self.offset) / self.scale
        losses = self.head.loss(self.encode(observations), chunks, generator)
        return losses if weights is None else losses * weights

    def tensors(self, observations: Observations) -> OctoInputs:
        """Raw observations as the transformer takes them.

        Beside the usual keys: `goal_image_primary`, ..., and the original's `pad_mask_dict`, by camera bool [B] (with history, [B,T]),
        False where a batch has no picture.
        """
        keys = [*self.layout.images, *self.layout.vectors]
        given = {key: observations[key] for key in (*keys, *(FEATURES + key for key in keys)) if key in observations}
        lacks = [key for key in keys if key not in given and FEATURES + key not in given]
        if lacks and (self.contract is not None or len(lacks) == len(keys)):
            has = ", ".join(sorted(observations))
            raise InputError(f"the observation lacks {lacks[0]!r}, which this policy was trained on (it has {has})")
        batch = len(next(iter(given.values())))
        for key, present in observations.get("pad_mask_dict", {}).items():
            if key in given:
                given[_PRESENT + key] = present
        goals = {key: observations[f"goal_{key}"] for key in self.layout.goals if f"goal_{key}" in observations}
        texts = list(observations.get("instruction", [""] * batch))
        given["instruction"] = texts
        if MASK in observations:
            given[MASK] = observations[MASK]
        seen = windowed(given, self.layout.window)
        language, language_mask = self.text(texts)
        if isinstance(self.text, TextTokens) and self.text.masks_padding:
            # What nobody looks at need not be computed.
            longest = max(1, int(language_mask.sum(1).max()))
            language, language_mask = language[:, :longest], language_mask[:, :longest]
        cameras: Sequence[str] = () if self.cameras is None else list(self.cameras)
        return OctoInputs(
            images={key: self._pictures(seen[key], key, 5) for key in self.layout.images if key in seen and key not in cameras},
            steps=to_tensor(seen[MASK]).to(self.device, torch.bool),
            language=language.to(self.device),
            language_mask=language_mask.to(self.device),
            goals={key: self._pictures(value, key, 4) for key, value in goals.items()},
            vectors={
                **{key: self._vector(seen[key], key) for key in self.layout.vectors if key in seen},
                **{key: self._features(seen, key, texts) for key in cameras},
            },
            present={
                key: to_tensor(seen[_PRESENT + key]).to(self.device, torch.bool)
                for key in self.layout.images
                if _PRESENT + key in seen
            },
        )

    def _physical(self, chunks: torch.Tensor) -> torch.Tensor:
        """Normalised chunks [B,K,H,A] as the actions to give."""
        chunks = chunks[:, :, : self.action_spec.chunk, : len(self.offset)]
        return (chunks * self.scale + self.offset).clamp(self.low, self.high)

    def _pictures(self, value: Any, key: str, axes: int) -> torch.Tensor:
        """uint8 at the size that the policy works at."""
        size = self.layout.images.get(key) or next(iter(self.layout.images.values()))
        return lanczos3(to_tensor(_uint8(value, key, axes)).to(self.device), size)

    def _features(self, seen: Mapping[str, Any], key: str, texts: Sequence[str]) -> torch.Tensor:
        """[B,T,F] of a camera that another run's network looks through."""
        if FEATURES + key in seen:
            return to_tensor(seen[FEATURES + key]).to(self.device).float()
        assert self.contract is not None
        assert self.cameras is not None
        frames = _uint8(seen[key], key, 5)
        embeddings = np.repeat(self.contract.language.encode(texts), frames.shape[1], axis=0)
        return self.cameras.see(key, frames.reshape(-1, *frames.shape[2:]), embeddings).unflatten(0, frames.shape[:2])

    def _vector(self, value: Any, key: str) -> torch.Tensor:
        array, size = np.asarray(value, np.float32), self.layout.vectors[key]
        if array.ndim != 3 or array.shape[2] != size:
            raise InputError(f"the observation's {key!r} has shape {array.shape}; this policy was trained on (B, T, {size})")
        tensor, normalizer = to_tensor(array).to(self.device), self.normalizers[key]
        own = any(isinstance(module, VectorTokenizer) and key in module.keys for module in self.transformer.tokenizers.values())
        return vector_features(tensor, normalizer) if own else normalizer.normalize(tensor)


def _uint8(value: Any, key: str, axes: int) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != axes or array.shape[-1] != 3 or array.dtype != np.uint8:
        shape = "(B, T, height, width, 3)" if axes == 5 else "(B, height, width, 3)"
        raise InputError(f"the observation's {key!r} is {array.dtype} {array.shape}, not uint8 {shape}")
    return array


def _language(name: str, contract: DataContract) -> TextTokens | SentenceTokens:
    if name == "sentence":
        return SentenceTokens(contract.language)
    return minilm(_INSTRUCTION_TOKENS) if name == "minilm" else t5(Path(name), _INSTRUCTION_TOKENS)


def _for_contract(layout: Layout, text: TextTokens | SentenceTokens, config: OctoConfig, contract: DataContract) -> OctoPolicy:
    contract = contract.with_chunk(config.chunk)
    normalizers = {"action": _action_normalizer(contract), **contract.vectors}
    return OctoPolicy(layout, text, normalizers, contract.action_spec, config, contract)


def _action_normalizer(contract: DataContract) -> Normalizer:
    """Standardised, as Octo's are, but so that a gripper which seldom moves is not cut off as an outlier."""
    statistics = contract.statistics.get("action")
    if statistics is None:
        return contract.action_normalizer
    standard = Normalizer.from_statistics(statistics, "mean_std")
    extremes = Normalizer.from_statistics(statistics, "min_max")
    q01, q99 = (np.asarray(statistics[name], np.float32) for name in ("q01", "q99"))
    reach = np.maximum(abs(q01 - standard.offset), abs(q99 - standard.offset)) / _BOUND
    rare = q99 - q01 < 1e-6
    offset = np.where(rare, extremes.offset, standard.offset)
    return Normalizer(offset, np.where(rare, extremes.scale, np.maximum(standard.scale, reach)))


def _pretrained(config: OctoConfig) -> OctoPolicy:
    path = config.pretrained
    assert path is not None
    if octo_format.recognizes(path):
        folder = None if config.encoder.language in ("minilm", "sentence") else config.encoder.language
        # Any dataset will do: the statistics are replaced by those of the data.
        return OctoPolicy.load(path, unnorm_key=octo_format.first_dataset(path), text_encoder=folder)
    return _load_ours(resolve_checkpoint(path))


def _load_ours(checkpoint: Path) -> OctoPolicy:
    """The policy of a step folder; InputError if it is damaged."""
    values, tensors = read_config(checkpoint), read_tensors(checkpoint, "model")
    try:
        contract = DataContract.from_json(values["contract"], tensors.pop("language_table").numpy())
        config = _config_from_json(values["config"])
        saved = {key.removeprefix(_TEXT): tensors.pop(key) for key in list(tensors) if key.startswith(_TEXT)}
        kind = values["text"]["kind"]
        text = TextTokens.from_json(values["text"], saved) if kind == "included" else _language(kind, contract)
        policy = _for_contract(Layout.from_json(values["layout"]), text, config, contract)
        policy.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{checkpoint}: not an octo policy of this version ({str(error).splitlines()[0]})") from error
    return policy


def _config_from_json(values: Mapping[str, Any]) -> OctoConfig:
    encoder = OctoTokensConfig(**{**values["encoder"], "inputs": tuple(values["encoder"]["inputs"])})
    pretrained = values["pretrained"]
    return OctoConfig(**{**values, "encoder": encoder, "pretrained": None if pretrained is None else Path(pretrained)})
