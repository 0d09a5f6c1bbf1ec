"""RemotePolicy: whatever stands behind a socket, by openpi's websocket protocol or the REST of OpenVLA's `deploy.py`."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from policies.base import ActionSpec, Observations, ObservationSpec
from policies.history import MASK, has_window, latest, windowed
from policies.protocol.connection import BackgroundLoop, PolicyServer, ServerError, open_server

# Not the name that a server of ours reads its own key from: that one is not for others.
REMOTE_API_KEY = "ROBOT_RL_REMOTE_API_KEY"


class RemotePolicy:
    """A policy behind `ws://host:port` (openpi's protocol) or `http://host:port/act` (OpenVLA's server).

    K samples are one request where the server can (ours), else K requests; those of all observations go out together, over a few
    connections. What the actions mean comes from the server's metadata (ours) or from a map. Samples are deterministic under a
    generator only where the server says that it honours a `seed` in the request: ours does, others draw as they like.
    """

    family = "remote"

    def __init__(
        self,
        address: str,
        device: str = "cpu",
        *,
        map: str | None = None,
        api_key: str | None = None,
        unnorm_key: str | None = None,
        connections: int = 4,
        timeout: float = 30.0,
    ) -> None:
        """See `load`."""
        if connections < 1 or not timeout > 0:
            raise InputError(f"{address}: connections={connections} and timeout={timeout:g} must be positive")
        self.device = torch.device(device)
        self._map: Any = None
        if map is not None:
            from policies.maps import load_map

            self._map = load_map(map)
        self._settings = {
            "api_key": api_key or os.environ.get(REMOTE_API_KEY),
            "unnorm_key": unnorm_key,
            "connections": connections,
            "timeout": timeout,
            "patience": timeout,
        }
        self._address = address
        self._loop = BackgroundLoop()
        self._server: PolicyServer = self._loop.run(_opened(address, self._settings))
        try:
            self._learn(self._loop.run(self._server.metadata(timeout)))
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        location: Path | str,
        device: str = "cpu",
        *,
        map: str | None = None,
        api_key_file: str | None = None,
        unnorm_key: str | None = None,
        connections: int = 4,
        timeout: float = 30.0,
    ) -> RemotePolicy:
        """Connect; InputError when nothing is reached within `timeout` seconds or nobody says what the actions mean.

        map: preset or file (policies/maps.py) between the server's names and ours. api_key_file: holds the server's key, else
        ROBOT_RL_REMOTE_API_KEY does; a key in a spec would end up in journals and reports. unnorm_key: which dataset's statistics
        OpenVLA's server shall use. timeout: seconds for an answer, and for reconnecting.
        """
        return cls(
            str(location),
            device,
            map=map,
            api_key=None if api_key_file is None else read_key(Path(api_key_file)),
            unnorm_key=unnorm_key,
            connections=connections,
            timeout=timeout,
        )

    def reset(self) -> None:
        pass

    def close(self) -> None:
        """Hang up."""
        self._loop.run(self._server.close())
        self._loop.stop()

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """See `policies.base.Policy`. ServerError, one line, when the server cannot be reached again or answers with an error."""
        chunks = self._loop.run(self._ask_all(self._single(observations), num_samples, generator))
        expected = (self.action_spec.chunk, self.action_spec.dim)
        for chunk in (chunk for of_one in chunks for chunk in of_one):
            if chunk.shape != expected:
                raise ServerError(f"{self._address}: answered actions of shape {chunk.shape}, not {expected} as before")
            if not np.isfinite(chunk).all():
                raise ServerError(f"{self._address}: answered actions that are not finite")
        actions = np.stack([np.stack(of_one) for of_one in chunks]) if chunks else np.zeros((0, num_samples, *expected))
        return torch.from_numpy(actions.astype(np.float32)).to(self.device)

    def _single(self, observations: Observations) -> list[dict[str, Any]]:
        """The B observations one by one, with what the server looks at and, where it looks back, the history."""
        window = self.observation_spec.window
        seen = windowed(observations, window) if window > 1 else latest(observations)
        wanted = {**self.observation_spec.images, **self.observation_spec.vectors}
        # A server that does not say what it looks at is given everything.
        keys = [key for key in seen if not wanted or key in wanted or not has_window(key)]
        return [{key: seen[key][row] for key in keys} for row in range(len(seen["instruction"]))]

    async def _ask_all(
        self, observations: list[dict[str, Any]], num_samples: int, generator: torch.Generator | None
    ) -> list[list[np.ndarray]]:
        tasks: list[asyncio.Task[list[np.ndarray]]] = []
        counts: list[int] = []
        for ours in observations:
            theirs = ours if self._map is None or self._speaks_ours else self._map.observation_to_theirs(ours)
            shares = [min(self._max_samples, num_samples - start) for start in range(0, num_samples, self._max_samples)]
            counts.append(len(shares))
            # Encoded once: where only the server's own dice decide, all requests are the same bytes.
            plain = None if self._max_samples > 1 or self._seeded else self._server.encode(theirs)
            for share in shares:
                request = plain or self._server.encode({**theirs, **self._extras(share, generator)})
                tasks.append(asyncio.create_task(self._ask(request, ours)))
        try:
            answers = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        replies = iter(answers)
        return [[chunk for _ in range(count) for chunk in next(replies)] for count in counts]

    def _extras(self, share: int, generator: torch.Generator | None) -> dict[str, Any]:
        extras: dict[str, Any] = {"num_samples": share} if self._max_samples > 1 else {}
        if self._seeded and generator is not None:
            extras["seed"] = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        return extras

    async def _ask(self, request: bytes, ours: Mapping[str, Any]) -> list[np.ndarray]:
        actions = (await self._server.ask(request))["actions"]
        if self._map is not None:
            # Of a map with a memory, the beginning of an episode: a policy remembers nothing.
            actions = self._map.session().actions_from_theirs(actions, latest_proprio(ours))
        return [*np.atleast_2d(actions)[None]] if actions.ndim < 3 else [*actions]

    def _learn(self, metadata: Mapping[str, Any]) -> None:
        """What the server does and means: from our own servers' metadata, else from the map and one request."""
        # A server that begins to serve another policy, or in another way, says so here if anywhere.
        self.served = hashlib.sha256(repr(metadata).encode()).hexdigest()[:16]
        said = metadata.get("robot_rl")
        said = said if isinstance(said, dict) else {}
        try:
            self._max_samples = max(int(said.get("max_samples", 1)), 1)
            self._seeded = bool(said.get("seeded", False))
            self.observation_spec = spec_from_json(said.get("observation_spec", {}))
            spec = ActionSpec.from_json(said["action_spec"]) if said.get("action_spec") else None
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ServerError(f"{self._address}: its metadata cannot be understood ({error}); is it another version?") from None
        # OpenVLA's server is spoken to by our names: its request is built from them.
        self._speaks_ours = self._address.startswith("http")
        if said.get("map") is not None and self._map is None:
            raise InputError(f"{self._address}: this server speaks through the map {said['map']!r}; give it too, as ?map=...")
        if self._map is not None:
            spec = spec or self._map.action_spec(1)
        if spec is None:
            raise InputError(f"{self._address}: the server does not say what its actions mean; give a map, as ?map=libero")
        self.action_spec = spec
        if not said.get("action_spec"):
            # OpenVLA's server looks at one camera; of others, all that the map can pass on.
            one_camera = ObservationSpec({"image_primary": (224, 224)})
            self.observation_spec = one_camera if self._speaks_ours else self._map.observation_spec
            # How many actions make a chunk, only an answer tells.
            example = self._single(self.observation_spec.example())
            chunk = self._loop.run(self._ask_all(example, 1, None))[0][0]
            self.action_spec = replace(spec, chunk=len(chunk))


