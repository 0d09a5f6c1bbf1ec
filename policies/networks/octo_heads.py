"""Octo's action heads: what turns the readout tokens of the newest step into chunks of normalised actions.

Each has `pool` (readout tokens to an encoding, once an observation), `sample` (K chunks from an encoding), `loss` (of a chunk, [B]).
Sources: the diffusion head is equations 1 and 2 of Octo (2405.12213); the others are those of its repository.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.networks.octo_tokenizers import Bins
from policies.networks.octo_transformer import MLP, Attention


class Pool(nn.Module):
    """Attention pooling of tokens [B,n,D] by learned probes: [B,m,D] (Set Transformer 1810.00825, as in big_vision)."""

    def __init__(self, width: int, probes: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, probes, width))
        self.attention = Attention(width, 8)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.probe.expand(len(tokens), -1, -1), tokens, None)
        return x + self.mlp(self.norm(x))


class Head(nn.Module):
    """Axes: B observations, K samples, H chunk, A action. `bound`: normalised actions lie within [-bound, bound]."""

    def __init__(self, kwargs: Mapping[str, Any], width: int, use_map: bool, probes: int = 1) -> None:
        super().__init__()
        self.horizon, self.actions = int(kwargs.get("action_horizon", 1)), int(kwargs.get("action_dim", 7))
        self.readout = str(kwargs["readout_key"])
        self.bound = float(kwargs.get("max_action", 5.0))
        self.pooling = Pool(width, probes) if kwargs.get("use_map", use_map) else None

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Readout tokens [B,n,D] -> the encoding [B,D]."""
        return tokens.mean(1) if self.pooling is None else self.pooling(tokens)[:, 0]

    @abstractmethod
    def sample(self, z: torch.Tensor, num_samples: int, dims: int, generator: torch.Generator | None) -> torch.Tensor:
        """[B,K,H,A]. dims: how many of the A actions the robot has; the head was trained on noise in the others."""

    @abstractmethod
    def loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Loss [B] of chunks [B,H,a] of the first a <= A actions, the only ones that count: A times the mean, as in the original."""


class ResidualMLP(nn.Module):
    def __init__(self, width: int, normalize: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6) if normalize else nn.Identity()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


class DiffusionHead(Head):
    """DDPM with an MLP: x -> (x - (1-alpha)/sqrt(1-alpha_bar) eps)/sqrt(alpha) + sqrt(beta) z, clipped after every step."""

    betas: torch.Tensor
    alpha_bars: torch.Tensor

    def __init__(self, kwargs: Mapping[str, Any], width: int) -> None:
        super().__init__(kwargs, width, use_map=False)
        time, hidden = int(kwargs.get("time_dim", 32)), int(kwargs.get("hidden_dim", 256))
        self.steps, self.draws = int(kwargs.get("diffusion_steps", 20)), int(kwargs.get("n_diffusion_samples", 1))
        self.l1 = kwargs.get("loss_type", "mse") == "l1"
        # Ours only: near pure noise the slightest error of the prediction is a wild action, which a small network cannot undo.
        self.clip_clean = bool(kwargs.get("clip_clean", False))
        self.size = self.horizon * self.actions
        self.frequencies = nn.Parameter(torch.zeros(time // 2, 1))
        self.time = nn.ModuleList([nn.Linear(time, 2 * time), nn.Linear(2 * time, time)])
        self.input = nn.Linear(time + width + self.size, hidden)
        normalize = bool(kwargs.get("use_layer_norm", True))
        self.blocks = nn.ModuleList([ResidualMLP(hidden, normalize) for _ in range(int(kwargs.get("num_blocks", 3)))])
        self.output = nn.Linear(hidden, self.size)
        betas = cosine_betas(self.steps)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alpha_bars", (1 - betas).cumprod(0), persistent=False)

    def condition(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What no noise enters: the first layer's share of z, [B,hidden], and of each timestep, [steps,hidden]."""
        angles = 2 * math.pi * torch.arange(self.steps, device=z.device)[:, None] * self.frequencies.T
        first, second = self.time
        time = second(F.silu(first(torch.cat([angles.cos(), angles.sin()], dim=-1))))
        of_time, of_z, _ = self._parts()
        return F.linear(z, of_z, self.input.bias), F.linear(time, of_time)

    def predict(self, noisy: torch.Tensor, of_z: torch.Tensor, of_time: torch.Tensor) -> torch.Tensor:
        """The noise in flat chunks [B,K,HA]; of_z [B,1,hidden] and of_time, which broadcast over them."""
        x = F.linear(noisy, self._parts()[2]) + of_z + of_time
        for block in self.blocks:
            x = block(x)
        return self.output(F.silu(x))

    def denoise(self, z: torch.Tensor, x: torch.Tensor, noises: torch.Tensor, dims: int) -> torch.Tensor:
        """Flat chunks [B,K,HA] from pure noise x and the noises [steps,B,K,HA] that are added, in the order of their use."""
        of_z, of_time = self.condition(z)
        kept = (torch.arange(self.size, device=x.device) % self.actions) < dims
        alphas = 1 - self.betas
        for step, noise in zip(range(self.steps - 1, -1, -1), noises, strict=True):
            spread = (1 - self.alpha_bars[step]).sqrt()
            predicted = self.predict(x, of_z[:, None], of_time[step])
            if self.clip_clean:
                root = self.alpha_bars[step].sqrt()
                clean = ((x - spread * predicted) / root).clamp(-self.bound, self.bound)
                predicted = (x - root * clean) / spread
            x = (x - (1 - alphas[step]) / spread * predicted) / alphas[step].sqrt()
            if step:
                x = x + self.betas[step].sqrt() * noise
            x = x.clamp(-self.bound, self.bound)
            if dims < self.actions:
                x = torch.where(kept, x, spread * noise)
        return x

    def sample(self, z: torch.Tensor, num_samples: int, dims: int, generator: torch.Generator | None) -> torch.Tensor:
        shape = (self.steps + 1, len(z), num_samples, self.size)
        noises = torch.randn(shape, generator=generator, device=z.device)
        return self.denoise(z, noises[0], noises[1:], dims).unflatten(-1, (self.horizon, self.actions))

    def loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        dims = chunks.shape[2]
        clean = F.pad(chunks, (0, self.actions - dims)).flatten(1).clamp(-self.bound, self.bound)[:, None]
        shape = (len(z), self.draws)
        timestep = torch.randint(self.steps, shape, generator=generator, device=z.device)
        noise = torch.randn((*shape, self.size), generator=generator, device=z.device)
        alpha_bar = self.alpha_bars[timestep][..., None]
        of_z, of_time = self.condition(z)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        error = (self.predict(noisy, of_z[:, None], of_time[timestep]) - noise).unflatten(-1, (self.horizon, self.actions))
        error = error[..., :dims]
        return (error.abs() if self.l1 else error.square()).mean((1, 2, 3)) * self.actions

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first layer's weights for the timestep, for z, and for the noisy chunk."""
        time, size = self.time[1].out_features, self.size
        weight = self.input.weight
        return weight[:, :time], weight[:, time : weight.shape[1] - size], weight[:, weight.shape[1] - size :]


