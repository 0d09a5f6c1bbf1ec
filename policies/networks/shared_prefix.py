"""K continuations of one prefix: a Llama-type decoder reads the prefix once, and all samples attend to the same keys and values.

The layers' own modules are called one by one, so adapters (LoRA) and quantised linears work, and no cache class is involved. The
prefix is never copied: the K queries of an observation are rows of one matrix product with its keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

Head = Callable[[torch.Tensor], torch.Tensor]
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Prefix:
    """Axes: B observations, P tokens, G key heads, D width, d width of a head.

    keys [B,G,d,P] and values [B,G,P,d] of each layer. hidden [B,D]: after the final norm at each row's last token. positions int64
    [B]: of the next token. bias: additive [B,1,1,P], -inf at padding; None without any.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    hidden: torch.Tensor
    positions: torch.Tensor
    bias: torch.Tensor | None


def prefill(decoder: Any, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> Prefix:
    """Read embeddings [B,P,D] once. decoder: transformers' LlamaModel or alike. mask: bool [B,P], True first and padding behind."""
    batch, length, _ = embeddings.shape
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def keep(k: torch.Tensor, v: torch.Tensor) -> None:
        keys.append(k.mT.contiguous())
        values.append(v.contiguous())

    # Padding is behind every real token, so causality alone keeps it out of sight here.
    x = _read(decoder, embeddings, None, True, keep)
    if mask is None:
        last = torch.full((batch,), length, device=x.device)
        return Prefix(keys, values, decoder.norm(x[:, -1]), last, None)
    last = mask.sum(1)
    hidden = decoder.norm(x[torch.arange(batch, device=x.device), last - 1])
    bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, float("-inf"))
    return Prefix(keys, values, hidden, last, bias[:, None, None])


def hidden_states(
    decoder: Any, embeddings: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = True
) -> torch.Tensor:
    """Hidden states [B,P,D] of whole sequences, after the final norm. mask: as for `prefill`. causal: False lets all see all."""
    visible = mask[:, None, None] if mask is not None and not causal else None
    return decoder.norm(_read(decoder, embeddings, visible, causal))


