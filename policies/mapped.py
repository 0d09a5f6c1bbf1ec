"""MappedPolicy: a policy whose action vectors follow another convention, made one of ours by a map (policies/maps)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, Policy, observation_spec
from policies.history import latest
from policies.maps.policy_map import PolicyMap


class MappedPolicy(nn.Module):
    """See policies.base: what `policy` can do, this can, with our actions [...,A] in place of theirs [...,D].

    Observations pass as they are: `policy` knows them by our names already. Samples are clipped to the map's bounds. `log_prob` is
    there only under affine maps, where it is the density of our actions (a token policy's log-probability, plus a constant); where
    turns are converted or grippers rounded there is none.
    """

    encode: Callable[..., Any]
    sample_encoded: Callable[..., torch.Tensor]
    loss: Callable[..., torch.Tensor]
    log_prob: Callable[..., torch.Tensor]

    def __init__(self, policy: Policy, policy_map: PolicyMap) -> None:
        """InputError when the map is for actions of another size, or remembers (a policy does not)."""
        super().__init__()
        spec, actions = policy.action_spec, policy_map.actions
        if actions is not None and actions.size != spec.dim:
            raise InputError(f"map {policy_map.name}: its actions have {actions.size} numbers, the policy's {spec.dim}")
        if policy_map.has_memory():
            raise InputError(
                f"map {policy_map.name}: it remembers the gripper over an episode, as a client's map may and a policy's cannot"
            )
        self.policy, self.map = policy, policy_map
        self.action_spec: ActionSpec = spec if actions is None else actions.spec(spec.chunk)
        # In the instance, not in the class: what a policy can do is seen by what it has.
        if hasattr(policy, "encode"):
            self.encode, self.sample_encoded = self._encode, self._sample_encoded
        if hasattr(policy, "loss"):
            self.loss = self._loss
        if hasattr(policy, "log_prob") and (actions is None or actions.is_affine()):
            self.log_prob = self._log_prob

    @property
    def family(self) -> str:
        return getattr(self.policy, "family", "mapped")

    @property
    def observation_spec(self) -> ObservationSpec:
        return observation_spec(self.policy)

    @property
    def device(self) -> torch.device:
        return getattr(self.policy, "device", torch.device("cpu"))

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return self._ours(self.policy.sample(observations, num_samples, generator), _proprio(observations))

    def _encode(self, observations: Observations) -> tuple[Any, np.ndarray | None]:
        return self.policy.encode(observations), _proprio(observations)  # type: ignore[attr-defined]

    @torch.no_grad()
    def _sample_encoded(
        self, encoding: tuple[Any, np.ndarray | None], num_samples: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        inner, proprio = encoding
        return self._ours(self.policy.sample_encoded(inner, num_samples, generator), proprio)  # type: ignore[attr-defined]

    def _loss(
        self,
        observations: Observations,
        actions: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The policy's own loss, of our actions in its terms: in its units, not in ours."""
        theirs = self._theirs(actions, _proprio(observations))
        return self.policy.loss(observations, theirs, weights, generator)  # type: ignore[attr-defined]

    def _log_prob(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        inner = self.policy.log_prob(observations, self._theirs(actions, _proprio(observations)))  # type: ignore[attr-defined]
        # Change of variables: ours = scale * theirs + offset, in every action of the chunk; differences of positions change no volume.
        scales = [] if self.map.actions is None else [abs(s) for segment in self.map.actions.segments for s in segment.scale]
        return inner - actions.shape[-2] * sum(map(math.log, scales))

    def _ours(self, theirs: torch.Tensor, proprio: np.ndarray | None) -> torch.Tensor:
        if self.map.actions is None:
            return theirs
        ours = torch.from_numpy(self.map.actions_from_theirs(theirs.cpu().numpy(), proprio)).to(theirs.device)
        low, high = (torch.tensor(bound, device=ours.device) for bound in (self.action_spec.low, self.action_spec.high))
        return ours.clamp(low, high)

    def _theirs(self, actions: torch.Tensor, proprio: np.ndarray | None) -> torch.Tensor:
        return torch.from_numpy(self.map.actions_to_theirs(actions.detach().cpu().numpy(), proprio)).to(actions.device)


def _proprio(observations: Observations) -> np.ndarray | None:
    """[B,P] of the newest step."""
    return latest(observations).get("proprio")
