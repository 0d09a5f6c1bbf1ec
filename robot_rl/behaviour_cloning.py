"""Behaviour cloning of any `policies.Trainable`: its own supervised loss, a cosine learning rate, an average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from robot_rl.config import CloningConfig


class CloningLearner(nn.Module):
    """policy: a module that is `policies.Trainable`. See robot_rl.training.Learner. The averaged weights are what is kept and acts."""

    step: torch.Tensor

    def __init__(self, policy: Any, config: CloningConfig, steps: int) -> None:
        super().__init__()
        self.online = policy
        self.averaged: nn.Module = copy.deepcopy(policy).requires_grad_(False)
        self.config, self.steps = config, steps
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=1e-6, fused=True)
        }
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def model(self) -> nn.Module:
        return self.averaged

    def to_json(self) -> dict[str, Any]:
        return {**self.online.to_json(), "cloning": asdict(self.config)}

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        optimizer = self.optimizers["policy"]
        self.step += 1
        progress = int(self.step) / self.steps
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        actions = torch.as_tensor(batch["actions"], device=next(self.online.parameters()).device)
        loss = self.online.loss(batch["observations"], actions, generator=generator).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(self.online.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            # The average is short at first, so that it forgets the initialisation.
            decay = min(self.config.average, (1 + int(self.step)) / (10 + int(self.step)))
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.online.parameters()), 1 - decay)
        return {"loss": loss, "gradient_norm": gradient_norm}
