"""Octo's transformer (2405.12213, figure 2): task tokens, then the tokens of each control step, attended to block by block.

Task tokens see each other. A step's observation tokens see the task and all observations until then. Readout tokens see what
observations see and their own earlier ones; nothing sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.networks.octo_tokenizers import CameraTokenizer, ImageTokenizer, LowdimObsTokenizer, VectorTokenizer

_EPS = 1e-6
_TASK = "task_language"


@dataclass(frozen=True)
class Layout:
    """All that says which network it is.

    model: the `model` entry of the original's config.json, in the names of 1.5. images: (height, width) of each camera. goals: the
    cameras that may have a goal image. vectors: sizes. language: tokens and features of an encoded instruction. window: control steps.
    """

    model: Mapping[str, Any]
    images: Mapping[str, tuple[int, int]]
    goals: tuple[str, ...]
    vectors: Mapping[str, int]
    language: tuple[int, int]
    window: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Layout:
        images = {key: (size[0], size[1]) for key, size in values["images"].items()}
        tokens, features = values["language"]
        return cls(values["model"], images, tuple(values["goals"]), values["vectors"], (tokens, features), values["window"])


@dataclass(frozen=True)
class OctoInputs:
    """Axes: B observations, T <= max_horizon steps.

    images: uint8 [B,T,h,w,3]. goals: uint8 [B,h,w,3]; a missing one is black. vectors: [B,T,S], normalised, and the features of cameras
    that another network looks through. steps: bool [B,T], False before the episode began. present: bool [B,T] of a camera, False where
    it has no picture. language: [B,L,F], with bool [B,L].
    """

    images: Mapping[str, torch.Tensor]
    steps: torch.Tensor
    language: torch.Tensor
    language_mask: torch.Tensor
    goals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    present: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"tokens of {width} features cannot be shared among {heads} attention heads")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x [B,n,D] looks at seen [B,m,D]; mask is added to the logits [B,1,n,m]."""
        parts = (self.query(x), self.key(seen), self.value(seen))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # flax's gelu is the tanh approximation.
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attention, self.mlp = Attention(width, heads), MLP(width, hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """rows: the tokens that are wanted; all of them if None."""
        normed = self.norm1(x)
        if rows is not None:
            x, mask = x[:, rows], mask[:, :, rows]
        x = x + self.attention(normed if rows is None else normed[:, rows], normed, mask)
        return x + self.mlp(self.norm2(x))


class OctoTransformer(nn.Module):
    """`tokenizers`, `projections` and `positions` are by group: `obs_primary`, `task_language`, `readout_action`, ..."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        model, kwargs = layout.model, layout.model["transformer_kwargs"]
        width = int(model["token_embedding_size"])
        self.layout, self.width, self.max_horizon = layout, width, int(model["max_horizon"])
        if kwargs.get("add_position_embedding"):
            raise InputError("transformer with add_position_embedding: Octo adds positions to the tokens instead")
        self.tokenizers = nn.ModuleDict()
        for name, spec in model["observation_tokenizers"].items():
            self.tokenizers[f"obs_{name}"] = _tokenizer(spec, layout)
        # Of each group of a step, in order, how many tokens it has.
        self.observed: dict[str, int] = {group: int(module.tokens) for group, module in self.tokenizers.items()}  # type: ignore[arg-type]
        self.readouts: dict[str, int] = {f"readout_{name}": int(count) for name, count in model["readouts"].items()}
        self.repeats = bool(model.get("repeat_task_tokens", False))
        self.exact = bool(model.get("use_correct_attention", False))
        features = {group: int(module.features) for group, module in self.tokenizers.items()}  # type: ignore[arg-type]
        features[_TASK] = layout.language[1]
        self.projections = nn.ModuleDict({group: nn.Linear(size, width) for group, size in features.items()})
        self.positions = nn.ParameterDict({_TASK: nn.Parameter(torch.zeros(1, layout.language[0], width))})
        for group, count in {**self.observed, **self.readouts}.items():
            self.positions[group] = nn.Parameter(torch.zeros(1, self.max_horizon, count, width))
        layers, hidden = int(kwargs["num_layers"]), int(kwargs["mlp_dim"])
        self.blocks = nn.ModuleList([Block(width, int(kwargs["num_attention_heads"]), hidden) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, inputs: OctoInputs, readout: str) -> torch.Tensor:
        """The readout's tokens of every step, [B,T,n,D]."""
        tokens, mask, groups = self.assemble(inputs)
        steps = inputs.steps.shape[1]
        rows = _rows(tuple(groups), steps, inputs.language.shape[1], readout).to(tokens.device)
        for index, block in enumerate(self.blocks):
            # Nothing but the readout is wanted of the last layer.
            tokens = block(tokens, mask, rows if index == len(self.blocks) - 1 else None)
        return self.norm(tokens).unflatten(1, (steps, -1))

    def assemble(self, inputs: OctoInputs) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, int]]]:
        """The sequence [B,N,D], the mask that is added to the attention's logits [B,1,N,N], and the groups of one step."""
        batch, steps = inputs.steps.shape
        task = self.projections[_TASK](inputs.language) + self.positions[_TASK][:, : inputs.language.shape[1]]
        parts, masks, groups = [], [], []
        for group, module in self.tokenizers.items():
            # A tokenizer that none of its observations came for is left out altogether.
            given = inputs.images if isinstance(module, ImageTokenizer) else inputs.vectors
            keys: list[str] = module.keys  # type: ignore[assignment]
            missing = [key for key in keys if key not in given]
            if len(missing) == len(keys):
                continue
            if missing:
                raise InputError(
                    f"the observation lacks {missing[0]!r}, which this policy sees together with {', '.join(keys)}"
                )
            seen = module(given, inputs.goals) if isinstance(module, ImageTokenizer) else module(given)
            parts.append(self.projections[group](seen) + self.positions[group][:, :steps])
            shown = [inputs.present[key] for key in keys if key in inputs.present]
            usable = torch.stack(shown).any(0) if len(shown) == len(keys) else torch.ones_like(inputs.steps)
            masks.append((inputs.steps & usable)[..., None].expand(-1, -1, parts[-1].shape[2]))
            groups.append((group, parts[-1].shape[2]))
        if not parts:
            known = ", ".join([*self.layout.images, *self.layout.vectors])
            raise InputError(f"the observation has none of this policy's inputs ({known})")
        if self.repeats:
            parts.append(task[:, None].expand(-1, steps, -1, -1))
            masks.append(inputs.language_mask[:, None].expand(-1, steps, -1))
            groups.append((f"obs_{_TASK}", task.shape[1]))
        for group, count in self.readouts.items():
            parts.append(self.positions[group][:, :steps].expand(batch, -1, -1, -1))
            masks.append(inputs.steps.new_ones(batch, steps, count))
            groups.append((group, count))
        tokens = torch.cat([task, torch.cat(parts, dim=2).flatten(1, 2)], dim=1)
        usable = torch.cat([inputs.language_mask, torch.cat(masks, dim=2).flatten(1, 2)], dim=1)
        rules = attention_rules(tuple(groups), steps, task.shape[1], self.exact).to(tokens.device)
        allowed = rules & usable[:, None, None]
        # The least finite number, not -inf: a row with nothing to see becomes uniform, as in flax, and not NaN.
        return tokens, (~allowed).to(tokens.dtype) * torch.finfo(tokens.dtype).min, groups


