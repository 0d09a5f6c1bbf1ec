"""The Action Chunking Transformer (Zhao et al. 2304.13705): a conditional VAE whose decoder is a DETR over camera features.

Parameters have LeRobot's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data.errors import InputError
from policies.networks.visual import ResNet

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class ACTConfig:
    """LeRobot's names and defaults. state, environment: sizes of those inputs, 0 where there is none. cameras: how many."""

    action: int
    state: int
    environment: int
    cameras: int
    chunk_size: int = 100
    vision_backbone: str = "resnet18"
    replace_final_stride_with_dilation: bool = False
    pre_norm: bool = False
    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    feedforward_activation: str = "relu"
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    use_vae: bool = True
    latent_dim: int = 32
    n_vae_encoder_layers: int = 4
    dropout: float = 0.1
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.feedforward_activation not in _ACTIVATIONS:
            raise InputError(f"feedforward_activation {self.feedforward_activation!r}: not one of {', '.join(_ACTIVATIONS)}")


class Layer(nn.Module):
    """A transformer layer to whose queries and keys, not values, positions are added at every depth (DETR); cross-attends on demand."""

    def __init__(self, config: ACTConfig, cross: bool) -> None:
        super().__init__()
        width = config.dim_model
        self.cross, self.pre_norm = cross, config.pre_norm
        self.activation = _ACTIVATIONS[config.feedforward_activation]
        self.self_attn = nn.MultiheadAttention(width, config.n_heads, config.dropout, batch_first=True)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(width, config.n_heads, config.dropout, batch_first=True)
            self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        memory: torch.Tensor | None = None,
        memory_positions: torch.Tensor | None = None,
        padding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [B,N,D] with positions [1,N,D]; memory [B,M,D] likewise. padding: bool [B,N], True where x is none."""

        def attend(y: torch.Tensor) -> torch.Tensor:
            placed = y + positions
            return self.self_attn(placed, placed, y, key_padding_mask=padding, need_weights=False)[0]

        def attend_memory(y: torch.Tensor) -> torch.Tensor:
            assert memory is not None
            assert memory_positions is not None
            return self.multihead_attn(y + positions, memory + memory_positions, memory, need_weights=False)[0]

        def feed_forward(y: torch.Tensor) -> torch.Tensor:
            return self.linear2(self.dropout(self.activation(self.linear1(y))))

        steps: list[Callable[[torch.Tensor], torch.Tensor]] = [attend, feed_forward]
        if self.cross:
            steps.insert(1, attend_memory)
        for index, step in enumerate(steps, 1):
            norm = self.get_submodule(f"norm{index}")
            x = x + self.dropout(step(norm(x))) if self.pre_norm else norm(x + self.dropout(step(x)))
        return x


class Stack(nn.Module):
    """Layers, and a last norm where they are pre-norm or decode."""

    def __init__(self, config: ACTConfig, depth: int, cross: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config, cross) for _ in range(depth)])
        self.norm = nn.LayerNorm(config.dim_model) if config.pre_norm or cross else nn.Identity()

    def forward(self, x: torch.Tensor, positions: torch.Tensor, **memory: torch.Tensor | None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, positions, **memory)
        return self.norm(x)


def sinusoids(count: int, width: int) -> torch.Tensor:
    """[count,width] of Attention Is All You Need, section 3.5: sines and cosines interleaved."""
    powers = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000**powers
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()


def map_positions(height: int, width: int, features: int, device: torch.device) -> torch.Tensor:
    """[1,height*width,features]: half of them for the row, half for the column, both counted from 1 and scaled to 2 pi (DETR)."""
    half = features // 2
    frequencies = 10000 ** (2 * (torch.arange(half, dtype=torch.float32, device=device) // 2) / half)

    def axis(size: int) -> torch.Tensor:
        steps = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        angles = (steps / (size + 1e-6) * (2 * math.pi))[:, None] / frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=-1).reshape(1, height * width, features)


class ACT(nn.Module):
    """B observations, chunk H = chunk_size, action A, latent L, width D."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim_model
        if config.use_vae:
            self.vae_encoder = Stack(config, config.n_vae_encoder_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, width)
            if config.state:
                self.vae_encoder_robot_state_input_proj = nn.Linear(config.state, width)
            self.vae_encoder_action_input_proj = nn.Linear(config.action, width)
            self.vae_encoder_latent_output_proj = nn.Linear(width, 2 * config.latent_dim)
            tokens = 1 + bool(config.state) + config.chunk_size
            self.register_buffer("vae_encoder_pos_enc", sinusoids(tokens, width)[None])
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, width)
        if config.state:
            self.encoder_robot_state_input_proj = nn.Linear(config.state, width)
        if config.environment:
            self.encoder_env_state_input_proj = nn.Linear(config.environment, width)
        if config.cameras:
            self.backbone = ResNet(config.vision_backbone, "frozen", dilate=config.replace_final_stride_with_dilation)
            self.encoder_img_feat_input_proj = nn.Conv2d(self.backbone.channels, width, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(1 + bool(config.state) + bool(config.environment), width)
        self.encoder = Stack(config, config.n_encoder_layers)
        self.decoder = Stack(config, config.n_decoder_layers, cross=True)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, width)
        self.action_head = nn.Linear(width, config.action)

    def observe(self, inputs: Mapping[str, torch.Tensor], cameras: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B,N,D] of all but the latent, and their positions [1,1+N,D], the latent's first.

        inputs: `state` [B,S] and `environment` [B,E], where there are such. cameras: [B,3,h,w] each.
        """
        tokens = []
        if self.config.state:
            tokens.append(self.encoder_robot_state_input_proj(inputs["state"])[:, None])
        if self.config.environment:
            tokens.append(self.encoder_env_state_input_proj(inputs["environment"])[:, None])
        positions = [self.encoder_1d_feature_pos_embed.weight[None]]
        for camera in cameras:
            features = self.encoder_img_feat_input_proj(self.backbone(camera))
            positions.append(map_positions(features.shape[2], features.shape[3], self.config.dim_model, features.device))
            tokens.append(features.flatten(2).transpose(1, 2))
        return torch.cat(tokens, dim=1), torch.cat(positions, dim=1)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Chunks [B,H,A] for the tokens and positions of `observe` and a latent [B,L]."""
        tokens = torch.cat([self.encoder_latent_input_proj(latent)[:, None], tokens], dim=1)
        memory = self.encoder(tokens, positions)
        queries = self.decoder_pos_embed.weight[None]
        decoded = self.decoder(
            torch.zeros_like(queries).expand(len(tokens), -1, -1), queries, memory=memory, memory_positions=positions
        )
        return self.action_head(decoded)

    def posterior(
        self, inputs: Mapping[str, torch.Tensor], actions: torch.Tensor, padding: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance [B,L] of the latent, given the state and the chunk [B,H,A]; padding: bool [B,H], True where none."""
        tokens = [self.vae_encoder_cls_embed.weight[None].expand(len(actions), -1, -1)]
        if self.config.state:
            tokens.append(self.vae_encoder_robot_state_input_proj(inputs["state"])[:, None])
        tokens.append(self.vae_encoder_action_input_proj(actions))
        joined = torch.cat(tokens, dim=1)
        padding = F.pad(padding, (joined.shape[1] - actions.shape[1], 0), value=False)
        encoded = self.vae_encoder(joined, self.get_buffer("vae_encoder_pos_enc"), padding=padding)
        mean, log_variance = self.vae_encoder_latent_output_proj(encoded[:, 0]).chunk(2, dim=-1)
        return mean, log_variance