def read_key(file: Path) -> str:
    """The API key in a file, whose surrounding blanks do not count; InputError when there is none in it."""
    try:
        key = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give a text file that holds the key") from None
    if not key or len(key.splitlines()) > 1:
        raise InputError(f"{file}: must hold the key, one line")
    return key


async def _opened(address: str, settings: dict[str, Any]) -> PolicyServer:
    return open_server(address, **settings)


def spec_from_json(values: Mapping[str, Any]) -> ObservationSpec:
    """What `spec_to_json` wrote: `{"images": {key: [height, width]}, "vectors": {key: size}, "window": T, "instruction": text}`."""
    images = {str(key): (int(size[0]), int(size[1])) for key, size in values.get("images", {}).items()}
    vectors = {str(key): int(size) for key, size in values.get("vectors", {}).items()}
    said = {"instruction": str(values["instruction"])} if "instruction" in values else {}
    return ObservationSpec(images, vectors, int(values.get("window", 1)), **said)


def spec_to_json(spec: ObservationSpec) -> dict[str, Any]:
    images = {key: list(size) for key, size in spec.images.items()}
    return {"images": images, "vectors": dict(spec.vectors), "window": spec.window, "instruction": spec.instruction}


def latest_proprio(ours: Mapping[str, Any]) -> Any:
    """The newest `proprio` of one observation, or None: maps between absolute and relative actions start from it."""
    proprio = ours.get("proprio")
    return proprio[-1] if proprio is not None and MASK in ours else proprio
