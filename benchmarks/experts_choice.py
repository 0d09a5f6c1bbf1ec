"""Where steering does not help: is it the critic, or does the policy never propose what works?

A clean scripted expert chooses among the policy's K candidates, the one nearest to what he would do next. Where even he fails, nobody
could have chosen better; where he succeeds and the critic does not, the critic is the limit.

    python benchmarks/experts_choice.py --policy runs/five/tabletop/flow --critic runs/five/tabletop/critic --env Tabletop-Push-v0
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from policies import load_policy
from policies.base import Policy
from robot_rl.critic import Critic, load_critic
from robot_rl.evaluation import stack_observations, wilson_interval
from robot_rl.evaluation.steering import cameras_of
from robot_rl.steering import SteeredPolicy, SteeringConfig
from sim import make_expert


def main(policy: str, critic: str, env: str, episodes: int = 25, seed: int = 7_000_000, num_samples: int = 50) -> None:
    """Success of the policy alone, steered, and by the expert's choice, when all of a chunk and when one action of it is carried out.

    policy, critic: as for `robot-rl evaluate`. env: one task. num_samples: candidates, K.
    """
    torch.set_num_threads(1)
    acting, judge = load_policy(policy), load_critic(critic)
    table = Table(
        "who chooses", "actions of a chunk carried out", "success (95%)", title=f"{env}, {episodes} episodes, K = {num_samples}"
    )
    for who in ("policy alone", "steered", "expert"):
        for execute in (judge.action_spec.chunk, 1):
            won = rollout(acting, judge, env, who, execute, range(seed, seed + episodes), num_samples)
            low, high = wilson_interval(won, episodes)
            table.add_row(who, str(execute), f"{won} of {episodes} ({100 * low:.0f} to {100 * high:.0f}%)")
    Console().print(table)


def rollout(policy: Policy, critic: Critic, env_id: str, who: str, execute: int, seeds: range, num_samples: int) -> int:
    """How many of the episodes succeed."""
    cameras = cameras_of(policy, critic)
    envs = [gymnasium.make(env_id, disable_env_checker=True, cameras=cameras) for _ in seeds]
    seen = {env: env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)}
    experts = {env: make_expert(env_id, env, 1.0, seed) for env, seed in zip(envs, seeds, strict=True)}
    generator = torch.Generator().manual_seed(0)
    steered = SteeredPolicy(policy, critic, SteeringConfig(num_samples=num_samples))
    policy.reset()
    won = 0
    while seen:
        observations = stack_observations(list(seen.values()))
        with torch.no_grad():
            if who == "expert":
                candidates = policy.sample(observations, num_samples, generator)[:, :, : critic.action_spec.chunk]
                wanted = torch.from_numpy(np.stack([experts[env].act() for env in seen]))
                chunks = nearest(critic, candidates, wanted, execute)
            else:
                chunks = (steered if who == "steered" else policy).sample(observations, 1, generator)[:, 0]
        for env, chunk in zip(list(seen), chunks.numpy(), strict=True):
            for action in chunk[:execute]:
                low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
                seen[env], _, terminated, truncated, info = env.step(np.clip(action, low, high))
                if terminated or truncated:
                    won += info["success"]
                    del seen[env]
                    break
    for env in envs:
        env.close()
    return won


def nearest(critic: Critic, candidates: torch.Tensor, wanted: torch.Tensor, execute: int) -> torch.Tensor:
    """Of candidates [B,K,H,A] those [B,H,A] whose first `execute` actions are all near to `wanted` [B,A], in the critic's units."""
    expected = critic.normalize(wanted[:, None, None].expand(-1, 1, candidates.shape[2], -1))
    distances = (critic.normalize(candidates) - expected)[:, :, :execute].square().sum(dim=(-1, -2))
    return torch.take_along_dim(candidates, distances.argmin(dim=1)[:, None, None, None], dim=1)[:, 0]


if __name__ == "__main__":
    tyro.cli(main)
