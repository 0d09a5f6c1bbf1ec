"""The shared prefix is exactly the whole model's forward pass, its samples have the right distribution, and it costs what it should."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from data.torchvision_repair import repair_torchvision
from policies.networks.shared_prefix import hidden_states, prefill, sample_tokens, score_tokens
from tests.policies.seeded import generator

torch.set_num_threads(1)


def llama(seed: int = 0, hidden: int = 32, layers: int = 2, heads: int = 4, groups: int = 2, vocabulary: int = 40):
    repair_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def allowed(model, first: int, count: int):
    """Head and embedding of `count` tokens from `first` on."""
    return (
        lambda hidden: torch.nn.functional.linear(hidden, model.lm_head.weight[first : first + count]),
        lambda indices: model.model.embed_tokens(indices + first),
    )


def full_logits(model, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [n,V] of n tokens after one unpadded prefix [P,D], by transformers and without any cache."""
    embeddings = torch.cat([row, model.model.embed_tokens(tokens)])[None]
    return model(inputs_embeds=embeddings, use_cache=False).logits[0, len(row) - 1 : -1]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    layers=st.integers(1, 3),
    samples=st.integers(1, 4),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_equal_to_the_whole_forward_pass(lengths, heads, layers, samples, tokens, seed):
    """Drawn step by step, and scored at once, with prefixes of different lengths: both are what transformers computes."""
    model = llama(seed, layers=layers, heads=heads[0], groups=heads[1])
    head, embed = allowed(model, 5, 20)
    embeddings = torch.randn(len(lengths), max(lengths), 32, generator=generator(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prefix = prefill(model.model, embeddings, mask)
    seen = []

    def noted(hidden):
        seen.append(head(hidden))
        return seen[-1]

    indices = sample_tokens(model.model, noted, embed, prefix, samples, tokens, generator=generator(seed))
    scores = score_tokens(model.model, head, embed, prefix, indices)
    assert indices.shape == scores.shape == (len(lengths), samples, tokens)
    assert len(seen) == tokens
    for b, k in product(range(len(lengths)), range(samples)):
        expected = full_logits(model, embeddings[b, : lengths[b]], indices[b, k] + 5)[:, 5:25]
        for step, logits in enumerate(seen):
            torch.testing.assert_close(logits[b] if step == 0 else logits[b, k], expected[step], atol=1e-4, rtol=1e-4)
        wanted = expected.log_softmax(-1).gather(-1, indices[b, k, :, None])[:, 0]
        torch.testing.assert_close(scores[b, k], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_both_directions_see_everything_but_padding():
    model = llama()
    embeddings, lengths = torch.randn(2, 9, 32, generator=generator()), (9, 6)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    hidden = hidden_states(model.model, embeddings, mask, causal=False)
    for b, length in enumerate(lengths):
        everything = torch.zeros(1, 1, length, length)
        whole = model.model(inputs_embeds=embeddings[b : b + 1, :length], attention_mask=everything, use_cache=False)
        torch.testing.assert_close(hidden[b, :length], whole.last_hidden_state[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_samples_have_their_exact_distribution():
    """Every continuation's frequency, with temperature and top_k, against the product of its probabilities."""
    model = llama(seed=1)
    head, embed = allowed(model, 3, 4)
    prefix = prefill(model.model, torch.randn(1, 5, 32, generator=generator()))
    every = torch.tensor(list(product(range(4), repeat=2)))
    temperature, top_k, draws = 2.0, 3, 30_000

    def truncated(logits):
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        return (logits / temperature).masked_fill(logits < least, float("-inf"))

    exact = score_tokens(model.model, lambda hidden: truncated(head(hidden)), embed, prefix, every[None])[0].sum(-1).exp()
    torch.testing.assert_close(exact.sum(), torch.tensor(1.0))
    drawn = sample_tokens(model.model, head, embed, prefix, draws, 2, temperature, top_k, generator())[0]
    counts = torch.bincount(drawn @ torch.tensor([4, 1]), minlength=16)
    assert (counts[exact == 0] == 0).all()
    possible = exact > 0
    chi_square = ((counts - draws * exact)[possible].square() / (draws * exact[possible])).sum()
    assert chi_square < 2 * possible.sum() + 20


@torch.no_grad()
def test_temperature_zero_is_greedy():
    model = llama(seed=2)
    head, embed = allowed(model, 0, 40)
    embeddings = torch.randn(2, 6, 32, generator=generator())
    prefix = prefill(model.model, embeddings)
    tokens = sample_tokens(model.model, head, embed, prefix, 3, 4, temperature=0)
    expected = model.generate(inputs_embeds=embeddings, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(tokens, expected[:, None].expand(-1, 3, -1))


def test_gradients_reach_the_model():
    model = llama()
    head, embed = allowed(model, 5, 20)
    prefix = prefill(model.model, torch.randn(2, 5, 32, generator=generator()))
    score_tokens(model.model, head, embed, prefix, torch.randint(20, (2, 3, 4))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("samples", [10, 50, 100])
@torch.no_grad()
def test_what_k_adds_is_its_own_tokens_work(samples):
    model = llama(hidden=128, groups=4, vocabulary=300)
    head, embed = allowed(model, 20, 256)
    embeddings = torch.randn(1, 280, 128, generator=generator())

    def multiplications(each: int) -> int:
        with FlopCounterMode(display=False) as counter:
            sample_tokens(model.model, head, embed, prefill(model.model, embeddings), each, 7)
        return counter.get_total_flops()

    # A sample reads six tokens more, where one observation's 280 are read once; the head comes on top.
    assert multiplications(samples) < multiplications(1) * (1 + 1.6 * 6 * samples / 280)


@torch.no_grad()
def test_the_prefix_is_not_copied():
    """No tensor that sampling makes is as large as the keys of K prefixes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.untyped_storage().nbytes() // result.element_size())
            return result

    model = llama(hidden=64, groups=4)
    head, embed = allowed(model, 5, 20)
    prefix = prefill(model.model, torch.randn(1, 200, 64, generator=generator()))
    with Largest() as largest:
        sample_tokens(model.model, head, embed, prefix, 64, 4)
    copies = 64 * prefix.keys[0].numel()
    assert largest.size < copies / 8
