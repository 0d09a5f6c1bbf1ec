"""The critic's learners: IQL, and conservative Q-learning with Cal-QL as its calibrated form. One `update` is one gradient step.

A batch is what `data.ChunkSampler` draws: reward and discount are those of the whole chunk (mask and gamma^H included), so TD over
chunks is ordinary TD.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.contract import DataContract
from robot_rl.critic.config import CriticConfig
from robot_rl.critic.critic import Critic
from robot_rl.critic.losses import conservative_penalty, expectile_loss, hl_gauss_loss, td_loss, td_target
from robot_rl.critic.networks import EnsembleMLP, TanhGaussianActor

Batch = Mapping[str, Any]
Metrics = dict[str, torch.Tensor]


class CriticLearner(nn.Module):
    """What both learners share: online and target critic, optimiser, slow copy of the weights. See robot_rl.training.Learner."""

    def __init__(self, config: CriticConfig, contract: DataContract) -> None:
        super().__init__()
        self.config = config
        self.online = Critic(config, contract)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """The target critic is what is kept and steers: the average over time is the better estimate."""
        return self.target.state_dict()

    def to_json(self) -> dict[str, Any]:
        return self.online.to_json()

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, device=self.online.edges.device)

    def _td(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.config.head == "scalar":
            return td_loss(self.online.decode(outputs), target)
        return hl_gauss_loss(outputs, target, self.online.edges)

    def update(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """One gradient step; the metrics are scalars."""
        raise NotImplementedError

    @torch.no_grad()
    def _update_target(self) -> None:
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), self.config.tau)


class IQLLearner(CriticLearner):
    """Implicit Q-learning (2110.06169): V is an expectile of the target Q on data actions; Q regresses on r + gamma V(s')."""

    def __init__(self, config: CriticConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        self.value = EnsembleMLP(1, self.online.encoder.output, 0, config.hidden, config.depth, 1)
        parameters = [*self.online.parameters(), *self.value.parameters()]
        self.optimizers = {"critic": torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)}

    def update(self, batch: Batch, generator: torch.Generator) -> Metrics:
        actions = self.online.normalize(self._tensor(batch["actions"]))[:, None]
        reward, discount = self._tensor(batch["reward"]), self._tensor(batch["discount"])
        with torch.no_grad():
            next_value = self.value(self.online.encode(batch["next_observations"]))[0, :, 0, 0]
            target = reward + discount * next_value
            target_q = self.target.decode(self.target.outputs(self.target.encode(batch["observations"]), actions))
            target_q = target_q[..., 0].min(dim=0).values
        z = self.online.encode(batch["observations"])
        value = self.value(z)[0, :, 0, 0]
        value_loss = expectile_loss(target_q - value, self.config.expectile)
        outputs = self.online.outputs(z, actions)[:, :, 0]
        q_loss = self._td(outputs, target)
        self.optimizers["critic"].zero_grad(set_to_none=True)
        (q_loss + value_loss).backward()
        self.optimizers["critic"].step()
        self._update_target()
        advantage = target_q - value
        return {
            "q_loss": q_loss,
            "value_loss": value_loss,
            "q": target_q.mean(),
            "value": value.mean(),
            "advantage_std": advantage.std(correction=0),
        }


class ConservativeLearner(CriticLearner):
    """CQL (2006.04779) and Cal-QL (2303.05479) with the soft actor-critic that proposes their actions, as V-GPS trains it."""

    def __init__(self, config: CriticConfig, contract: DataContract) -> None:
        super().__init__(config, contract)
        dim = config.chunk * self.online.action_spec.dim
        self.action_dim = dim
        self.actor = TanhGaussianActor(self.online.encoder.output, dim, config.hidden)
        self.log_entropy_weight = nn.Parameter(torch.zeros(()))
        actor = [*self.actor.parameters(), self.log_entropy_weight]
        self.optimizers = {
            "critic": torch.optim.Adam(self.online.parameters(), lr=config.learning_rate, fused=True),
            "actor": torch.optim.Adam(actor, lr=config.actor_learning_rate, fused=True),
        }

    def update(self, batch: Batch, generator: torch.Generator) -> Metrics:
        config, n = self.config, self.config.num_actions
        actions = self.online.normalize(self._tensor(batch["actions"]))[:, None]
        reward, discount = self._tensor(batch["reward"]), self._tensor(batch["discount"])
        z = self.online.encode(batch["observations"])
        with torch.no_grad():
            next_actions, log_prob_next = self.actor(self.online.encode(batch["next_observations"]), n, generator)
            current_actions, log_prob_current = self.actor(z, n, generator)
            random_actions = torch.rand(next_actions.shape, generator=generator, device=z.device) * 2 - 1
            next_q = self._chunk_q(self.target, self.target.encode(batch["next_observations"]), next_actions)
            target = td_target(next_q, reward, discount, config.max_target_backup)
        # One pass of the ensemble for the data action and the 3n drawn ones, all at s.
        drawn = torch.cat([actions.flatten(2), random_actions, current_actions, next_actions], dim=1)
        outputs = self.online.outputs(z, drawn.unflatten(-1, (config.chunk, -1)))
        q = self.online.decode(outputs)
        q_random, q_current, q_next = q[..., 1:].split(n, dim=-1)
        penalty = conservative_penalty(
            q[..., 0],
            q_random,
            q_current,
            q_next,
            log_prob_current=log_prob_current,
            log_prob_next=log_prob_next,
            action_dim=self.action_dim,
            mc_return=self._tensor(batch["mc_return"]),
            clamp="none" if config.algorithm == "cql" else config.clamp,
            temperature=config.temperature,
            importance_sampling=config.importance_sampling,
        ).mean()
        q_loss = self._td(outputs[:, :, 0], target)
        self.optimizers["critic"].zero_grad(set_to_none=True)
        (q_loss + config.alpha * penalty).backward()
        self.optimizers["critic"].step()
        actor_metrics = self._update_actor(z.detach(), generator)
        self._update_target()
        return {"q_loss": q_loss, "penalty": penalty, "q": q[..., 0].mean(), **actor_metrics}

    def _update_actor(self, z: torch.Tensor, generator: torch.Generator) -> Metrics:
        """SAC's actor and entropy weight; the target entropy is -D."""
        actions, log_prob = self.actor(z, 1, generator)
        entropy_weight = self.log_entropy_weight.exp()
        parameters = list(self.online.heads.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        q = self._chunk_q(self.online, z, actions).min(dim=0).values
        actor_loss = (entropy_weight.detach() * log_prob - q).mean()
        entropy_loss = -entropy_weight * (log_prob.detach() - self.action_dim).mean()
        self.optimizers["actor"].zero_grad(set_to_none=True)
        (actor_loss + entropy_loss).backward()
        self.optimizers["actor"].step()
        for parameter in parameters:
            parameter.requires_grad_(True)
        return {"actor_loss": actor_loss, "entropy": -log_prob.mean(), "entropy_weight": entropy_weight}

    def _chunk_q(self, critic: Critic, z: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        return critic.decode(critic.outputs(z, flat.unflatten(-1, (self.config.chunk, -1))))


def make_learner(config: CriticConfig, contract: DataContract) -> CriticLearner:
    return (IQLLearner if config.algorithm == "iql" else ConservativeLearner)(config, contract)
