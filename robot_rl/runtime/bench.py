"""What serving costs: round trips to our server with a null policy, and to bare websocket servers that look at nothing.

Each server is a process of its own; one client asks them in turn, so that a machine whose speed drifts slows them all alike.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from policies.base import ActionSpec, Observations, ObservationSpec
from policies.protocol.wire import pack
from robot_rl.runtime.policy_service import PolicyService
from robot_rl.runtime.server import ServingSettings, run_service

_WARM_UP = 50
_CHUNK = torch.zeros(10, 7)
ECHO, EXCHANGE, OURS = "bare websocket, echo", "bare websocket, our reply's bytes", "robot-rl serve, null policy"


class NullPolicy:
    """Two cameras and a proprioception in, a constant chunk out."""

    action_spec = ActionSpec(("x",) * 7, ("1",) * 7, (-1.0,) * 7, (1.0,) * 7, "none", 10.0, 10)
    observation_spec = ObservationSpec({"image_primary": (224, 224), "image_wrist": (224, 224)}, {"proprio": 8})

    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return _CHUNK.expand(len(observations["instruction"]), num_samples, 10, 7)

    def reset(self) -> None:
        pass


def bench(requests: int = 2000) -> dict[str, Any]:
    """Milliseconds a round trip, JSON-ready: p50 and p99 of each server, what each adds to the echo, and the ratios of medians.

    An echo sends a whole observation back, which no policy does: the stricter ratio is to a server that sends our reply's bytes.
    """
    from websockets.sync.client import connect

    rng = np.random.default_rng(0)
    images = {key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in NullPolicy.observation_spec.images.items()}
    request = pack({**images, "proprio": np.zeros(8, np.float32), "instruction": "pick up the block"})
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Any] = {}
    with ExitStack() as stack:
        for what, target in ((ECHO, _echo), (EXCHANGE, _exchange), (OURS, _ours)):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs,), daemon=True)
            process.start()
            stack.callback(process.terminate)
            connections[what] = stack.enter_context(connect(ours.recv(), compression=None, max_size=None, proxy=None))
        connections[OURS].recv()  # its metadata
        times: dict[str, list[float]] = {what: [] for what in connections}
        reply = 0
        for turn in range(_WARM_UP + requests):
            order = list(connections) if turn % 2 else list(connections)[::-1]
            for what in order:
                started = time.perf_counter()
                connections[what].send(request)
                answer = connections[what].recv()
                times[what].append(1e3 * (time.perf_counter() - started))
                reply = len(answer) if what == OURS else reply
    measured = {what: np.array(values[_WARM_UP:]) for what, values in times.items()}
    base = {quantile: float(np.percentile(measured[ECHO], quantile)) for quantile in (50, 99)}
    rows = []
    for what, values in measured.items():
        p50, p99 = (float(np.percentile(values, quantile)) for quantile in (50, 99))
        rows.append(
            {
                "what": what,
                "p50": p50,
                "p99": p99,
                "added_p50": p50 - base[50],
                "added_p99": p99 - base[99],
                "ratio_p50": p50 / base[50],
                "ratio_p50_to_same_bytes": p50 / float(np.median(measured[EXCHANGE])),
            }
        )
    return {"requests": requests, "request_bytes": len(request), "reply_bytes": reply, "rows": rows}


def _ours(ready: Any) -> None:
    torch.set_num_threads(1)
    run_service(lambda: PolicyService(NullPolicy()), ServingSettings(port=0), ready.send)


def _echo(ready: Any) -> None:
    asyncio.run(_bare(ready, None))


def _exchange(ready: Any) -> None:
    actions = np.zeros((10, 7), np.float32)
    asyncio.run(_bare(ready, pack({"actions": actions, "server_timing": {"infer_ms": 0.1, "prev_total_ms": 0.1}})))


async def _bare(ready: Any, reply: bytes | None) -> None:
    """A server that answers with what it was sent, or with `reply`."""
    from websockets.asyncio.server import serve

    async def handle(connection: Any) -> None:
        async for message in connection:
            await connection.send(message if reply is None else reply)

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        ready.send(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await asyncio.Event().wait()
