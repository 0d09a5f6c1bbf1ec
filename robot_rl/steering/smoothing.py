"""Values smoothed over a policy's own candidates: why many candidates do no harm here.

A critic is right about regions of actions and wrong about single ones, and the best of many candidates is where it is most wrong: so
V-GPS and all who take the maximum get worse as K grows. Averaged over its neighbours among the candidates a value keeps what the
critic knows of the region and loses its errors, and a candidate with few neighbours, which the policy itself hardly proposes, is drawn
towards the mean of all. As K grows this tends to a limit, in place of an ever more extreme error.
"""

from __future__ import annotations

import torch


def smoothed(values: torch.Tensor, chunks: torch.Tensor, width: float, prior: float) -> torch.Tensor:
    """Kernel regression of values [B,K] over chunks [B,K,D], shrunk to their mean where candidates are sparse: [B,K].

    v_i <- mean + sum_j k_ij (v_j - mean) / (sum_j k_ij + prior) with k_ij = exp(-d_ij^2 / 2 h^2), where h is `width` times the median
    distance of two candidates: Nadaraya-Watson (1964), as if each candidate also had `prior` neighbours with the mean value.
    """
    distances = torch.cdist(chunks, chunks)
    scale = distances.flatten(1).median(dim=1).values.clamp_min(1e-9)
    kernel = torch.exp(-0.5 * (distances / (width * scale[:, None, None])).square())
    mean = values.mean(dim=1, keepdim=True)
    return mean + (kernel @ (values - mean)[..., None])[..., 0] / (kernel.sum(dim=-1) + prior)