@lru_cache(maxsize=64)
def attention_rules(groups: tuple[tuple[str, int], ...], steps: int, task: int, exact: bool) -> torch.Tensor:
    """Which token (row) may see which, bool [N,N].

    exact: False repeats a slip of the models of December 2023, where the first token of each group but the first counts as the group
    before it, so that a single readout token counts as an observation.
    """
    counts = [count for _, count in groups]
    within = np.searchsorted(np.cumsum(counts), np.arange(sum(counts)), side="right" if exact else "left")
    names = np.array([name for name, _ in groups])[within]
    # -1: the task, before all steps.
    step = np.concatenate([np.full(task, -1), np.repeat(np.arange(steps), sum(counts))])
    name = np.concatenate([np.full(task, _TASK), np.tile(names, steps)])
    readout = np.char.startswith(name, "readout_")
    earlier = step[None] <= step[:, None]
    readable = ~readout[None] | (readout[:, None] & (name[None] == name[:, None]))
    return torch.from_numpy(earlier & readable)


@lru_cache(maxsize=64)
def _rows(groups: tuple[tuple[str, int], ...], steps: int, task: int, readout: str) -> torch.Tensor:
    """Where a readout's tokens are in the sequence."""
    names = np.concatenate([np.full(count, name) for name, count in groups])
    return torch.from_numpy(task + np.flatnonzero(np.tile(names == readout, steps)))


def _tokenizer(spec: Mapping[str, Any], layout: Layout) -> nn.Module:
    name, kwargs = spec["name"], spec.get("kwargs", {})
    if name == "ImageTokenizer":
        return ImageTokenizer(kwargs, layout.images, layout.goals)
    if name == "LowdimObsTokenizer":
        return LowdimObsTokenizer(kwargs, layout.vectors)
    if name == "VectorTokenizer":
        return VectorTokenizer(kwargs, layout.vectors)
    if name == "CameraTokenizer":
        return CameraTokenizer(kwargs)
    raise InputError(f"observation tokenizer {name!r}: only ImageTokenizer and LowdimObsTokenizer can be read")


def initialize(modules: Sequence[nn.Module]) -> None:
    """The original's initialisation, by torch's global generator."""
    for root in modules:
        for module in root.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in root.named_parameters():
            if name.startswith("positions."):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("frequencies"):
                nn.init.normal_(parameter, std=0.2)
            elif name.endswith("probe"):
                nn.init.xavier_uniform_(parameter[0])
