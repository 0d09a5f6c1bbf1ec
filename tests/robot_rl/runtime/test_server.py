"""`robot-rl serve` before openpi's real client: what it answers, whom it refuses, how it batches, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import urllib.request
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from data.errors import InputError
from policies import load_policy
from policies.base import ActionSpec, ObservationSpec
from policies.config import DiffusionConfig, GaussianConfig
from policies.protocol.wire import pack, unpack
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.critic import CriticConfig
from robot_rl.recipes import train_critic, train_policy
from robot_rl.runtime import Batcher, PolicyService
from tests.policies.families import VECTORS
from tests.robot_rl.runtime.processes import Command, Running, ServingSettings, serving

# The real client opens its connection in the way that newer websockets advise against.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")

SPEC = ActionSpec(("x", "y"), ("m", "m"), (-1.0, -1.0), (1.0, 1.0), "base", 5.0, 3)
SEEN = {
    "image_primary": np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3),
    "proprio": np.array([0.25, -0.5], np.float32),
    "instruction": "go left",
}


class Echo:
    """Answers the proprioception (of the oldest step it sees) plus noise; counts its calls."""

    action_spec = SPEC

    def __init__(self, window: int = 1, seconds: float = 0.0, noise: float = 0.0) -> None:
        self.observation_spec = ObservationSpec({"image_primary": (8, 8)}, {"proprio": 2}, window)
        self.seconds, self.noise = seconds, noise
        self.batches: list[int] = []

    def sample(self, observations, num_samples, generator=None):
        time.sleep(self.seconds)
        if "explode" in observations["instruction"]:
            raise RuntimeError("boom")
        if "mumble" in observations["instruction"]:
            raise InputError("unknown instruction 'mumble'; speak up")
        proprio = torch.as_tensor(np.array(observations["proprio"]))
        proprio = proprio if proprio.ndim == 2 else proprio[:, 0]
        self.batches.append(len(proprio))
        noise = torch.randn(len(proprio), num_samples, 3, 2, generator=generator) * self.noise
        return proprio[:, None, None] + noise

    def reset(self):
        pass


def talk(running, **options):
    connection = connect(running.address, compression=None, max_size=None, **options)
    return connection, unpack(connection.recv())


def ask(connection, observation):
    connection.send(observation if isinstance(observation, bytes | str) else pack(observation))
    answer = connection.recv()
    return answer if isinstance(answer, str) else unpack(answer)


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A policy and a critic, trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    training = TrainingConfig(steps=2, batch_size=8)
    train_policy(store.path, folder / "policy", DiffusionConfig(VECTORS, hidden=32), CloningConfig(), training)
    train_critic(store.path, folder / "critic", CriticConfig(encoder=VECTORS, hidden=16, members=2), training)
    return SimpleNamespace(policy=folder / "policy", critic=folder / "critic")


OBSERVATION = {
    "state": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    "proprio": np.array([0.1, 0.2], np.float32),
    "instruction": "go left",
}


def test_the_real_client_drives_the_command(runs):
    """Unchanged openpi-client before `robot-rl serve` as users start it; SIGTERM ends it with 0."""
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    command = Command("--policy", str(runs.policy), "--critic", str(runs.critic), "--num-samples", "8")
    try:
        command.wait()
        real = client.WebsocketClientPolicy("127.0.0.1", command.port)
        policy = load_policy(runs.policy)
        said = real.get_server_metadata()["robot_rl"]
        assert ActionSpec.from_json(said["action_spec"]) == policy.action_spec
        assert said["observation_spec"]["vectors"] == {"state": 4, "proprio": 2}
        for _ in range(3):
            reply = real.infer(OBSERVATION)
            assert reply["actions"].shape == (4, 3)
            assert reply["actions"].dtype == np.float32
            assert (reply["actions"] >= np.array(policy.action_spec.low, np.float32)).all()
            assert (reply["actions"] <= np.array(policy.action_spec.high, np.float32)).all()
            assert reply["server_timing"]["infer_ms"] > 0
            assert (reply["steering"]["steered"], reply["steering"]["candidates"]) == (True, 8)
        assert reply["server_timing"]["prev_total_ms"] >= reply["server_timing"]["infer_ms"] * 0.1
        chunks = broker.ActionChunkBroker(SimpleNamespace(infer=lambda seen: {"actions": real.infer(seen)["actions"]}), 4)
        assert [chunks.infer(OBSERVATION)["actions"].shape for _ in range(5)] == [(3,)] * 5
        real._ws.send(pack({"proprio": OBSERVATION["proprio"]}))
        assert "'instruction'" in real._ws.recv()
        assert client.WebsocketClientPolicy("127.0.0.1", command.port).infer(OBSERVATION)["actions"].shape == (4, 3)
    finally:
        code = command.end(signal.SIGTERM)
    assert code == 0
    assert not any("Traceback" in line for line in command.lines)


def test_the_commands_mistakes_are_one_line(tmp_path, store):
    empty, run = tmp_path / "key", tmp_path / "run"
    empty.write_text("\n")
    train_policy(store.path, run, GaussianConfig(VECTORS, hidden=8), CloningConfig(), TrainingConfig(steps=1, batch_size=4))
    for arguments, says in (
        ([], "--policy"),
        (["--policy", str(tmp_path / "nothing")], "no such checkpoint"),
        (["--policy", "x", "--api-key-file", str(empty)], "must hold the key"),
        (["--policy", "x", "--budget-ms", "5"], "is for --upstream"),
        (["--policy", "x", "--num-samples", "5"], "need a --critic"),
        (["--policy", str(run), "--device", "abacus"], "not available here"),
        (["--policy", str(run), "--map", "libero"], "--map libero: its action names"),
    ):
        command = Command(*arguments)
        assert command.process.wait(60) == 2
        command.end()
        assert says in command.lines[-1], command.lines
        assert sum("robot-rl:" in line for line in command.lines) == 1


def test_a_taken_port_is_one_line():
    with serving(lambda: PolicyService(Echo())) as running, pytest.raises(InputError, match="--port"):
        Running(lambda: PolicyService(Echo()), ServingSettings(port=running.port))


def test_health_needs_no_key():
    with serving(lambda: PolicyService(Echo()), api_key="secret") as running:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{running.port}/healthz", timeout=5)
        assert answer.status == 200
        assert answer.read() == b"OK\n"


def test_the_key_is_checked_at_the_handshake():
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    with serving(lambda: PolicyService(Echo()), api_key="secret") as running:
        for headers in (
            None,
            {"Authorization": "Api-Key wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Api-Key sécret"},
        ):
            with pytest.raises(InvalidStatus, match="401"):
                talk(running, additional_headers=headers)
        assert client.WebsocketClientPolicy("127.0.0.1", running.port, "secret").infer(SEEN)["actions"].shape == (3, 2)


BAD = {
    "not msgpack": b"\xc1\xff",
    "no map": pack([1, 2]),
    "text": "hello",
    "an array of objects": pack({"proprio": SEEN["proprio"]}).replace(b"<f4", b"|O8"),
    "no instruction": {"proprio": SEEN["proprio"], "image_primary": SEEN["image_primary"]},
    "instruction as number": {**SEEN, "instruction": 3},
    "no proprio": {key: value for key, value in SEEN.items() if key != "proprio"},
    "long proprio": {**SEEN, "proprio": np.zeros(3, np.float32)},
    "proprio as text": {**SEEN, "proprio": "far"},
    "ragged proprio": {**SEEN, "proprio": [[1.0], [2.0, 3.0]]},
    "NaN": {**SEEN, "proprio": np.array([np.nan, 0], np.float32)},
    "no camera": {key: value for key, value in SEEN.items() if key != "image_primary"},
    "float image": {**SEEN, "image_primary": SEEN["image_primary"] / 255},
    "CHW image": {**SEEN, "image_primary": SEEN["image_primary"].transpose(2, 0, 1)},
    "empty image": {**SEEN, "image_primary": np.zeros((0, 8, 3), np.uint8)},
    "too many samples": {**SEEN, "num_samples": 10**9},
    "half a sample": {**SEEN, "num_samples": 1.5},
    "negative seed": {**SEEN, "seed": -1},
    "history without axis": {**SEEN, "timestep_pad_mask": np.array([True, True])},
    "the policy's own refusal": {**SEEN, "instruction": "mumble"},
}


@pytest.fixture(scope="module")
def echo():
    policy = Echo()
    with serving(lambda: PolicyService(policy)) as running:
        running.policy = policy
        yield running


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_is_an_error_frame_and_the_server_lives_on(echo, what):
    connection, _ = talk(echo)
    answer = ask(connection, BAD[what])
    assert isinstance(answer, str)
    assert "\n" not in answer
    assert "Traceback" not in answer
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv()
    assert closed.value.rcvd.code == 1011
    assert np.allclose(ask(talk(echo)[0], SEEN)["actions"], SEEN["proprio"])


def test_a_defect_of_ours_keeps_its_traceback(echo):
    connection, _ = talk(echo)
    answer = ask(connection, {**SEEN, "instruction": "explode"})
    assert "Traceback" in answer
    assert "boom" in answer
    assert np.allclose(ask(talk(echo)[0], SEEN)["actions"], SEEN["proprio"])


def test_a_message_over_the_limit_is_refused():
    with serving(lambda: PolicyService(Echo()), max_message=10_000) as running:
        connection, _ = talk(running)
        with pytest.raises(ConnectionClosed) as closed:
            ask(connection, {**SEEN, "image_primary": np.zeros((100, 100, 3), np.uint8)})
        assert closed.value.rcvd.code == 1009
        assert np.allclose(ask(talk(running)[0], SEEN)["actions"], SEEN["proprio"])


def test_unknown_entries_do_not_matter(echo):
    reply = ask(talk(echo)[0], {**SEEN, "image_elbow": np.zeros((2, 2), np.float32), "extra": [1, {"x": None}]})
    assert np.allclose(reply["actions"], SEEN["proprio"])


def test_many_samples_in_one_request_and_seeds():
    with serving(lambda: PolicyService(Echo(noise=1.0))) as running:
        connection, metadata = talk(running)
        assert metadata["robot_rl"]["max_samples"] >= 50
        first, again, other = (ask(connection, {**SEEN, "num_samples": 5, "seed": seed})["actions"] for seed in (7, 7, 8))
        assert first.shape == (5, 3, 2)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert ask(connection, {**SEEN, "num_samples": 1})["actions"].shape == (1, 3, 2)
        assert ask(connection, SEEN)["actions"].shape == (3, 2)


def test_the_servers_seed_decides_the_rest():
    def answers(seed):
        with serving(lambda: PolicyService(Echo(noise=1.0), seed=seed)) as running:
            connection, _ = talk(running)
            return [ask(connection, SEEN)["actions"] for _ in range(3)]

    first, again, other = answers(1), answers(1), answers(2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_history_is_the_connections():
    """A policy that looks back sees the connection's last steps, until `reset`; or what the client itself kept."""
    with serving(lambda: PolicyService(Echo(window=3))) as running:
        one, other = talk(running)[0], talk(running)[0]

        def step(connection, value, **more):
            return float(ask(connection, {**SEEN, "proprio": np.full(2, value, np.float32), **more})["actions"][0, 0])

        # Echo answers the oldest of the three steps that it sees.
        assert [step(one, value) for value in (1, 2, 3, 4)] == [1, 1, 1, 2]
        assert step(other, 9) == 9
        assert step(one, 5, reset=True) == 5
        assert step(one, 6) == 5
        window = {
            "image_primary": np.zeros((3, 8, 8, 3), np.uint8),
            "proprio": np.array([[7, 7], [8, 8], [9, 9]], np.float32),
            "timestep_pad_mask": np.array([True] * 3),
            "instruction": "go left",
        }
        assert ask(other, window)["actions"][0, 0] == 7


