"""The steering proxy: between the real client and a server as openpi's, which knows nothing of it."""

from __future__ import annotations

import http.server
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from data.errors import InputError
from policies.base import ActionSpec, ObservationSpec
from policies.protocol.wire import pack, pack_json, unpack, unpack_json
from robot_rl.config import TrainingConfig
from robot_rl.critic import CriticConfig
from robot_rl.recipes import train_critic
from robot_rl.runtime import PolicyService, SteeringProxy
from robot_rl.runtime.proxy import UpstreamSettings
from robot_rl.steering import SteeringConfig
from tests.policies.families import VECTORS
from tests.robot_rl.runtime.processes import Command, free_port, listening, openpi_like, serving

pytest.importorskip("openpi_client")
from tests.robot_rl.runtime import openpi_like as upstreams

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")

CHUNK = 4
SPEC = ActionSpec(("x", "y", "z"), ("m",) * 3, (-1.0,) * 3, (1.0,) * 3, "base", 5.0, CHUNK)
SEEN = {"proprio": np.array([0.03, -0.02, 0.01], np.float32), "instruction": "go left"}


class KnownCritic:
    """Likes chunks whose first actions are the proprioception: Q = -|a - proprio|^2, of two members."""

    action_spec, observation_spec, device = SPEC, ObservationSpec({}, {"proprio": 3}), torch.device("cpu")

    def __init__(self, seconds: float = 0.0, values: float | None = None) -> None:
        self.seconds, self.fixed = seconds, values

    def encode(self, observations):
        time.sleep(self.seconds)
        if "panic" in observations["instruction"]:
            raise RuntimeError("CUDA error: out of\nmemory")
        return torch.as_tensor(np.array(observations["proprio"]))

    def outputs(self, z, normalized):
        return -(normalized - z[:, None, None]).square().sum((2, 3))[None, ..., None].repeat(2, 1, 1, 1)

    def decode(self, outputs):
        return outputs[..., 0] if self.fixed is None else outputs[..., 0] * 0 + self.fixed

    def values(self, z, actions):
        return self.decode(self.outputs(z, actions))

    def normalize(self, actions):
        return actions

    unnormalize = normalize


class Halved:
    """A map as policies/maps.py has them: their numbers are twice ours, their names are others."""

    actions = True

    def session(self):
        return self

    def observation_from_theirs(self, theirs):
        if "observation/state" not in theirs:
            raise InputError("the observation has no 'observation/state'")
        return {"proprio": np.asarray(theirs["observation/state"], np.float32) / 2, "instruction": theirs["instruction"]}

    def observation_to_theirs(self, ours):
        return {"observation/state": ours["proprio"] * 2, "instruction": ours["instruction"]}

    def actions_from_theirs(self, actions, proprio=None):
        return np.asarray(actions) / 2

    def actions_to_theirs(self, actions, proprio=None):
        return np.asarray(actions) * 2

    def action_spec(self, chunk):
        return replace(SPEC, chunk=chunk)


class Recording(upstreams.Policy):
    """Keeps what it answered and what it was asked."""

    def __init__(self, constant: bool = False) -> None:
        super().__init__(constant)
        self.answers: list[np.ndarray] = []
        self.asked: list[dict] = []

    def infer(self, observation):
        reply = super().infer(observation)
        self.asked.append(observation)
        self.answers.append(reply["actions"])
        return reply


@contextmanager
def upstream(policy, delay: float = 0.0):
    """A thread with an openpi-like server; its address."""
    with listening(lambda connection: upstreams.handle(connection, policy, delay)) as address:
        yield address


@contextmanager
def proxied(address, critic=None, steering=None, policy_map=None, **settings):
    steering = steering or SteeringConfig(num_samples=8, smoothing=0, temperature=0)

    def make():
        known = critic or KnownCritic()
        return SteeringProxy(UpstreamSettings(address, **{"timeout": 5.0, **settings}), known, steering, policy_map, "halved")

    with ExitStack() as stack:
        running = stack.enter_context(serving(make))
        connection = stack.enter_context(connect(running.address, compression=None, max_size=None))
        metadata = unpack(connection.recv())

        def ask(observation):
            connection.send(pack(observation))
            answer = connection.recv()
            return answer if isinstance(answer, str) else unpack(answer)

        ask.metadata, ask.running = metadata, running
        yield ask


