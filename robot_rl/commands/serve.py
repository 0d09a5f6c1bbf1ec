"""`robot-rl serve`: a policy, steered or not, behind openpi's websocket protocol; or the steering proxy before another server."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import NONNEGATIVE, POSITIVE, InputError, check_settings
from robot_rl.steering.config import SteeringConfig

API_KEY = "ROBOT_RL_API_KEY"


@dataclass(frozen=True)
class Serve:
    """Serve a policy to robots, in the protocol of openpi's client: `--policy P [--critic C]`.

    With `--upstream ws://host:port --critic C`, stand between a robot and another policy server and steer what that one proposes.
    """

    policy: str | None = None  # any policy's spec, as `robot-rl policies` lists them
    upstream: str | None = (
        None  # instead of a policy: ws://host:port of an openpi server, http://host:port/act of an OpenVLA server
    )
    critic: Path | None = None  # folder that `robot-rl train critic` wrote; steers
    map: str | None = None  # between the client's names and ours: a preset or a file; without one the names are ours
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for everyone who can reach this machine
    port: int = 8000  # 0 takes a free one
    api_key_file: Path | None = None  # holds the key that clients must send; else ROBOT_RL_API_KEY, else none
    max_message_mb: int = 64  # of one observation
    device: str = "cpu"  # or cuda
    seed: int = 0
    connections: int = 4  # proxy: requests to the upstream at once
    timeout: float = 30.0  # proxy: seconds to wait for the upstream to come up, and for each of its answers
    budget_ms: float | None = None  # proxy: time for a steered answer; after it the upstream's own action is passed on
    upstream_key_file: Path | None = None  # proxy: holds the API key that the upstream wants; else ROBOT_RL_REMOTE_API_KEY
    unnorm_key: str | None = None  # proxy: which dataset's statistics an OpenVLA upstream shall use
    steering: SteeringConfig = field(default_factory=SteeringConfig)

    def __post_init__(self) -> None:
        check_settings(
            self, port=(0, 65535), max_message_mb=(1, 4096), connections=POSITIVE, timeout=(0.1, 3600), seed=NONNEGATIVE
        )
        if self.budget_ms is not None:
            check_settings(self, budget_ms=NONNEGATIVE)

    def run(self) -> None:
        import logging
        import sys

        if (self.policy is None) == (self.upstream is None):
            raise InputError(
                "give --policy P to serve a policy, or --upstream ws://host:port to steer another server's; one of them"
            )
        if self.policy is not None:
            for name in ("budget_ms", "upstream_key_file", "unnorm_key"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name.replace('_', '-')} is for --upstream; leave it out, or put it into the policy's spec"
                    )
            if self.critic is None and self.steering != SteeringConfig():
                raise InputError("settings of steering need a --critic")
        if self.upstream is not None and self.critic is None:
            raise InputError("--upstream needs a --critic to choose among what it proposes")
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        # What strangers do to the port is answered, not logged with tracebacks; ours are the lines that matter.
        logging.getLogger("websockets").setLevel(logging.CRITICAL)

        from robot_rl.runtime import ServingSettings, run_service

        settings = ServingSettings(
            self.host, self.port, _key(self.api_key_file, os.environ.get(API_KEY)), self.max_message_mb << 20
        )
        if settings.api_key is None and self.host not in ("127.0.0.1", "::1", "localhost"):
            logging.warning("anyone who reaches %s can use this server; set a key with --api-key-file", self.host)
        service = self._policy_service() if self.upstream is None else self._proxy()
        what = self.policy if self.upstream is None else f"{self.upstream}, steered"
        run_service(lambda: service, settings, lambda address: logging.info("serving %s on %s", what, address))

    def _policy_service(self) -> Any:
        from policies import load_policy, policy_digest
        from robot_rl.critic import load_critic
        from robot_rl.runtime import PolicyService
        from robot_rl.steering import SteeredPolicy

        assert self.policy is not None
        policy, identity = load_policy(self.policy, self.device), policy_digest(self.policy)
        _read_language(policy)
        if self.critic is not None:
            identity += f" steered by {policy_digest(self.critic)}, {self.steering}"
            critic = load_critic(self.critic, self.device)
            _read_language(critic)
            policy = SteeredPolicy(policy, critic, self.steering)
        policy_map = self._map()
        if policy_map is not None and policy_map.actions is not None:
            _compare(policy_map.action_spec(policy.action_spec.chunk), policy.action_spec, f"--map {self.map}")
        return PolicyService(policy, policy_map, self.map, self.seed, identity)

    def _proxy(self) -> Any:
        from policies.remote import REMOTE_API_KEY
        from robot_rl.critic import load_critic
        from robot_rl.runtime import SteeringProxy
        from robot_rl.runtime.proxy import UpstreamSettings

        assert self.upstream is not None
        assert self.critic is not None
        upstream = UpstreamSettings(
            self.upstream,
            _key(self.upstream_key_file, os.environ.get(REMOTE_API_KEY)),
            self.unnorm_key,
            self.connections,
            self.timeout,
            budget=None if self.budget_ms is None else self.budget_ms / 1e3,
        )
        critic = load_critic(self.critic, self.device)
        _read_language(critic)
        return SteeringProxy(upstream, critic, self.steering, self._map(), self.map, self.seed)

    def _map(self) -> Any:
        if self.map is None:
            return None
        from policies.maps import load_map

        return load_map(self.map)


def _compare(theirs: Any, ours: Any, name: str) -> None:
    """Refuse a map for another robot's actions before it moves; what a policy does not know of its own is the map's to say."""
    unknown = {"frame": "unknown", "control_hz": 0}
    for field_name in ("names", "units", "frame", "control_hz"):
        said, known = getattr(theirs, field_name), getattr(ours, field_name)
        if said != known and known != unknown.get(field_name) and ours.frame != "unknown":
            raise InputError(
                f"{name}: its action {field_name} is {said} but the policy's is {known}; give a map for this policy"
            )


def _read_language(model: Any) -> None:
    """Load what understands instructions before the first client comes; else its first new one would wait for seconds."""
    contract = getattr(model, "contract", None)
    if contract is not None:
        with contextlib.suppress(InputError):  # one that knows the instructions of its data alone
            contract.language.encode(["an instruction that no data have"])


def _key(file: Path | None, otherwise: str | None) -> str | None:
    from policies.remote import read_key

    return otherwise or None if file is None else read_key(file)