def test_who_waits_is_answered_together_and_the_loop_stays_alive():
    policy = Echo(seconds=0.3)
    with serving(lambda: PolicyService(policy)) as running:
        policy.batches.clear()
        connections = [talk(running)[0] for _ in range(5)]
        replies: dict[int, np.ndarray] = {}

        def client(index):
            seen = {**SEEN, "proprio": np.full(2, index, np.float32)}
            replies[index] = ask(connections[index], seen)["actions"]

        threads = [threading.Thread(target=client, args=(index,)) for index in range(5)]
        for thread in threads:
            thread.start()
            time.sleep(0.01)
        started = time.monotonic()
        urllib.request.urlopen(f"http://127.0.0.1:{running.port}/healthz", timeout=5).read()
        assert time.monotonic() - started < 0.25
        for thread in threads:
            thread.join()
    assert all(np.allclose(replies[index], index) for index in range(5))
    assert policy.batches[0] == 1
    assert sorted(policy.batches) == [1, 4]


def test_of_a_batch_only_the_guilty_fail():
    async def main():
        batcher = Batcher(Echo(seconds=0.02))
        seen = [{**SEEN, "instruction": text} for text in ("a", "b", "mumble", "explode", "c")]
        seen.append({**SEEN, "image_primary": np.zeros((4, 4, 3), np.uint8)})
        return await asyncio.gather(*(batcher.sample(one, 1) for one in seen), return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result).__name__ for result in results] == [
        "Sampled",
        "Sampled",
        "InputError",
        "RuntimeError",
        "Sampled",
        "Sampled",
    ]
    assert all(np.allclose(results[i].actions, SEEN["proprio"]) for i in (0, 1, 4, 5))


