"""The network of OpenVLA (2406.09246), a Prismatic VLM (2402.07865): one or two vision transformers of timm, a projector, a Llama.

Modules bear the checkpoint's names, so that its keys are ours. Every key is loaded or known to be unused; any other is an error.
Weights are read shard by shard into modules without memory: a checkpoint never needs twice its size.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from data.torchvision_repair import repair_torchvision

# What features come before: the last block (they are those of the block before it), the final norm, the pooling head.
_UNUSED = r"vision_backbone\.(fused_)?featurizer\.(blocks\.{last}|norm|attn_pool)\."
# Old versions of transformers saved what is computed from the config.
_COMPUTED = re.compile(r"language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$")


class VisionBackbone(nn.Module):
    """timm models named by the config, side by side; the second, where there is one, is the `fused_featurizer`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        import timm

        names = config["timm_model_ids"]
        count = 2 if config["use_fused_vision_backbone"] else 1
        # Only cut-down checkpoints name sizes of their own.
        sizes = config.get("timm_model_kwargs") or [{}] * count
        activations = config.get("timm_override_act_layers") or [None] * count
        vits = []
        for i in range(count):
            arguments = {**sizes[i], **({"act_layer": activations[i]} if activations[i] else {})}
            vits.append(
                timm.create_model(names[i], pretrained=False, num_classes=0, img_size=config["image_sizes"][i], **arguments)
            )
        self.featurizer: Any = vits[0]
        if count == 2:
            self.fused_featurizer: Any = vits[1]

    @property
    def vits(self) -> list[Any]:
        return [self.featurizer, self.fused_featurizer] if hasattr(self, "fused_featurizer") else [self.featurizer]

    @property
    def width(self) -> int:
        return sum(vit.embed_dim for vit in self.vits)

    def drop_unused(self) -> None:
        """Free what no feature depends on. Afterwards the features are the last block's."""
        for vit in self.vits:
            vit.blocks = vit.blocks[:-1]
            vit.norm, vit.attn_pool = nn.Identity(), None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features [N,patches,width] of pixels [N,3 or 6,h,w]: those of the last block that is left, without prefix tokens."""
        features = [
            vit.forward_intermediates(own, indices=1, norm=False, output_fmt="NLC", intermediates_only=True)[0]
            for vit, own in zip(self.vits, pixels.split(3, dim=1), strict=True)
        ]
        return torch.cat(features, dim=-1)


class Projector(nn.Module):
    """Features to embeddings of the language model: three layers behind two backbones, two behind one."""

    def __init__(self, width: int, output: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * width if fused else output
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, output)
        if fused:
            self.fc3 = nn.Linear(output, output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return self.fc3(F.gelu(x)) if hasattr(self, "fc3") else x


class Prismatic(nn.Module):
    """vision_backbone, projector and language_model, as a checkpoint names them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        repair_torchvision()
        from transformers import LlamaForCausalLM

        self.vision_backbone = VisionBackbone(config)
        text = llama_config(config)
        self.projector = Projector(self.vision_backbone.width, text.hidden_size, config["use_fused_vision_backbone"])
        self.language_model: Any = LlamaForCausalLM(text)

    @property
    def decoder(self) -> Any:
        return self.language_model.model

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B,n*patches,D] of n pictures each, pixels [B,n,C,h,w], one after the other."""
        features = self.vision_backbone(pixels.flatten(0, 1).to(self.projector.fc1.weight.device, self.dtype))
        return self.projector(features).unflatten(0, pixels.shape[:2]).flatten(1, 2).to(self.device)

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder.embed_tokens(ids.to(self.device))

    def sequence(
        self, prompts: Sequence[Sequence[int]], inserted: torch.Tensor, tail: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Each row: the prompt's BOS, what is inserted [B,N,D], the rest of the prompt, the tail [B,T,D], and padding.

        Returns embeddings [B,P,D], a mask bool [B,P] (None without padding), and int64 [B], where the tail begins.
        """
        rows = []
        for i, prompt in enumerate(prompts):
            words = self.embed_tokens(torch.tensor(prompt))
            rows.append(torch.cat([words[:1], inserted[i], words[1:]] + ([] if tail is None else [tail[i]])))
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = None
        if int(lengths.min()) < embeddings.shape[1]:
            mask = torch.arange(embeddings.shape[1], device=self.device) < lengths[:, None]
        return embeddings, mask, lengths - (0 if tail is None else tail.shape[1])


def llama_config(config: Mapping[str, Any]) -> Any:
    """The language model's settings; what the checkpoint does not say is transformers' default, as it was for its authors."""
    from transformers import LlamaConfig

    text = dict(config.get("text_config") or {})
    if text.pop("model_type", "llama") != "llama":
        raise InputError(f"text_config.model_type is {config['text_config']['model_type']!r}; only Llama models are read here")
    for key in ("torch_dtype", "dtype", "_name_or_path", "architectures", "transformers_version"):
        text.pop(key, None)
    return LlamaConfig(**text)


