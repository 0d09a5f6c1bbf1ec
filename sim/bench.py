"""How fast the simulators are on this machine: control steps, steps with a camera and resets a second, on one core."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np

from sim.suite import environment_ids, make_expert


def bench(seconds: float = 3.0, env: str = "tabletop/stack") -> dict[str, float]:
    """Measure for about `seconds` in all: `steps_per_s` (clean demonstrations, no cameras; the demonstrator's own time is not
    counted; contacts are what costs, hence demonstrations), `camera_steps_per_s` (holding still, one camera of 64 x 64) and
    `resets_per_s`. env: one task, as `environment_ids` takes it.
    """
    (env_id,) = environment_ids(env)
    blind, seeing = (gym.make(env_id, cameras=cameras, disable_env_checker=True) for cameras in ((), ("primary",)))
    expert = make_expert(env_id, blind, seed=0)
    blind.reset()
    blind.step(expert.act())  # what is compiled or loaded once is not measured
    seeing.reset()
    spent = {"step": 0.0, "reset": 0.0}
    count = {"step": 0, "reset": 0}

    def timed(name: str, call, *args):
        start = time.perf_counter()
        result = call(*args)
        spent[name] += time.perf_counter() - start
        count[name] += 1
        return result

    end = time.perf_counter() + seconds * 2 / 3
    while time.perf_counter() < end:
        timed("reset", blind.reset)
        done = False
        while not done:
            _, _, terminated, truncated, _ = timed("step", blind.step, expert.act())
            done = terminated or truncated
    still, steps, start = np.zeros(7, np.float32), 0, time.perf_counter()
    while time.perf_counter() < start + seconds / 3:
        seeing.step(still)
        steps += 1
    rate = steps / (time.perf_counter() - start)
    blind.close()
    seeing.close()
    return {
        "steps_per_s": count["step"] / spent["step"],
        "camera_steps_per_s": rate,
        "resets_per_s": count["reset"] / spent["reset"],
    }