def test_actions_that_are_not_finite_never_reach_a_robot():
    with serving(lambda: PolicyService(Echo(noise=float("inf")))) as running:
        assert "not finite" in ask(talk(running)[0], SEEN)


def test_a_stop_answers_what_is_in_flight():
    policy = Echo(seconds=0.4)
    with serving(lambda: PolicyService(policy)) as running:
        busy, idle = talk(running)[0], talk(running)[0]
        busy.send(pack(SEEN))
        time.sleep(0.15)
        running.stop()
        assert np.allclose(unpack(busy.recv())["actions"], SEEN["proprio"])
        for connection in (busy, idle):
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv()
            assert closed.value.rcvd.code == 1001
        running.thread.join(5)
        assert not running.thread.is_alive()
        with pytest.raises(OSError, match=r"."):
            talk(running)


def test_strangers_do_no_harm(echo):
    """Half a handshake, nonsense, a client that leaves in the middle."""
    import socket

    for data in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", b"POST /act HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"):
        with socket.create_connection(("127.0.0.1", echo.port)) as stranger:
            stranger.sendall(data)
    leaver, _ = talk(echo)
    leaver.send(pack(SEEN))
    leaver.socket.close()
    assert np.allclose(ask(talk(echo)[0], SEEN)["actions"], SEEN["proprio"])


def test_a_client_that_leaves_stops_what_it_asked_for():
    """What nobody waits for any more must not keep the next client waiting."""
    begun, left = threading.Event(), threading.Event()

    class Slow:
        metadata: ClassVar[dict] = {}

        async def start(self) -> None:
            pass

        def session(self) -> Slow:
            return self

        async def answer(self, observation: dict, message: bytes) -> dict:
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                left.set()
                raise
            return {}

        async def close(self) -> None:
            pass

    with serving(Slow) as running:
        connection = connect(running.address, compression=None)
        connection.recv()
        connection.send(pack(SEEN))
        assert begun.wait(5)
        connection.socket.close()
        assert left.wait(5)
