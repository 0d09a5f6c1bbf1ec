"""The mode of a policy tilted by a critic, found among the policy's own candidates: why many candidates do no harm here.

What is wanted is the best action of pi(a) exp(Q(a) / temperature), the policy improved as far as a bound on how far it may go from
itself allows. V-GPS draws from it, or takes the maximum of Q alone. But a critic is right about regions of actions and wrong about
single ones, and the best of many candidates is where it is most wrong: so it gets worse as K grows. Here density and value are those
of a candidate's neighbourhood: errors about single actions average out, and a lonely candidate has the policy itself against it. As K
grows this tends to a limit, in place of an ever more extreme error.
"""

from __future__ import annotations

import torch


def kernel(chunks: torch.Tensor, width: float) -> torch.Tensor:
    """How near candidates [B,K,D] are to each other, 0 to 1: [B,K,K]; its sums over the last axis are their density.

    k_ij = exp(-d_ij^2 / 2 h^2), where h is `width` times the median distance between two of them.
    """
    # Exactly, so that equal candidates are at distance zero: the quick way by matrix products is not.
    distances = torch.cdist(chunks, chunks, compute_mode="donot_use_mm_for_euclid_dist")
    count = chunks.shape[1]
    if count == 1:
        return torch.ones_like(distances)
    first, second = torch.triu_indices(count, count, 1, device=chunks.device)
    scale = distances[:, first, second].median(dim=1).values.clamp_min(1e-9)
    return torch.exp(-0.5 * (distances / (width * scale[:, None, None])).square())


def tilted(values: torch.Tensor, chunks: torch.Tensor, width: float, temperature: float) -> torch.Tensor:
    """temperature * log density + value of each candidate's neighbourhood: values [B,K], chunks [B,K,D] -> [B,K], up to a constant.

    Density and value are kernel estimates over the candidates: Rosenblatt (1956), Nadaraya (1964) and Watson (1964). At temperature 0
    it is the smoothed value alone, at a high one the policy's own mode.
    """
    near = kernel(chunks, width)
    density = near.sum(dim=-1)
    return (near @ values[..., None])[..., 0] / density + temperature * (density / values.shape[1]).log()