def score(actions, target=SEEN["proprio"]):
    return -np.square(np.asarray(actions)[..., :CHUNK, :] - target).sum((-1, -2))


def test_the_best_of_the_servers_own_candidates():
    policy = Recording()
    with upstream(policy) as address, proxied(address) as ask:
        assert ask.metadata["env"] == upstreams.METADATA["env"]
        assert ask.metadata["reset_pose"] == upstreams.METADATA["reset_pose"]
        for _ in range(3):
            policy.answers.clear()
            reply = ask(SEEN)
            assert len(policy.answers) == 8
            best = policy.answers[int(score(policy.answers).argmax())]
            assert reply["actions"].dtype == np.float64
            assert reply["actions"].tobytes() == best.tobytes()
            steering = reply["steering"]
            assert steering["steered"] is True
            assert steering["candidates"] == 8
            assert steering["value"] == pytest.approx(score(best), rel=1e-4)
            assert steering["milliseconds"] > 0
            assert reply["calls"] >= 1
        # The server saw exactly what the client sent.
        assert all(seen.keys() == SEEN.keys() for seen in policy.asked)


def test_a_map_turns_units_and_names():
    policy = Recording()
    theirs = {"observation/state": 2 * SEEN["proprio"], "instruction": "go left", "theirs": 1}
    with upstream(policy) as address, proxied(address, policy_map=Halved()) as ask:
        reply = ask(theirs)
        best = int(score(np.stack(policy.answers) / 2).argmax())
        assert reply["actions"].tobytes() == policy.answers[best].tobytes()
        assert all(seen["theirs"] == 1 for seen in policy.asked)
        assert "no 'observation/state'" in ask({"instruction": "go left", "proprio": SEEN["proprio"]})["steering"]["reason"]


def test_ascent_is_mapped_back_and_the_rest_of_the_chunk_is_the_servers():
    policy = Recording()
    steering = SteeringConfig(num_samples=4, ascent_steps=5, keep=2, step_size=0.1, trust_region=0.05)
    theirs = {"observation/state": 2 * SEEN["proprio"], "instruction": "go left"}
    with upstream(policy) as address, proxied(address, None, steering, Halved()) as ask:
        reply = ask(theirs)
        candidates = np.stack(policy.answers)
        assert score(reply["actions"] / 2) > score(candidates / 2).max()
        chosen = [one for one in candidates if np.array_equal(one[CHUNK:], reply["actions"][CHUNK:])]
        assert len(chosen) == 1
        assert np.abs(chosen[0] - reply["actions"])[:CHUNK].max() <= 2 * 0.05 + 1e-6


PASSED_ON = {
    "the critic raises": ({"instruction": "panic"}, {}, "the critic failed: RuntimeError: CUDA error: out of memory"),
    "its values are no numbers": ({}, {"critic": KnownCritic(values=float("nan"))}, "not finite"),
    "the critic is slow": ({}, {"critic": KnownCritic(seconds=0.6), "budget": 0.3}, "budget"),
    "the observation lacks something": ({"proprio": None}, {}, "'proprio'"),
    "the observation is misshapen": ({"proprio": np.zeros(5, np.float32)}, {}, "'proprio'"),
    "the critic scores longer chunks": ({}, {"critic": "long"}, "chunks of 6"),
}


