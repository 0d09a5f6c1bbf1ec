"""How fast the simulator is on this machine: control steps, camera frames and resets a second, on one core."""

from __future__ import annotations

import time

import gymnasium as gym

from sim.tabletop.expert import Expert


def bench(seconds: float = 3.0, env_id: str = "Tabletop-Stack-v0") -> dict[str, float]:
    """Measure for about `seconds` in all: `steps_per_s` (clean demonstrations, no cameras; the demonstrator's own time is not
    counted), `frames_per_s` (64 x 64, both cameras in turn) and `resets_per_s`. Contacts are what costs, hence demonstrations.
    """
    env = gym.make(env_id, cameras=())
    expert = Expert(env, seed=0)
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
        timed("reset", env.reset)
        done = False
        while not done:
            _, _, terminated, truncated, _ = timed("step", env.step, expert.act())
            done = terminated or truncated
    scene = env.unwrapped.scene  # type: ignore[attr-defined]
    frames, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds / 3:
        scene.image(("primary", "wrist")[frames % 2], 64, 64)
        frames += 1
    rate = frames / (time.perf_counter() - start)
    env.close()
    return {
        "steps_per_s": count["step"] / spent["step"],
        "frames_per_s": rate,
        "resets_per_s": count["reset"] / spent["reset"],
    }
