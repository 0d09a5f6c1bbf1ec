"""SteeredPolicy: a Policy made of a Policy and a Critic. Sample K candidates, score them all at once, act on a good one.

It acts on the mode of the policy tilted by the critic (robot_rl/steering/smoothing.py). Without smoothing, the ensemble minimum is
V-GPS (2410.13816), and the mean with a few ascent steps on the best candidates PA-RL's action optimisation (2412.06685). The policy
may be anything that has `sample`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec, Policy, observation_spec
from robot_rl.critic import Critic
from robot_rl.steering.ascent import ascend
from robot_rl.steering.config import ModeConfig, RandomConfig, SteeringConfig
from robot_rl.steering.shared_cameras import look_once, shared_cameras
from robot_rl.steering.smoothing import kernel, tilted


@dataclass(frozen=True)
class Decision:
    """What the last `sample` chose from. values: Q of the chosen chunk [B]. candidates: Q of all of them [B,K].

    disagreement: standard deviation of the critic's members about the chosen chunk [B].
    """

    values: torch.Tensor
    candidates: torch.Tensor
    disagreement: torch.Tensor

    @classmethod
    def of(
        cls, critic: Critic, z: torch.Tensor, chosen: torch.Tensor, values: torch.Tensor, candidates: torch.Tensor
    ) -> Decision:
        """chosen: the chunks [B,H,A] that were chosen, in physical units."""
        return cls(values, candidates, critic.values(z, chosen[:, None])[..., 0].std(dim=0, correction=0))


class CriticsChoice:
    """A policy whose chunks a critic chooses: it samples, as a Policy does, and says in `last_decision` what it chose from."""

    def __init__(self, policy: Policy, critic: Critic) -> None:
        self.policy, self.critic = policy, critic
        self.action_spec = steered_spec(policy.action_spec, critic.action_spec)
        self.observation_spec = both_see(policy, critic)
        self.last_decision: Decision | None = None
        self._shared = shared_cameras(policy, critic)

    def _seen(self, observations: Observations) -> Observations:
        """What policy and critic are given: frames that both would look at alike come with what is seen in them."""
        return look_once(self.critic.cameras, self._shared, observations) if self._shared else observations

    @property
    def device(self) -> torch.device:
        """Of the critic, and of the generator that `sample` is given; the policy must be there too."""
        return self.critic.device

    def reset(self) -> None:
        self.policy.reset()


class SteeredPolicy(CriticsChoice):
    """Axes: B observations, N draws, K candidates a draw, H chunk, A action, E members."""

    def __init__(self, policy: Policy, critic: Critic, config: SteeringConfig | None = None) -> None:
        super().__init__(policy, critic)
        self.config = config or SteeringConfig()

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """N independent draws of the steered policy, [B,N,H,A] in physical units; each chooses among K candidates of its own."""
        observations = self._seen(observations)
        candidates = self.policy.sample(observations, num_samples * self.config.num_samples, generator)
        candidates = candidates[:, :, : self.action_spec.chunk]
        z = self.critic.encode(observations)
        normalized = self.critic.normalize(candidates)
        values = self._score(z, normalized)
        draws = (len(z), num_samples)
        ranks = self._ranks(values, normalized, draws)
        if self.config.ascent_steps:
            candidates, values, ranks = self._improve(z, normalized, values, ranks, draws)
        candidates, values, ranks = (x.unflatten(1, (num_samples, -1)) for x in (candidates, values, ranks))
        chosen = self._choose(ranks, generator)
        actions = torch.take_along_dim(candidates, chosen[..., None, None, None], dim=2)[:, :, 0]
        picked = torch.take_along_dim(values, chosen[..., None], dim=2)[..., 0]
        self.last_decision = Decision.of(self.critic, z, actions[:, 0], picked[:, 0], values[:, 0])
        return actions

    def _score(self, z: torch.Tensor, normalized: torch.Tensor) -> torch.Tensor:
        """Q [B,K] of chunks in the critic's units."""
        values = self.critic.decode(self.critic.outputs(z, normalized))
        return values.min(dim=0).values if self.config.aggregate == "min" else values.mean(dim=0)

    def _ranks(self, values: torch.Tensor, normalized: torch.Tensor, draws: tuple[int, int]) -> torch.Tensor:
        """What is ranked by, in units of value: the values [B,N*K], or the tilted policy over the K candidates of each draw."""
        if not self.config.smoothing:
            return values
        chunks = normalized.flatten(2).unflatten(1, (draws[1], -1)).flatten(0, 1)
        by_draw = values.unflatten(1, (draws[1], -1)).flatten(0, 1)
        return tilted(by_draw, chunks, self.config.smoothing, self.config.temperature).view(values.shape)

    def _choose(self, values: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Index [B,N] of the chosen candidate, from what is ranked by [B,N,K]."""
        if self.config.smoothing or self.config.temperature == 0:
            return values.argmax(dim=-1)
        weights = torch.softmax(values / self.config.temperature, dim=-1)
        return torch.multinomial(weights.flatten(0, 1), 1, generator=generator).view(values.shape[:2])

    def _improve(
        self, z: torch.Tensor, normalized: torch.Tensor, values: torch.Tensor, ranks: torch.Tensor, draws: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ascend the best `keep` candidates of each draw within the action bounds: chunks, values and ranks, [B,N*keep,...].

        What a candidate gains by it is added to its rank.
        """
        ranks = ranks.unflatten(1, (draws[1], -1))
        best = ranks.topk(min(self.config.keep, ranks.shape[2]), dim=-1).indices
        kept = torch.take_along_dim(normalized.unflatten(1, (draws[1], -1)), best[..., None, None], dim=2).flatten(1, 2)
        before = torch.take_along_dim(values.unflatten(1, (draws[1], -1)), best, dim=2).flatten(1)
        ranks = torch.take_along_dim(ranks, best, dim=2).flatten(1)
        spec = self.policy.action_spec
        low, high = (self.critic.normalize(torch.tensor(bound, device=z.device)) for bound in (spec.low, spec.high))
        ascended, after = ascend(
            lambda u: self._score(z, u),
            kept,
            self.config.ascent_steps,
            self.config.step_size,
            low,
            high,
            self.config.trust_region,
            self.config.normalized_step,
        )
        return self.critic.unnormalize(ascended), after, ranks + after - before


class RandomChoice:
    """A control: a uniformly random one of the same K candidates. Whatever it gains over the policy is not the critic's doing."""

    def __init__(self, policy: Policy, critic: Critic, config: RandomConfig | None = None) -> None:
        self.policy, self.critic, self.num_samples = policy, critic, (config or RandomConfig()).num_samples
        self.action_spec = steered_spec(policy.action_spec, critic.action_spec)
        self.observation_spec = observation_spec(policy)

    @property
    def device(self) -> torch.device:
        """As of `CriticsChoice`."""
        return self.critic.device

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        candidates = self.policy.sample(observations, num_samples * self.num_samples, generator)
        candidates = candidates[:, :, : self.action_spec.chunk].unflatten(1, (num_samples, self.num_samples))
        chosen = self._choose(candidates, generator)
        return torch.take_along_dim(candidates, chosen[..., None, None, None], dim=2)[:, :, 0]

    def _choose(self, candidates: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Index [B,N] of candidates [B,N,K,H,A]."""
        return torch.randint(self.num_samples, candidates.shape[:2], generator=generator, device=candidates.device)


class ModeChoice(RandomChoice):
    """A control without a critic: the candidate about which most others lie. What smoothing gains over it, the critic gains."""

    def __init__(self, policy: Policy, critic: Critic, config: ModeConfig | None = None) -> None:
        self._width = (config or ModeConfig()).smoothing
        super().__init__(policy, critic, RandomConfig((config or ModeConfig()).num_samples))

    def _choose(self, candidates: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        chunks = self.critic.normalize(candidates).flatten(0, 1).flatten(2)
        return kernel(chunks, self._width).sum(dim=-1).argmax(dim=-1).view(candidates.shape[:2])


def both_see(policy: Policy, critic: Critic) -> ObservationSpec:
    """What both look at; images at the policy's size, which the critic resizes for itself."""
    seen = observation_spec(policy)
    return replace(
        seen,
        images={**critic.observation_spec.images, **seen.images},
        vectors={**critic.observation_spec.vectors, **seen.vectors},
        # The critic's language may be that of its data alone, which then is the narrower one.
        instruction=critic.observation_spec.instruction,
    )


def steered_spec(policy: ActionSpec, critic: ActionSpec) -> ActionSpec:
    """The policy's spec with the chunk that the critic scores; InputError when the two do not speak of the same actions."""
    for field in ("names", "units", "frame", "control_hz"):
        ours, theirs = getattr(policy, field), getattr(critic, field)
        if ours != theirs:
            raise InputError(
                f"the policy's action {field} is {ours} but the critic's is {theirs}; "
                "train a critic on data with the policy's actions, or convert the policy's actions first"
            )
    if policy.chunk < critic.chunk:
        raise InputError(
            f"the policy proposes chunks of {policy.chunk} actions but the critic scores {critic.chunk}; "
            f"train the critic with --chunk {policy.chunk} or less"
        )
    return replace(policy, chunk=critic.chunk)
