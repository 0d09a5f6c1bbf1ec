"""RemotePolicy: a policy like any other, though it stands behind a socket, which may fail in the ways that sockets do."""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.errors import InputError
from policies import Policy, load_policy
from policies.base import ActionSpec, ObservationSpec
from policies.maps import load_map
from policies.protocol.wire import pack, pack_json, unpack, unpack_json
from policies.remote import RemotePolicy
from robot_rl.runtime import PolicyService
from robot_rl.steering import SteeredPolicy, SteeringConfig
from tests.policies.families import CONFIGS, critic_for, make
from tests.policies.seeded import generator
from tests.robot_rl.runtime.processes import free_port, listening, serving


def observations(batch: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.normal(size=(batch, 4)).astype(np.float32),
        "proprio": rng.normal(size=(batch, 2)).astype(np.float32),
        "instruction": [("go left", "go right")[i % 2] for i in range(batch)],
    }


@contextmanager
def connected(address: str, **options):
    policy = RemotePolicy.load(address, **options)
    try:
        yield policy
    finally:
        policy.close()


@contextmanager
def scripted(answer, metadata=None):
    """A websocket server whose replies are what `answer(observation)` says: bytes, text, None to hang up, or a map."""

    async def handle(connection):
        await connection.send(pack(metadata if metadata is not None else {}))
        async for message in connection:
            reply = answer(unpack(message))
            if reply is None:
                connection.transport.abort()
                return
            await connection.send(reply if isinstance(reply, bytes | str) else pack(reply))

    with listening(handle) as address:
        yield address


SPEC = ActionSpec(("x", "y"), ("m", "m"), (-1.0,) * 2, (1.0,) * 2, "base", 5.0, 3)
METADATA = {"robot_rl": {"action_spec": SPEC.to_json()}}
CHUNK = np.arange(6, dtype=np.float32).reshape(3, 2) / 10


@pytest.fixture(scope="module")
def local(store):
    return make(store, CONFIGS["flow"])


@pytest.fixture(scope="module")
def remote(local):
    with serving(lambda: PolicyService(local)) as running, connected(running.address) as policy:
        yield policy


def test_it_is_the_policy_behind_it(local, remote):
    assert isinstance(remote, Policy)
    assert remote.action_spec == local.action_spec
    assert remote.observation_spec == local.observation_spec
    seen = observations(3)
    actions = remote.sample(seen, 5, generator(0))
    assert actions.shape == (3, 5, 4, 3)
    assert actions.dtype == torch.float32
    # Our own server draws with the seed that it is sent.
    seeds = generator(0)
    for row in range(3):
        seed = int(torch.randint(2**62, (1,), generator=seeds))
        alone = {key: value[row : row + 1] for key, value in seen.items()}
        assert torch.equal(local.sample(alone, 5, generator(seed))[0], actions[row])


def test_it_knows_when_something_else_is_served_at_the_address(local):
    def served(identity: str) -> str:
        with serving(lambda: PolicyService(local, identity=identity)) as running, connected(running.address) as policy:
            return policy.served

    assert served("one") == served("one") != served("another")


def test_an_address_is_a_spec(local):
    with serving(lambda: PolicyService(local)) as running:
        policy = load_policy(f"{running.address}?connections=2&timeout=5.0")
        assert policy.sample(observations(1), 1, generator(0)).shape == (1, 1, 4, 3)
        policy.close()
        with pytest.raises(InputError, match="no such option"):
            load_policy(f"{running.address}?colour=red")


def test_a_generator_decides_everything(remote):
    seen = observations(2)
    assert torch.equal(remote.sample(seen, 3, generator(5)), remote.sample(seen, 3, generator(5)))
    assert not torch.equal(remote.sample(seen, 3, generator(5)), remote.sample(seen, 3, generator(6)))
    assert remote.sample(seen, 2).shape == (2, 2, 4, 3)
    assert remote.sample(seen, 300, generator(0)).shape == (2, 300, 4, 3)


def test_it_can_be_steered(remote):
    steered = SteeredPolicy(remote, critic_for(remote), SteeringConfig(num_samples=6))
    seen = observations(2)
    chosen, candidates = steered.sample(seen, 1, generator(3)), remote.sample(seen, 6, generator(3))
    assert all((candidates[i] == chosen[i]).flatten(1).all(1).any() for i in range(2))


class LooksBack:
    """Answers the oldest proprioception of its window."""

    action_spec, observation_spec = SPEC, ObservationSpec({}, {"proprio": 2}, 3)

    def sample(self, observations, num_samples, generator=None):
        oldest = torch.as_tensor(np.array(observations["proprio"]))[:, 0]
        return oldest[:, None, None].expand(-1, num_samples, 3, 2)

    def reset(self):
        pass


