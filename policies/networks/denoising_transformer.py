"""The transformer denoiser of Diffusion Policy (Chi et al. 2303.04137, section 3.1 and appendix): minGPT-like, cross-attending to
the timestep and the observation. Parameters have Stanford's names.
"""

from __future__ import annotations

import torch
from torch import nn

from policies.networks.unet1d import SinusoidalEmbedding


class TransformerForDiffusion(nn.Module):
    """Denoiser of chunks [N,H,A] at timesteps, given an observation's features, one token of Z features for each of To steps.

    condition: Z, 0 for none. Its tokens and the timestep's pass an MLP, or `condition_layers` of self-attention, and are the
    decoder's memory. causal: an action attends to earlier ones, and to observations up to its own step. time_as_condition:
    False (only without a condition) puts the timestep in front of the chunk and drops the decoder.
    """

    def __init__(
        self,
        action: int,
        horizon: int,
        condition: int = 0,
        observations: int = 1,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        condition_layers: int = 0,
        causal: bool = True,
        time_as_condition: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if condition and not time_as_condition:
            raise ValueError("a condition needs the timestep beside it")
        memory = time_as_condition + (observations if condition else 0)
        tokens = horizon + (not time_as_condition)
        self.causal = causal
        self.input_emb = nn.Linear(action, width)
        self.pos_emb = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.drop = nn.Dropout(dropout)
        self.time_emb = SinusoidalEmbedding(width)
        self.cond_obs_emb = nn.Linear(condition, width) if condition else None

        def settings() -> dict:
            return {
                "d_model": width,
                "nhead": heads,
                "dim_feedforward": 4 * width,
                "dropout": attention_dropout,
                "activation": "gelu",
                "batch_first": True,
                "norm_first": True,
            }

        def encoder(depth: int) -> nn.Module:
            return nn.TransformerEncoder(nn.TransformerEncoderLayer(**settings()), depth, enable_nested_tensor=False)

        self.encoder: nn.Module
        self.decoder: nn.Module | None = None
        self.mixes_condition = condition_layers > 0
        if memory:
            self.cond_pos_emb = nn.Parameter(torch.randn(1, memory, width) * 0.02)
            mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
            self.encoder = encoder(condition_layers) if condition_layers else mlp
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**settings()), layers)
        else:
            self.encoder = encoder(layers)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, action)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)

    def condition(self, z: torch.Tensor) -> torch.Tensor:
        """Embedded observation tokens [B,To,D] from z [B,To,Z] or [B,Z], the same for all timesteps; To = 0 without a condition."""
        if self.cond_obs_emb is None:
            return z.new_zeros(len(z), 0, self.input_emb.out_features)
        tokens = self.cond_obs_emb(z if z.ndim == 3 else z[:, None])
        tokens = self.drop(tokens + self.cond_pos_emb[:, 1 : 1 + tokens.shape[1]])
        return tokens if self.mixes_condition else self.encoder(tokens)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Prediction [N,H,A] for noisy [N,H,A], timestep (scalar or [N]), z [N,To,Z] or [N,Z] (or B rows, for N / B chunks each)."""
        return self.denoise(noisy, timestep, self.condition(z))

    def denoise(self, noisy: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`forward` after `condition`."""
        time = self.time_emb(timestep.reshape(-1))[:, None]
        x = self.input_emb(noisy)
        if self.decoder is None:
            x = torch.cat([time.expand(len(x), -1, -1), x], dim=1)
            x = self.drop(x + self.pos_emb[:, : x.shape[1]])
            x = self.encoder(x, mask=self._mask(x.shape[1], x.shape[1], 0, x))[:, 1:]
        else:
            x = self.drop(x + self.pos_emb[:, : x.shape[1]])
            memory = self._memory(time, tokens)
            memory = memory.repeat_interleave(len(x) // len(memory), 0)
            # The timestep is the memory's first token: observation s is token s + 1, and all actions see the timestep.
            x = self.decoder(
                x,
                memory,
                tgt_mask=self._mask(x.shape[1], x.shape[1], 0, x),
                memory_mask=self._mask(x.shape[1], memory.shape[1], 1, x) if tokens.shape[1] else None,
            )
        return self.head(self.ln_f(x))

    def _memory(self, time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B or N,1+To,D]."""
        time = self.drop(time + self.cond_pos_emb[:, :1])
        if not self.mixes_condition:
            time = self.encoder(time)
        rows = max(len(time), len(tokens))
        joined = torch.cat([time.expand(rows, -1, -1), tokens.repeat_interleave(rows // len(tokens), 0)], dim=1)
        return self.encoder(joined) if self.mixes_condition else joined

    def _mask(self, rows: int, columns: int, ahead: int, like: torch.Tensor) -> torch.Tensor | None:
        """Additive: row t may attend to columns up to t + ahead."""
        if not self.causal:
            return None
        return torch.full((rows, columns), float("-inf"), device=like.device).triu(1 + ahead)
