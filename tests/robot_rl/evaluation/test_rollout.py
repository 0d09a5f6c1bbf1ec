from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import gymnasium
import numpy as np
import point_mass
import pytest
import torch
from point_mass import Homing

from data.errors import InputError
from robot_rl.evaluation import Step, rollout, stack_observations
from sim import SUITES
from sim.tabletop.scene import Scene

ENV = "test/PointMass-v0"


def test_batches_shrink_as_episodes_finish() -> None:
    policy = Homing(noise=0.05)
    outcomes = rollout(policy, ENV, range(20), generator_seed=0)
    assert [o.seed for o in outcomes] == list(range(20))
    assert policy.resets == 1
    assert policy.batches[0] == 20
    assert policy.batches == sorted(policy.batches, reverse=True)
    # One call serves all that are live: nobody lives longer than 12 steps of 3 a chunk.
    assert len(policy.batches) <= 4
    assert any(o.success for o in outcomes)
    assert all(o.error is None and 1 <= o.steps <= 12 for o in outcomes)
    assert {o.instruction for o in outcomes} == {"go to left", "go to right"}
    assert all(o.frames is None and o.values == [] for o in outcomes)


def test_equals_one_plain_episode_at_a_time() -> None:
    """With a deterministic policy, batching must not change anything."""
    together = rollout(Homing(0.0), ENV, range(8), generator_seed=0)
    for outcome in together:
        env = gymnasium.make(ENV, disable_env_checker=True)
        observation, _ = env.reset(seed=outcome.seed)
        steps, over, info = 0, False, {}
        while not over:
            chunk = Homing(0.0).sample(stack_observations([observation]), 1)[0, 0].numpy()
            for action in chunk:
                observation, _, terminated, truncated, info = env.step(np.clip(action, -0.5, 0.5))
                steps, over = steps + 1, terminated or truncated
                if over:
                    break
        assert (outcome.steps, outcome.success) == (steps, info["success"])


def test_same_seeds_same_outcomes() -> None:
    def outcomes(generator_seed: int) -> list[tuple[bool, int]]:
        return [(o.success, o.steps) for o in rollout(Homing(0.3), ENV, range(30), generator_seed)]

    assert outcomes(1) == outcomes(1)
    assert outcomes(1) != outcomes(2)


def test_execute_and_on_step() -> None:
    policy, seen = Homing(0.3), list[Step]()
    outcomes = rollout(policy, ENV, [0, 1], 0, execute=1, on_step=seen.append)
    assert len(policy.batches) == max(o.steps for o in outcomes)
    assert len(seen) == sum(o.steps for o in outcomes)
    mine = [step for step in seen if step.seed == 1]
    assert [step.time for step in mine] == list(range(outcomes[1].steps))
    for step, following in pairwise(mine):
        assert np.array_equal(step.next_observation["state"], following.observation["state"])
        assert not step.terminated
        assert not step.truncated
        assert np.abs(step.action).max() <= 0.5
    assert mine[-1].terminated or mine[-1].truncated


def test_recording() -> None:
    (outcome,) = rollout(Homing(0.0), ENV, [5], 0, record=[5])
    assert outcome.frames is not None
    assert outcome.frames.shape == (outcome.steps + 1, 16, 20, 3)
    assert outcome.frames.dtype == np.uint8
    plain, seen = rollout(Homing(0.0), ENV, [4, 5], 0, record=[5])
    assert plain.frames is None
    assert seen.frames is not None


def test_values_of_the_chosen_chunk_are_kept() -> None:
    outcomes = rollout(Homing(0.0, judged=True), ENV, range(6), 0)
    for outcome in outcomes:
        assert len(outcome.values) == -(-outcome.steps // 3)
        assert all(isinstance(value, float) for value in outcome.values)
        assert outcome.values == sorted(outcome.values)  # it only ever comes closer


@pytest.mark.parametrize(("where", "text"), [("reset", "reset: RuntimeError"), ("step", "step 0: RuntimeError")])
def test_a_crashing_environment_is_a_named_failure(where: str, text: str) -> None:
    outcomes = rollout(Homing(0.0), ENV, range(10, 20), 0, env_kwargs={"crash": where}, record=range(10, 20))
    crashed = [o for o in outcomes if o.error]
    assert [o.seed for o in crashed] == [13]
    assert crashed[0].error == f"{text}: simulator exploded"
    assert not crashed[0].success
    healthy = rollout(Homing(0.0), ENV, range(10, 20), 0)
    assert [(o.steps, o.success) for o in outcomes if not o.error] == [(o.steps, o.success) for o in healthy if o.seed != 13]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("nan", "step 1: the environment gave a 'state' that is not finite"),
        ("shape", "step 1: the environment gave 'state' of shape (1,), before it was (2,)"),
        ("missing", "step 1: the environment gave no 'state', which it gave before"),
    ],
)
def test_what_an_environment_may_not_give_ends_the_episode(fault: str, text: str) -> None:
    outcomes = rollout(Homing(0.0), "test/Faulty-v0", range(3), 0, env_kwargs={"fault": fault})
    assert [(o.error, o.success, o.steps) for o in outcomes] == [(text, False, 1)] * 3