class Near:
    """Answers the proprioception."""

    action_spec, observation_spec = SPEC, ObservationSpec({"image_primary": (8, 8)}, {"proprio": 2})

    def sample(self, observations, num_samples, generator=None):
        assert observations["image_primary"].shape[1:] == (8, 8, 3)
        return torch.as_tensor(observations["proprio"])[:, None, None].repeat(1, num_samples, 3, 1)

    def reset(self):
        pass


def test_history_is_the_callers():
    with serving(lambda: PolicyService(LooksBack())) as running, connected(running.address) as policy:
        assert policy.observation_spec.window == 3
        seen = {"proprio": np.array([[1, 1], [2, 2]], np.float32), "instruction": ["a", "b"]}
        for _ in range(2):
            assert policy.sample(seen, 1)[:, 0, 0, 0].tolist() == [1, 2]
        window = {
            "proprio": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
            "timestep_pad_mask": np.ones((2, 3), bool),
            "instruction": ["a", "b"],
        }
        assert policy.sample(window, 1)[:, 0, 0, 0].tolist() == [0, 6]


def test_a_server_that_cannot_is_asked_k_times_and_concurrently():
    asked = []

    def answer(observation):
        asked.append(observation)
        return {"actions": CHUNK + len(asked)}

    with scripted(answer, METADATA) as address, connected(address, connections=3) as policy:
        seen = {"proprio": np.zeros((2, 2), np.float32), "instruction": ["a", "b"]}
        actions = policy.sample(seen, 4, generator(0))
        assert actions.shape == (2, 4, 3, 2)
        assert len(asked) == 8
        # Nothing but what the caller gave: this server knows neither seeds nor several samples.
        assert all(one.keys() == seen.keys() for one in asked)
        assert sorted(one["instruction"] for one in asked) == ["a"] * 4 + ["b"] * 4


@pytest.fixture
def renamed(tmp_path):
    """A map file: their numbers are twice ours, their names are others."""
    path = tmp_path / "renamed.json"
    observation = {
        "image_primary": {"key": "observation/image", "layout": "CHW"},
        "proprio": {"parts": [{"key": "observation/state", "slice": [0, 2], "scale": 0.5}]},
        "instruction": {"key": "prompt"},
    }
    segment = {"theirs": [0, 2], "names": ["x", "y"], "unit": "m", "low": -1.0, "high": 1.0, "scale": 0.5}
    actions = {"frame": "base", "control_hz": 5.0, "segments": [segment]}
    path.write_text(json.dumps({"observation": observation, "actions": actions}))
    return str(path)


def test_a_map_says_what_a_strangers_actions_mean(renamed):
    asked = []

    def answer(observation):
        asked.append(observation)
        return {"actions": np.ones((7, 2))}

    with scripted(answer) as address:
        with pytest.raises(InputError, match="map"):
            RemotePolicy.load(address, timeout=2.0)
        with connected(address, map=renamed) as policy:
            assert policy.action_spec == replace(SPEC, chunk=7)
            assert policy.observation_spec.vectors == {"proprio": 2}
            image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
            seen = {"image_primary": image, "proprio": np.ones((1, 2), np.float32), "instruction": ["go"]}
            actions = policy.sample(seen, 2)
            assert torch.equal(actions, torch.full((1, 2, 7, 2), 0.5))
            assert asked[-1]["prompt"] == "go"
            assert asked[-1]["observation/state"].tolist() == [2, 2]
            assert np.array_equal(asked[-1]["observation/image"], image[0].transpose(2, 0, 1))


def test_a_server_with_a_map_of_its_own_wants_the_client_to_have_it(local):
    with serving(lambda: PolicyService(local, None, "libero")) as running, pytest.raises(InputError, match="libero"):
        RemotePolicy.load(running.address)


def test_both_ends_of_a_map_are_the_policy_without_one(renamed):
    local = Near()
    with (
        serving(lambda: PolicyService(local, load_map(renamed), renamed)) as running,
        connected(running.address, map=renamed) as policy,
    ):
        assert policy.action_spec == SPEC
        seen = {
            "image_primary": np.zeros((2, 8, 8, 3), np.uint8),
            "proprio": np.array([[0.5, 0.25], [-0.5, 0]], np.float32),
            "instruction": ["a", "b"],
        }
        assert torch.equal(policy.sample(seen, 3, generator(0)), local.sample(seen, 3))


def test_it_survives_a_connection_that_dies():
    deaths = [True]

    def answer(observation):
        return None if deaths and deaths.pop() else {"actions": CHUNK}

    with scripted(answer, METADATA) as address, connected(address) as policy:
        assert policy.sample({"instruction": ["a"]}, 1).shape == (1, 1, 3, 2)


