"""K samples: one pass of the trunk, and the right distribution."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from policies import ActionSpec
from policies.bench import bench_sampling
from policies.config import AutoregressiveConfig, DiffusionConfig, FlowConfig, GaussianConfig
from policies.contract import DataContract
from policies.examples import examples
from tests.policies.families import CAMERAS, VECTORS, make
from tests.policies.seeded import generator, observations


@pytest.mark.parametrize(
    "config",
    [
        GaussianConfig(CAMERAS, hidden=16),
        DiffusionConfig(CAMERAS, hidden=16, inference_steps=5),
        DiffusionConfig(CAMERAS, hidden=16, blocks=2, inference_steps=5, denoiser="unet"),
        FlowConfig(CAMERAS, hidden=16, inference_steps=5),
        AutoregressiveConfig(CAMERAS, hidden=16, layers=1, heads=2, bins=8),
    ],
    ids=lambda config: f"{config.family} {getattr(config, 'denoiser', '')}",
)
def test_the_image_encoder_runs_once(store, config):
    policy = make(store, config)
    passes = []
    policy.encoder.cameras["image_primary"].register_forward_hook(lambda _, inputs, output: passes.append(len(inputs[0])))
    policy.sample(observations(policy, 2), 50, generator())
    assert passes == [2]


def test_tokens_are_drawn_from_their_distribution(store):
    """Every continuation's frequency against its exact probability, by the likelihood of the same policy."""
    from policies.autoregressive import AutoregressivePolicy

    torch.manual_seed(3)
    config = AutoregressiveConfig(VECTORS, chunk=1, hidden=16, layers=2, heads=2, bins=3)
    policy = AutoregressivePolicy(config, DataContract.from_store(store, 1, VECTORS.inputs)).eval()
    with torch.no_grad():
        policy.output.weight.mul_(6)
    seen = observations(policy, 2)
    centres = (torch.arange(3) + 0.5) * 2 / 3 - 1
    every = torch.stack([centres[list(bins)] for bins in product(range(3), repeat=3)])[:, None]
    chunks = policy.contract.action_normalizer.unnormalize(every).expand(2, -1, -1, -1)
    with torch.no_grad():
        exact = policy.log_prob(seen, chunks).exp()
    torch.testing.assert_close(exact.sum(-1), torch.ones(2), atol=1e-5, rtol=0)
    draws = 20_000
    bins = policy._bins(policy.contract.action_normalizer.normalize(policy.sample(seen, draws, generator())))[:, :, 0]
    drawn = bins @ torch.tensor([9, 3, 1])
    for row in range(2):
        counts = torch.bincount(drawn[row], minlength=27)
        expected = exact[row] * draws
        chi_squared = float(((counts - expected).square() / expected).sum())
        # The 99.99% point of chi-squared with 26 degrees of freedom is 62.
        assert chi_squared < 62
    assert exact.max() > 0.1


def test_a_gaussian_is_one(store):
    policy = make(store, GaussianConfig(VECTORS, hidden=16))
    wide = ActionSpec(**{**policy.action_spec.to_json(), "low": (-9.0,) * 3, "high": (9.0,) * 3})
    policy.low, policy.high = torch.tensor(wide.low), torch.tensor(wide.high)
    seen = observations(policy, 1)
    samples = policy.sample(seen, 4000, generator())
    # The entropy of what is drawn, by its own density, is that of the Gaussian: sum of log std + D/2 log(2 pi e).
    with torch.no_grad():
        _, log_std = policy._moments(policy.encode(seen))
    scale = torch.as_tensor(policy.contract.action_normalizer.scale).log().sum() * policy.action_spec.chunk
    entropy = log_std.sum() + scale + log_std.numel() / 2 * np.log(2 * np.pi * np.e)
    with torch.no_grad():
        measured = -policy.log_prob(seen, samples).mean()
    assert float(measured) == pytest.approx(float(entropy), abs=0.2)


def test_the_benchmark_measures_every_way(store):
    rows = list(bench_sampling(make(store, GaussianConfig(VECTORS, hidden=16)), repeats=1))
    assert [row["k"] for row in rows] == [1, 10, 50, 100]
    assert rows[0]["ratio"] == 1
    assert all({"calls_ratio", "copies_ratio"} <= row.keys() for row in rows[1:])
    assert {"gaussian", "diffusion", "flow", "autoregressive"} <= examples().keys()