def test_an_environment_that_says_neither_true_nor_false_or_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"Faulty-v0: info\['success'\] is 'no'; it must be true or false"):
        rollout(Homing(0.0), "test/Faulty-v0", range(3), 0, env_kwargs={"fault": "success"})
    with pytest.raises(InputError, match=r"Faulty-v0: cannot be made .OSError: no USB device"):
        rollout(Homing(0.0), "test/Faulty-v0", range(3), 0, env_kwargs={"fault": "made"})


def test_an_action_that_is_not_finite_is_a_named_failure() -> None:
    outcomes = rollout(Homing(0.0, nan_above=0.5), ENV, range(20), 0)
    bad = [o for o in outcomes if o.error]
    assert 0 < len(bad) < 20
    assert all(o.error == "step 0: the policy gave an action that is not finite" and not o.success for o in bad)


def test_a_value_that_is_not_finite_costs_its_episode() -> None:
    class Lost(Homing):
        def sample(self, observations, num_samples, generator=None):
            actions = super().sample(observations, num_samples, generator)
            self.last_decision.values[torch.from_numpy(observations["state"])[:, 1] > 0.5] = torch.nan
            return actions

    outcomes = rollout(Lost(0.0, judged=True), ENV, range(20), 0)
    lost = [o for o in outcomes if o.error]
    assert 0 < len(lost) < 20
    assert all(o.error == "step 0: the critic gave a value that is not finite" and not o.values for o in lost)
    assert all(np.isfinite(o.values).all() for o in outcomes)


def test_somebody_elses_cameras_are_left_alone() -> None:
    outcomes = rollout(Homing(0.0), "test/Filmed-v0", range(3), 0)
    assert all(o.error is None for o in outcomes)


def test_every_environment_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(point_mass.PointMass, "close", lambda self: closed.append(1))
    rollout(Homing(0.0), ENV, range(5), 0)
    assert len(closed) == 5
    closed.clear()
    with pytest.raises(InputError, match="info\\['success'\\]"):
        rollout(Homing(0.0), "test/NoSuccess-v0", range(5), 0)
    assert len(closed) == 5


def test_users_mistakes() -> None:
    with pytest.raises(InputError, match="no such environment"):
        rollout(Homing(0.0), "test/Nowhere-v0", [0], 0)
    with pytest.raises(InputError, match="execute 4 actions of a chunk of 3"):
        rollout(Homing(0.0), ENV, [0], 0, execute=4)
    two = Homing(0.0)
    two.action_spec = two.action_spec.__class__(("x", "y"), ("m", "m"), (0, 0), (1, 1), "world", 10.0, 3)
    with pytest.raises(InputError, match="actions of 2 numbers"):
        rollout(two, ENV, [0], 0)


def test_gradients_can_be_turned_on_inside_a_policy() -> None:
    class Ascending(Homing):
        def sample(self, observations, num_samples, generator=None):  # type: ignore[no-untyped-def]
            with torch.enable_grad():
                x = super().sample(observations, num_samples, generator).requires_grad_()
                (gradient,) = torch.autograd.grad((x**2).sum(), x)
            return x.detach() + 0 * gradient

    assert rollout(Ascending(0.0), ENV, [1], 0)[0].error is None


def test_a_policy_that_fails_is_a_named_failure() -> None:
    class Broken(Homing):
        def sample(self, observations, num_samples, generator=None):  # type: ignore[no-untyped-def]
            if len(self.batches) == 1:
                raise TimeoutError("no answer within 30 s")
            return super().sample(observations, num_samples, generator)

    outcomes = rollout(Broken(0.0), ENV, range(10), 0)
    lost = [o for o in outcomes if o.error]
    assert lost
    assert all(o.error == "step 3: the policy failed: TimeoutError: no answer within 30 s" and not o.success for o in lost)
    assert all(o.success for o in outcomes if not o.error)  # they were done before


def test_pictures_are_taken_only_where_somebody_looks() -> None:
    """The cameras of a suite's environment, which cost more than all else, see what each decision sees and no more."""
    env_id, taken, seen = SUITES["tabletop"].tasks["reach"], [], []

    class Looking(Homing):
        def sample(self, observations, num_samples, generator=None):  # type: ignore[no-untyped-def]
            seen.append(observations["image_primary"])
            return torch.zeros((len(seen[-1]), num_samples, 3, 7))

    policy = Looking(0.0)
    policy.action_spec = replace(policy.action_spec, names=tuple("xyzrpwg"))
    with pytest.MonkeyPatch.context() as patch:
        image = Scene.image
        patch.setattr(Scene, "image", lambda self, *given: taken.append(given[0]) or image(self, *given))
        kwargs = {"cameras": ("primary",), "image_size": 16}
        outcome = rollout(policy, env_id, [3], 0, env_kwargs=kwargs)[0]
        assert outcome.steps == 30
        assert len(taken) == len(seen) + 1 == 11  # at the reset, and after each chunk of three
        steps: list[Step] = []
        rollout(policy, env_id, [3], 0, env_kwargs=kwargs, on_step=steps.append)
    for decision, frame in zip(steps[::3], seen, strict=False):
        np.testing.assert_array_equal(decision.observation["image_primary"], frame[0])
