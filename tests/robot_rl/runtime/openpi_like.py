"""A policy server as openpi's own is: knows nothing of us, answers one observation at a time, on the real client's codec.

Run as a program: `python openpi_like.py PORT [--constant] [--delay SECONDS]`.
"""

from __future__ import annotations

import argparse
import asyncio
import traceback
from typing import Any

import numpy as np
from openpi_client import msgpack_numpy
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

HORIZON, DIM = 6, 3
METADATA = {"env": "made up", "reset_pose": [0.0, 0.5]}


class Policy:
    """Chunks near the proprioception it is shown, other ones at each call; `fail` in the prompt makes it raise."""

    def __init__(self, constant: bool = False) -> None:
        self.rng, self.constant, self.calls = np.random.default_rng(0), constant, 0

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if "fail" in observation["instruction"]:
            raise RuntimeError("the model is on fire")
        noise = 0 if self.constant else self.rng.normal(0, 0.02, (HORIZON, DIM))
        return {"actions": np.zeros((HORIZON, DIM), np.float64) + noise, "calls": self.calls}


async def handle(connection: Any, policy: Policy, delay: float) -> None:
    await connection.send(msgpack_numpy.packb(METADATA))
    while True:
        try:
            observation = msgpack_numpy.unpackb(await connection.recv())
            await asyncio.sleep(delay)
            await connection.send(msgpack_numpy.packb(policy.infer(observation)))
        except ConnectionClosed:
            return
        except Exception:
            await connection.send(traceback.format_exc())
            await connection.close(1011, "Internal server error. Traceback included in previous frame.")
            return


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    policy = Policy(arguments.constant)
    async with serve(
        lambda connection: handle(connection, policy, arguments.delay),
        "127.0.0.1",
        arguments.port,
        compression=None,
        max_size=None,
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
