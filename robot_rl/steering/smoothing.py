"""Values smoothed over a policy's own candidates: why many candidates do no harm here.

A critic is right about regions of actions and wrong about single ones, and the best of many candidates is where it is most wrong: so
V-GPS and all who take the maximum get worse as K grows. Summed over its neighbourhood an advantage keeps what the critic knows of the
region and loses its errors about single actions, and weighs how often the policy itself goes there: a lonely candidate has only its
own to show. As K grows this tends to a limit, in place of an ever more extreme error.
"""

from __future__ import annotations

import torch


def smoothed(values: torch.Tensor, chunks: torch.Tensor, width: float) -> torch.Tensor:
    """The mean value, plus the advantage of each candidate's neighbourhood as far as it is populated: values [B,K], chunks [B,K,D] ->
    [B,K].

    v_i <- mean + sum_j k_ij (v_j - mean) / max_l sum_j k_lj with k_ij = exp(-d_ij^2 / 2 h^2), where h is `width` times the median
    distance of two candidates. It ranks by the candidates' density times the mean advantage about them, which is kernel regression
    (Nadaraya 1964, Watson 1964) with ever more weight on the mean where the density is low.
    """
    near, mean = kernel(chunks, width), values.mean(dim=1, keepdim=True)
    return mean + (near @ (values - mean)[..., None])[..., 0] / near.sum(dim=-1).amax(dim=1, keepdim=True)


def kernel(chunks: torch.Tensor, width: float) -> torch.Tensor:
    """How near candidates [B,K,D] are to each other, 0 to 1: [B,K,K]; its sums over the last axis are their density."""
    distances = torch.cdist(chunks, chunks)
    scale = distances.flatten(1).median(dim=1).values.clamp_min(1e-9)
    return torch.exp(-0.5 * (distances / (width * scale[:, None, None])).square())
