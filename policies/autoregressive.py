"""Autoregressive policy: an action chunk as H x A tokens, one bin each, drawn one after the other by a small Llama-type decoder.

The observation becomes a prefix of tokens that is computed once and shared by all samples (policies/networks/shared_prefix.py).
Bins are equal parts of the data's range, as in RT-2 (2307.15818) and OpenVLA (2406.09246).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from data.torchvision_repair import repair_torchvision
from policies.base import Observations
from policies.config import AutoregressiveConfig
from policies.contract import DataContract
from policies.networks.shared_prefix import prefill, sample_tokens, score_tokens
from policies.trained import TrainedPolicy


class AutoregressivePolicy(TrainedPolicy):
    """Draws an action chunk token by token, each token one bin of one action dimension.

    `log_prob` is the log-probability of the bins that the actions fall into.
    """

    config_type = AutoregressiveConfig

    def __init__(self, config: AutoregressiveConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        repair_torchvision()
        from transformers import LlamaConfig, LlamaModel

        self.tokens = self.action_spec.chunk * self.action_spec.dim
        self.observation = nn.Linear(self.encoder.output, config.prefix * config.hidden)
        self.embedding = nn.Embedding(config.bins, config.hidden)
        self.decoder = LlamaModel(
            LlamaConfig(
                vocab_size=1,  # it is only ever given embeddings
                hidden_size=config.hidden,
                intermediate_size=4 * config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.decoder.embed_tokens.requires_grad_(False)
        self.output = nn.Linear(config.hidden, config.bins)

    def log_prob(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        prefix = prefill(self.decoder, self._prefix(self.encode(observations)), None)
        bins = self._bins(self.contract.action_normalizer.normalize(actions).flatten(2))
        return score_tokens(self.decoder, self.output, self.embedding, prefix, bins).sum(-1)

    def head_loss(self, z: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Cross-entropy of the tokens, their mean."""
        bins, prefix = self._bins(chunks.flatten(1)), self._prefix(z)
        inputs = torch.cat([prefix, self.embedding(bins[:, :-1])], dim=1)
        hidden = self.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, self.config.prefix - 1 :]
        return F.cross_entropy(self.output(hidden).transpose(1, 2), bins, reduction="none").mean(-1)

    def head_sample(self, z: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        prefix = prefill(self.decoder, self._prefix(z), None)
        bins = sample_tokens(
            self.decoder,
            self.output,
            self.embedding,
            prefix,
            num_samples,
            self.tokens,
            temperature=self.config.temperature,
            top_k=None,
            generator=generator,
        )
        centres = (bins + 0.5) * (2 / self.config.bins) - 1
        return centres.unflatten(-1, (self.action_spec.chunk, self.action_spec.dim))

    def _prefix(self, z: torch.Tensor) -> torch.Tensor:
        return self.observation(z).unflatten(-1, (self.config.prefix, self.config.hidden))

    def _bins(self, normalized: torch.Tensor) -> torch.Tensor:
        """Index of the bin of [-1,1] that each value is in; values beyond fall into the outermost."""
        return ((normalized + 1) * (self.config.bins / 2)).long().clamp(0, self.config.bins - 1)
