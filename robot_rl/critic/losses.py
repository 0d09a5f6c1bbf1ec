"""The critics' losses as pure functions of Q-values: conservative Q-learning (CQL, Cal-QL), IQL and the HL-Gauss value head.

Axes: E ensemble members, B batch, n actions drawn from one source. CQL is arXiv 2006.04779, Cal-QL 2303.05479, IQL 2110.06169,
HL-Gauss 2403.03950. Each function is one equation.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from robot_rl.critic.config import Clamp


def td_target(
    next_q: torch.Tensor, reward: torch.Tensor, discount: torch.Tensor, max_target_backup: bool = True
) -> torch.Tensor:
    """y [B] = r + discount * max_n min_e Q_target(s', a'_n), or the first a' without the max-target backup.

    next_q: [E,B,n] target values of n policy actions at s'. reward, discount: [B]; the discount holds gamma and the mask. The minimum
    over members comes first, then the maximum over actions.
    """
    pessimistic = next_q.min(dim=0).values
    best = pessimistic.max(dim=-1).values if max_target_backup else pessimistic[:, 0]
    return reward + discount * best


def td_loss(q: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over members and batch of (Q_e - y)^2. q: [E,B], target: [B]."""
    return (q - target).square().mean()


def conservative_penalty(
    q_data: torch.Tensor,
    q_random: torch.Tensor,
    q_current: torch.Tensor,
    q_next: torch.Tensor,
    log_prob_current: torch.Tensor,
    log_prob_next: torch.Tensor,
    action_dim: int,
    mc_return: torch.Tensor | None = None,
    clamp: Clamp = "policy",
    temperature: float = 1.0,
    importance_sampling: bool = True,
) -> torch.Tensor:
    """Per-member, per-sample gap [E,B] between a soft maximum over drawn actions and the data action.

    q_data: [E,B]. q_random, q_current, q_next: [E,B,n], all evaluated at s, for actions drawn uniformly from [-1,1]^D, from pi(s) and
    from pi(s'). log_prob_current, log_prob_next: [B,n]. action_dim: D, of the whole chunk.

    Cal-QL (clamp not "none"): Q <- max(Q, mc_return [B]) on the policy's actions, or on "all" drawn ones, before importance weights.
    With importance sampling each Q has its proposal's log-density subtracted (uniform: 0.5^D). Without, the data action joins the set
    and temperature * log(3n+1) is subtracted, so that equal values give no penalty.
    """
    if clamp != "none":
        if mc_return is None:
            raise ValueError("Cal-QL clamps at the Monte-Carlo return, but mc_return is None")
        floor = mc_return[None, :, None]
        q_current, q_next = torch.maximum(q_current, floor), torch.maximum(q_next, floor)
        if clamp == "all":
            q_random = torch.maximum(q_random, floor)
    if importance_sampling:
        drawn = [q_random - action_dim * math.log(0.5), q_current - log_prob_current, q_next - log_prob_next]
    else:
        drawn = [q_random, q_current, q_next, q_data[..., None]]
    values = torch.cat(drawn, dim=-1)
    soft_maximum = temperature * torch.logsumexp(values / temperature, dim=-1)
    if not importance_sampling:
        soft_maximum = soft_maximum - temperature * math.log(values.shape[-1])
    return soft_maximum - q_data


def expectile_loss(difference: torch.Tensor, expectile: float) -> torch.Tensor:
    """Mean of |expectile - 1(u < 0)| u^2 over u = Q - V (IQL, equation 5)."""
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return (weight * difference.square()).mean()


def hl_gauss_target(target: torch.Tensor, edges: torch.Tensor, sigma_bins: float = 0.75) -> torch.Tensor:
    """Probability of each bin under N(y, sigma^2), truncated to the support: [...] -> [..., len(edges)-1].

    sigma is `sigma_bins` bin widths. The normal CDF is (1 + erf(x / (sigma sqrt 2))) / 2; leaving the sqrt 2 out of the division, or
    multiplying by it twice, changes the width (PA-RL's is sqrt 2 too wide).
    """
    target = target.clamp(edges[0], edges[-1])
    sigma = sigma_bins * (edges[1] - edges[0])
    cdf = 0.5 * (1 + torch.erf((edges - target[..., None]) / (sigma * math.sqrt(2))))
    mass = cdf[..., 1:] - cdf[..., :-1]
    return mass / (cdf[..., -1:] - cdf[..., :1])


def hl_gauss_loss(logits: torch.Tensor, target: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of binned values. logits: [E,B,bins], target: [B]."""
    probabilities = hl_gauss_target(target, edges)
    return -(probabilities * F.log_softmax(logits, dim=-1)).sum(-1).mean()


def hl_gauss_value(logits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Expected value of the binned distribution: [...,bins] -> [...]."""
    centres = (edges[1:] + edges[:-1]) / 2
    return (F.softmax(logits, dim=-1) * centres).sum(-1)
