"""Behaviour cloning of any `policies.Trainable`: its own supervised loss, a cosine learning rate, an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from robot_rl.config import CloningConfig


class CloningLearner:
    """policy: a module that is `policies.Trainable`. See robot_rl.training.Learner.

    Only parameters that require gradients are trained, averaged and kept between steps, so that a few adapters on a large frozen model
    cost what they weigh. The averaged weights are what a checkpoint holds and what acts.
    """

    def __init__(self, policy: Any, config: CloningConfig, steps: int) -> None:
        self.policy, self.config, self.steps = policy, config, steps
        self.trained: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad
        }
        self.averaged = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.AdamW(self.trained.values(), lr=config.learning_rate, weight_decay=1e-6, fused=True)
        }
        self.step = 0

    def to(self, device: torch.device) -> CloningLearner:
        self.policy.to(device)
        self.averaged = {name: value.to(device) for name, value in self.averaged.items()}
        return self

    def to_json(self) -> dict[str, Any]:
        return {**self.policy.to_json(), "cloning": asdict(self.config)}

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        with self.acting():
            return {name: value.detach().clone() for name, value in self.policy.checkpoint_tensors().items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What training needs to go on: the online and averaged values of what is trained, and the step."""
        online = {f"online/{name}": parameter.detach() for name, parameter in self.trained.items()}
        averaged = {f"averaged/{name}": value for name, value in self.averaged.items()}
        return {**online, **averaged, "step": torch.tensor(self.step)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """KeyError or RuntimeError when the state is of another model."""
        for name, parameter in self.trained.items():
            parameter.copy_(state[f"online/{name}"])
            self.averaged[name].copy_(state[f"averaged/{name}"])
        self.step = int(state["step"])

    @contextmanager
    def acting(self) -> Iterator[Any]:
        """The policy with its averaged weights."""
        online = {name: parameter.data for name, parameter in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.averaged[name]
            yield self.policy
        finally:
            for name, parameter in self.trained.items():
                parameter.data = online[name]

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        optimizer = self.optimizers["policy"]
        self.step += 1
        progress = self.step / self.steps
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        actions = torch.as_tensor(batch["actions"], device=next(iter(self.trained.values())).device)
        loss = self.policy.loss(batch["observations"], actions, generator=generator).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            # The average is short at first, so that it forgets the initialisation.
            decay = min(self.config.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.averaged.values()), list(self.trained.values()), 1 - decay)
        return {"loss": loss, "gradient_norm": gradient_norm}