def _read(
    decoder: Any,
    x: torch.Tensor,
    visible: torch.Tensor | None,
    causal: bool,
    keep: Callable[[torch.Tensor, torch.Tensor], None] = lambda k, v: None,
) -> torch.Tensor:
    rotary = _rotary(decoder, x, torch.arange(x.shape[1], device=x.device)[None])
    for layer in decoder.layers:
        x = _moved(layer, x)
        q, k, v = _project(layer, x, rotary)
        attended = F.scaled_dot_product_attention(
            q, k, v, visible, is_causal=causal, scale=layer.self_attn.scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        x = _finish(layer, x, attended.transpose(1, 2))
        keep(k, v)
    return x


def sample_tokens(
    decoder: Any,
    head: Head,
    embed: Embed,
    prefix: Prefix,
    num_samples: int,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """K continuations of n tokens: int64 [B,K,n], indices among the tokens that `head` gives logits of.

    head: hidden [...,D] -> logits [...,V]. embed: indices [...] -> [...,D]. temperature: 0 takes the likeliest token. top_k: draws from
    the k likeliest only.
    """
    # The first token's distribution is the same for all samples.
    logits = head(prefix.hidden)[:, None].expand(-1, num_samples, -1)
    tokens = [_draw(logits, temperature, top_k, generator)]
    state = _Suffix(decoder, prefix, num_samples, num_tokens - 1)
    while len(tokens) < num_tokens:
        tokens.append(_draw(head(state.step(embed(tokens[-1]))), temperature, top_k, generator))
    return torch.stack(tokens, dim=-1)


def score_tokens(decoder: Any, head: Head, embed: Embed, prefix: Prefix, indices: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token given those before it, in one pass: float32 [B,K,n] for indices [B,K,n]."""
    hidden = prefix.hidden[:, None, None].expand(-1, indices.shape[1], 1, -1)
    if indices.shape[-1] > 1:
        hidden = torch.cat([hidden, _continue(decoder, prefix, embed(indices[..., :-1]))], dim=2)
    return torch.take_along_dim(head(hidden).float().log_softmax(-1), indices[..., None], dim=-1)[..., 0]


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> torch.Tensor:
    """[B,K] from logits [B,K,V]."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    # By inverting the distribution function, with one uniform number a token: torch.multinomial draws one for each probability.
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    if not bool(total.isfinite().all()):
        raise ValueError("the policy's logits are not finite")
    # It is below 1, and the product below the total: no token without probability is ever drawn.
    uniform = torch.rand(total.shape, generator=generator, device=total.device)
    return torch.searchsorted(cumulative, uniform * total, right=True)[..., 0]


class _Suffix:
    """The keys and values of what has been drawn so far, [B,G,K,n,d] a layer, beside the shared prefix."""

    def __init__(self, decoder: Any, prefix: Prefix, samples: int, tokens: int) -> None:
        self.decoder, self.prefix, self.length = decoder, prefix, 0
        batch, heads, width, _ = prefix.keys[0].shape
        shape = (batch, heads, samples, tokens, width)
        self.keys = [torch.empty(shape, dtype=key.dtype, device=key.device) for key in prefix.keys]
        self.values = [torch.empty(shape, dtype=value.dtype, device=value.device) for value in prefix.values]

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings [B,K,D] of one more token each -> hidden [B,K,D] after the final norm."""
        rotary = _rotary(self.decoder, x, self.prefix.positions[:, None] + self.length)
        at, upto = self.length, self.length + 1
        for layer, shared_k, shared_v, keys, values in zip(
            self.decoder.layers, self.prefix.keys, self.prefix.values, self.keys, self.values, strict=True
        ):
            x = _moved(layer, x)
            q, k, v = _project(layer, x, rotary)
            keys[:, :, :, at], values[:, :, :, at] = k, v
            _, group, samples, _ = k.shape
            # Query head h belongs to key head h // (heads / G): [B,G,heads/G,K,d].
            q = q.unflatten(1, (group, -1)) * layer.self_attn.scaling
            folded = q.flatten(2, 3)
            shared = folded @ shared_k
            if self.prefix.bias is not None:
                shared = shared + self.prefix.bias.to(shared.device)
            # So small that multiplying and summing is faster than a matrix product of each.
            own = (q[..., None, :] * keys[:, :, None, :, :upto]).sum(-1).flatten(2, 3)
            weights = torch.cat([shared, own], dim=-1).softmax(-1)
            length = shared.shape[-1]
            attended = (weights[..., :length] @ shared_v).unflatten(2, (-1, samples))
            own = weights[..., length:].unflatten(2, (-1, samples))
            attended = attended + (own[..., None] * values[:, :, None, :, :upto]).sum(-2)
            x = _finish(layer, x, attended.flatten(1, 2).transpose(1, 2))
        self.length = upto
        return self.decoder.norm(x)


def _continue(decoder: Any, prefix: Prefix, x: torch.Tensor) -> torch.Tensor:
    """Hidden states [B,K,n,D] of whole continuations [B,K,n,D], causal among themselves, with the prefix shared."""
    _, samples, tokens, _ = x.shape
    positions = prefix.positions[:, None] + torch.arange(tokens, device=x.device).repeat(samples)
    x = x.flatten(1, 2)
    rotary = _rotary(decoder, x, positions)
    causal = torch.full((tokens, tokens), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
    for layer, shared_k, shared_v in zip(decoder.layers, prefix.keys, prefix.values, strict=True):
        x = _moved(layer, x)
        q, k, v = _project(layer, x, rotary)
        group = k.shape[1]
        q = q.unflatten(1, (group, -1)) * layer.self_attn.scaling
        shared = q.flatten(2, 3) @ shared_k
        if prefix.bias is not None:
            shared = shared + prefix.bias.to(shared.device)
        q, k, v = q.unflatten(3, (samples, tokens)), k.unflatten(2, (samples, tokens)), v.unflatten(2, (samples, tokens))
        own = torch.einsum("bghktd,bgkud->bghktu", q, k) + causal.to(q.device)
        shape = own.shape[:-1]
        weights = torch.cat([shared.view(*shape, -1), own], dim=-1).softmax(-1)
        length = shared.shape[-1]
        attended = (weights[..., :length].flatten(2, 4) @ shared_v).view(*shape, -1)
        attended = attended + torch.einsum("bghktu,bgkud->bghktd", weights[..., length:], v)
        x = _finish(layer, x, attended.flatten(3, 4).flatten(1, 2).transpose(1, 2))
    return decoder.norm(x).unflatten(1, (samples, tokens))


def _moved(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x where the layer is: with a device map, accelerate's hook knows."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return x if device is None else x.to(device)


def _rotary(decoder: Any, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = decoder.rotary_emb(x, positions)
    return cos[:, None], sin[:, None]


def _project(
    layer: Any, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B,heads,T,d], keys and values [B,G,T,d] of x [B,T,D], rotated."""
    attention, x = layer.self_attn, layer.input_layernorm(x)
    q, k, v = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _rotate(q, *rotary), _rotate(k, *rotary), v


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.device) + torch.cat([-second, first], dim=-1) * sin.to(x.device)


def _finish(layer: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of a layer, from attended [B,T,heads,d]."""
    x = x + layer.self_attn.o_proj(attended.flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x))