def test_it_survives_a_server_that_restarts(local):
    with serving(lambda: PolicyService(local)) as running:
        policy = RemotePolicy.load(running.address, timeout=10.0)
        first = policy.sample(observations(2), 1, generator(0))
        port = running.port
    again: list = []

    def restart():
        time.sleep(0.3)
        again.append(serving(lambda: PolicyService(local), port=port))
        again[0].__enter__()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert torch.equal(policy.sample(observations(2), 1, generator(0)), first)
    finally:
        thread.join()
        policy.close()
        again[0].__exit__(None, None, None)


FAILURES = {
    "an error frame": ("Traceback (most recent call last):\n  ...\nValueError: no such camera", "ValueError: no such camera"),
    "nothing but hanging up": (None, "went away"),
    "no actions": ({"answer": 42}, "in place of an array"),
    "no map": (pack([1]), "in place of an array"),
    "noise": (b"\xc1\xff", "not a message"),
    "objects": ({"actions": "x"}, "in place of an array"),
    "not finite": ({"actions": CHUNK * np.nan}, "not finite"),
    "another shape": ({"actions": CHUNK[:2]}, "shape"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_failures_are_one_line(what):
    reply, says = FAILURES[what]
    with scripted(lambda _: reply, METADATA) as address, connected(address, timeout=2.0) as policy:
        with pytest.raises(InputError, match=says) as caught:
            policy.sample({"instruction": ["a"]}, 2)
        assert address in str(caught.value) or what == "noise"
        assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_one_line():
    def answer(observation):
        time.sleep(0.6)
        return {"actions": CHUNK}

    slow = scripted(answer, METADATA)
    with slow as address, connected(address, timeout=0.3) as policy, pytest.raises(InputError, match="no answer within"):
        policy.sample({"instruction": ["a"]}, 1)


def test_who_cannot_be_reached_is_one_line(local, monkeypatch, tmp_path):
    started = time.monotonic()
    for scheme in ("ws", "http"):
        with pytest.raises(InputError, match="can be reached") as caught:
            RemotePolicy.load(f"{scheme}://127.0.0.1:{free_port()}/act", timeout=0.5)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 4
    for address in ("ws://", "ws://host:port", "ftp://robot", "localhost:8000"):
        with pytest.raises(InputError, match="not the address"):
            RemotePolicy.load(address)
    with serving(lambda: PolicyService(local), api_key="secret") as running:
        with pytest.raises(InputError, match="API key"):
            RemotePolicy(running.address, api_key="guess")
        with pytest.raises(InputError, match="'api_key': remote policies have no such option"):
            load_policy(f"{running.address}?api_key=secret")
        (tmp_path / "key").write_text("secret\n")
        with connected(running.address, api_key_file=str(tmp_path / "key")) as policy:
            assert policy.action_spec == local.action_spec
        monkeypatch.setenv("ROBOT_RL_REMOTE_API_KEY", "secret")
        with connected(running.address) as policy:
            assert policy.action_spec == local.action_spec


@pytest.mark.parametrize(
    "metadata",
    [
        {"robot_rl": {"action_spec": {"names": 3}}},
        {"robot_rl": {"max_samples": "many"}},
        {"robot_rl": {"observation_spec": {"images": {"image_primary": 5}}}},
    ],
    ids=range(3),
)
def test_metadata_that_cannot_be_understood_is_one_line(metadata):
    with scripted(lambda _: {"actions": CHUNK}, metadata) as address, pytest.raises(InputError, match="metadata"):
        RemotePolicy.load(address)


class Deploy(http.server.BaseHTTPRequestHandler):
    """OpenVLA's deploy.py, with and without its double encoding."""

    asked: list[dict]

    def do_POST(self):
        payload = unpack_json(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(payload)
        body = pack_json(np.array([0.5, 1.0]))
        if payload["instruction"] == "twice":
            body = pack_json(body)
        if payload["instruction"] == "fail":
            body = '"error"'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def test_openvlas_server(renamed):
    Deploy.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Deploy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/act"
    image = np.arange(2 * 48, dtype=np.uint8).reshape(2, 4, 4, 3)
    try:
        with connected(address, map=renamed, unnorm_key="bridge_orig") as policy:
            assert policy.action_spec.chunk == 1
            Deploy.asked.clear()
            actions = policy.sample({"image_primary": image, "instruction": ["go", "twice"]}, 2)
            assert torch.equal(actions, torch.tensor([0.25, 0.5]).expand(2, 2, 1, 2))
            assert len(Deploy.asked) == 4
            assert all(one["unnorm_key"] == "bridge_orig" for one in Deploy.asked)
            assert sum(np.array_equal(one["image"], image[1]) for one in Deploy.asked) == 2
            with pytest.raises(InputError, match="error"):
                policy.sample({"image_primary": image[:1], "instruction": ["fail"]}, 1)
            with pytest.raises(InputError, match="image_primary"):
                policy.sample({"instruction": ["go"]}, 1)
    finally:
        server.shutdown()
        server.server_close()