def build(config: Mapping[str, Any]) -> Prismatic:
    """The network without memory for its weights, whole: every key of a checkpoint is a key of its `state_dict` (see `to_theirs`)."""
    with torch.device("meta"):
        return Prismatic(config)


def to_theirs(key: str) -> str:
    """A checkpoint's name of our key: transformers would have taken `gamma` for something else."""
    return re.sub(r"(\.ls\d)\.gamma$", r"\1.scale_factor", key)


def is_unused(key: str, model: Prismatic) -> bool:
    """Whether a checkpoint has this key for nothing. model: whole, as `build` makes it."""
    if _COMPUTED.match(key):
        return True
    vision = model.vision_backbone
    vit = vision.fused_featurizer if key.startswith("vision_backbone.fused") else vision.featurizer
    return re.match(_UNUSED.replace("{last}", str(len(vit.blocks) - 1)), key) is not None


def check_keys(shapes: Mapping[str, Sequence[int]], model: Prismatic, where: Path) -> None:
    """Hold a checkpoint's keys and shapes against the network; InputError names one that is missing, surplus or of another shape."""
    expected = {to_theirs(key): tuple(value.shape) for key, value in model.state_dict().items()}
    missing = [key for key in expected if key not in shapes]
    surplus = [key for key in shapes if key not in expected and not _COMPUTED.match(key)]
    for keys, what in ((missing, "lacks"), (surplus, "has an unknown")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{where}: {what} {keys[0]!r}{more}; its config.json is of another model, or its files are not complete"
            )
    for key, shape in expected.items():
        if tuple(shapes[key]) != shape:
            raise InputError(f"{where}: {key!r} has shape {tuple(shapes[key])}, but its config.json says {shape}")


def load_prismatic(
    folder: Path,
    config: Mapping[str, Any],
    device: str,
    dtype: torch.dtype,
    device_map: str | None = None,
    bits: int | None = None,
) -> Prismatic:
    """The network of a checkpoint's folder; InputError where a file, a key or a number is wrong.

    device_map, bits (4 or 8): the language model is loaded by transformers, spread over devices or quantised; needs accelerate, and
    bitsandbytes for bits.
    """
    files = _weight_files(folder)
    try:
        model = build(config)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder / 'config.json'}: describes no OpenVLA that can be built ({reason})") from error
    check_keys({key: shape for file in files for key, shape in _shapes(file).items()}, model, folder)
    ours = {to_theirs(key): key for key in model.state_dict() if not is_unused(to_theirs(key), model)}
    model.vision_backbone.drop_unused()
    foreign = device_map is not None or bits is not None
    if foreign:
        model.language_model = _language_model(folder, llama_config(config), device, dtype, device_map, bits)
        ours = {theirs: key for theirs, key in ours.items() if not theirs.startswith("language_model.")}
    for file in files:
        with _opened(file) as tensors:
            part = {}
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                value = tensors.get_tensor(key)
                _check_finite(value, key, file)
                if key in ours:
                    part[ours[key]] = value.to(device, dtype)
            model.load_state_dict(part, strict=False, assign=True)
    if not foreign:
        # Not in any checkpoint: made from the config, and in float32 whatever the weights are.
        decoder = model.decoder
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config).to(device)
    return model.eval()


def _language_model(
    folder: Path, config: Any, device: str, dtype: torch.dtype, device_map: str | None, bits: int | None
) -> Any:
    needed = ("accelerate", "bitsandbytes") if bits else ("accelerate",)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{folder}: device_map and quantised loading need the package {package}; pip install {package}")
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    quantization = (
        BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=dtype) if bits else None
    )

    class LanguageModel(LlamaForCausalLM):
        # Loaded here, not there: else each is a line of warning.
        _keys_to_ignore_on_load_unexpected = [r"^(vision_backbone|projector)\."]  # noqa: RUF012

    try:
        return LanguageModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map or {"": device},
            quantization_config=quantization,
            key_mapping={r"^language_model\.": ""},
        )
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: transformers cannot load the language model this way ({reason})") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: cannot be read ({error}); download it again") from error
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: is not there; download the checkpoint's safetensors files completely")
    return [folder / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error}); the file is damaged, download it again") from error


def _shapes(file: Path) -> dict[str, list[int]]:
    with _opened(file) as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (not a dict)


def _check_finite(value: torch.Tensor, key: str, file: Path) -> None:
    # The extremes of what holds a NaN are NaN; this needs no memory.
    if value.is_floating_point() and value.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(value)):
        raise InputError(f"{file}: {key!r} has values that are not finite; the training diverged, or the file is damaged")