def cosine_betas(steps: int) -> torch.Tensor:
    """Noise added by each step, [steps] (Nichol & Dhariwal 2102.09672, equation 17), at most 0.999."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bars = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(0, 0.999).float()


class ContinuousHead(Head):
    """One chunk, tanh-squashed: all K samples are the same."""

    def __init__(self, kwargs: Mapping[str, Any], width: int, use_map: bool, loss: str) -> None:
        super().__init__(kwargs, width, use_map)
        self.l1 = kwargs.get("loss_type", loss) == "l1"
        self.mean = nn.Linear(width, self.horizon * self.actions)

    def sample(self, z: torch.Tensor, num_samples: int, dims: int, generator: torch.Generator | None) -> torch.Tensor:
        return self._chunk(z)[:, None].expand(-1, num_samples, -1, -1).contiguous()

    def loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        error = self._chunk(z)[..., : chunks.shape[2]] - chunks
        return (error.abs() if self.l1 else error.square()).mean((1, 2)) * self.actions

    def _chunk(self, z: torch.Tensor) -> torch.Tensor:
        return (self.bound * torch.tanh(self.mean(z) / self.bound)).unflatten(-1, (self.horizon, self.actions))


class DiscreteHead(Head):
    """Bins of each action, drawn independently."""

    def __init__(self, kwargs: Mapping[str, Any], width: int, token_per: str) -> None:
        horizon, actions = int(kwargs.get("action_horizon", 1)), int(kwargs.get("action_dim", 7))
        # 1.0 called the horizon pred_horizon, here too.
        token_per = kwargs.get("token_per", token_per).replace("pred_horizon", "action_horizon")
        counts = {"": 1, "action_horizon": horizon, "action_dim_and_action_horizon": horizon * actions}
        if token_per not in counts:
            raise InputError(f"discrete action head with token_per {token_per!r}: not one of {', '.join(map(repr, counts))}")
        super().__init__(kwargs, width, use_map=False, probes=counts[token_per])
        kind = kwargs.get("normalization_type", "uniform")
        self.bins = Bins({"n_bins": kwargs.get("vocab_size", 256)}, kind)
        self.logits = nn.Linear(width, horizon * actions * self.bins.count // counts[token_per])
        self.bound = float(self.bins.middle(torch.tensor([self.bins.count - 1])))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits [B,H,A,bins]."""
        pooled = tokens if self.pooling is None else self.pooling(tokens)
        return self.logits(pooled).reshape(len(tokens), self.horizon, self.actions, self.bins.count)

    def sample(self, z: torch.Tensor, num_samples: int, dims: int, generator: torch.Generator | None) -> torch.Tensor:
        draws = torch.multinomial(z.softmax(-1).flatten(0, 2), num_samples, replacement=True, generator=generator)
        return self.bins.middle(draws).unflatten(0, z.shape[:3]).permute(0, 3, 1, 2)

    def loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        logits = z[:, :, : chunks.shape[2]].flatten(0, 2)
        return F.cross_entropy(logits, self.bins.index(chunks).flatten(), reduction="none").view(len(z), -1).mean(1)


def make_head(spec: Mapping[str, Any], width: int) -> Head:
    """The head of a config's entry `{"name": class, "kwargs": {...}}`; InputError for a kind that is not known here."""
    name, kwargs = spec["name"], spec.get("kwargs", {})
    if name == "DiffusionActionHead":
        return DiffusionHead(kwargs, width)
    if name in ("ContinuousActionHead", "MSEActionHead", "L1ActionHead"):
        return ContinuousHead(kwargs, width, name != "ContinuousActionHead", "l1" if name == "L1ActionHead" else "mse")
    if name in ("DiscreteActionHead", "TokenPerDimActionHead"):
        return DiscreteHead(kwargs, width, "action_dim_and_action_horizon")
    raise InputError(f"action head {name!r}: only diffusion, continuous (MSE, L1) and discrete heads can be read")