@pytest.mark.parametrize("what", PASSED_ON)
def test_the_servers_own_action_is_passed_on_when(what):
    change, options, says = PASSED_ON[what]
    policy = Recording()
    if options.get("critic") == "long":
        critic = KnownCritic()
        critic.action_spec = replace(SPEC, chunk=7)
        options = {"critic": critic}
    with upstream(policy) as address, proxied(address, **options) as ask:
        reply = ask({**SEEN, **change})
        assert reply["steering"]["steered"] is False
        assert says in reply["steering"]["reason"]
        assert "\n" not in reply["steering"]["reason"]
        assert any(reply["actions"].tobytes() == own.tobytes() for own in policy.answers)
        assert ask({**SEEN, **change})["steering"]["steered"] is False


def test_the_first_answer_within_the_budget_is_better_than_none():
    """And no more is asked for than comes in time: what is late would keep the next decision waiting."""
    policy = Recording()
    with upstream(policy, delay=0.1) as address, proxied(address, budget=0.15, connections=1) as ask:
        for decision in range(4):
            started = time.monotonic()
            reply = ask(SEEN)
            assert reply["steering"]["steered"] is False
            assert "within the budget" in reply["steering"]["reason"]
            if decision > 1:
                assert time.monotonic() - started < 0.2
        assert len(policy.asked) <= 6


def test_those_that_come_within_the_budget_are_chosen_from():
    policy = Recording()
    with upstream(policy, delay=0.1) as address, proxied(address, budget=0.25, connections=3) as ask:
        assert ask(SEEN)["steering"]["steered"]
        time.sleep(0.3)
        again = ask(SEEN)["steering"]
        assert again["steered"]
        assert 2 <= again["candidates"] < 8


def test_identical_candidates_are_named():
    with upstream(Recording(constant=True)) as address, proxied(address) as ask:
        reply = ask(SEEN)
        assert "identical" in reply["steering"]["reason"]
        assert reply["actions"].tobytes() == np.zeros((6, 3)).tobytes()


def test_an_error_of_the_server_is_an_error_frame_and_the_proxy_lives_on():
    with upstream(Recording()) as address, proxied(address) as ask:
        error = ask({**SEEN, "instruction": "fail please"})
        assert "the model is on fire" in error
        assert "\n" not in error
        with connect(ask.running.address, compression=None) as another:
            another.recv()
            another.send(pack(SEEN))
            assert unpack(another.recv())["steering"]["steered"]


class Chunks:
    """One of our own policies, as the upstream."""

    action_spec = replace(SPEC, chunk=6)

    def __init__(self, window: int = 1) -> None:
        self.observation_spec = ObservationSpec({}, {"proprio": 3}, window)
        self.calls: list[tuple[int, float]] = []

    def sample(self, observations, num_samples, generator=None):
        proprio = torch.as_tensor(np.array(observations["proprio"]))
        self.calls.append((num_samples, float(proprio.reshape(-1, 3)[0, 0])))
        return 0.02 * torch.randn(len(proprio), num_samples, 6, 3, generator=generator)

    def reset(self):
        pass


def test_one_request_where_the_server_can_and_seeds_pass_through():
    policy = Chunks()
    with serving(lambda: PolicyService(policy)) as ours, proxied(ours.address) as ask:
        said = ask.metadata["robot_rl"]
        assert said["max_samples"] == 1
        assert ActionSpec.from_json(said["action_spec"]) == Chunks.action_spec
        policy.calls.clear()
        first, again, other = (ask({**SEEN, "seed": seed}) for seed in (3, 3, 4))
        assert [samples for samples, _ in policy.calls] == [8, 8, 8]
        assert first["actions"].shape == (6, 3)
        assert first["actions"].dtype == np.float32
        assert np.array_equal(first["actions"], again["actions"])
        assert not np.array_equal(first["actions"], other["actions"])
        candidates = policy.sample({"proprio": SEEN["proprio"][None]}, 8, torch.Generator().manual_seed(3))[0].numpy()
        assert first["steering"]["chosen"] == score(candidates).argmax()
        assert np.array_equal(first["actions"], candidates[first["steering"]["chosen"]])


def test_a_server_that_looks_back_keeps_each_clients_episode():
    policy = Chunks(window=2)
    with ExitStack() as stack:
        ours = stack.enter_context(serving(lambda: PolicyService(policy)))
        ask = stack.enter_context(proxied(ours.address))
        another = stack.enter_context(connect(ask.running.address, compression=None))
        another.recv()
        policy.calls.clear()
        for value in (1.0, 2.0, 3.0):
            ask({**SEEN, "proprio": np.full(3, value, np.float32)})
            another.send(pack({**SEEN, "proprio": np.full(3, -value, np.float32)}))
            another.recv()
        # The oldest step of each window: one behind, of the same client.
        assert [oldest for _, oldest in policy.calls] == [1, -1, 1, -1, 2, -2]


def test_what_does_not_fit_is_said_at_the_start():
    critic = KnownCritic()
    critic.action_spec = replace(SPEC, frame="joint")
    with (
        serving(lambda: PolicyService(Chunks())) as ours,
        pytest.raises(InputError, match="frame"),
        proxied(ours.address, critic),
    ):
        pass
    started = time.monotonic()
    with pytest.raises(InputError, match="can be reached"), proxied(f"ws://127.0.0.1:{free_port()}", timeout=0.5):
        pass
    assert time.monotonic() - started < 3
    with pytest.raises(InputError, match="not the address"), proxied("localhost:8000"):
        pass


class Deploy(http.server.BaseHTTPRequestHandler):
    """OpenVLA's deploy.py: an action vector for an image and an instruction, or "error"."""

    asked: list[dict]
    rng = np.random.default_rng(0)

    def do_POST(self):
        payload = unpack_json(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(payload)
        answer = "error" if "fail" in payload["instruction"] else self.rng.normal(0, 0.02, 3)
        body = pack_json(answer).encode()
        self.send_response(200 if self.path == "/act" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def deployed():
    Deploy.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Deploy)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/act"
    finally:
        server.shutdown()
        server.server_close()


def test_openvlas_server_can_be_the_upstream():
    critic = KnownCritic()
    critic.action_spec = replace(SPEC, chunk=1)
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with deployed() as address, proxied(address, critic, unnorm_key="bridge_orig") as ask:
        reply = ask({**SEEN, "image_primary": image})
        assert reply["steering"]["steered"] is True
        assert reply["actions"].shape == (1, 3)
        assert len(Deploy.asked) == 8
        assert all(np.array_equal(seen["image"], image) for seen in Deploy.asked)
        assert {(seen["instruction"], seen["unnorm_key"]) for seen in Deploy.asked} == {("go left", "bridge_orig")}
        assert "error" in ask({**SEEN, "image_primary": image, "instruction": "fail"})


def test_the_command_before_a_server_that_dies_and_comes_back(store, tmp_path):
    """The whole chain as processes: openpi's real client, the proxy, a second server; kill -9 of that one; SIGTERM."""
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    config = CriticConfig(encoder=VECTORS, hidden=16, members=2)
    train_critic(store.path, tmp_path / "critic", config, TrainingConfig(steps=1, batch_size=4))
    seen = {
        "state": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "proprio": np.array([0.1, 0.2], np.float32),
        "instruction": "go left",
    }
    with openpi_like() as (port, process):
        arguments = ("--upstream", f"ws://127.0.0.1:{port}", "--critic", str(tmp_path / "critic"), "--num-samples", "5")
        command = Command(*arguments, "--timeout", "20").wait()
        try:
            real = client.WebsocketClientPolicy("127.0.0.1", command.port)
            assert real.get_server_metadata()["env"] == "made up"
            replies = [real.infer(seen) for _ in range(3)]
            assert all(reply["steering"]["steered"] and reply["actions"].shape == (6, 3) for reply in replies)
            process.kill()
            process.wait()
            with pytest.raises(RuntimeError, match="no policy server can be reached"):
                real.infer(seen)
            with openpi_like(port):
                real = client.WebsocketClientPolicy("127.0.0.1", command.port)
                assert real.infer(seen)["steering"]["steered"]
        finally:
            code = command.end(signal.SIGTERM)
    assert code == 0
    assert not any("Traceback" in line for line in command.lines), command.lines
