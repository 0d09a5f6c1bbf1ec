"""Maps: motions from positions, and what is said of observations and actions that do not fit the map."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.rotations import angle_between, convert
from policies.maps import load_map
from tests.policies.map_examples import PICTURE, position_map


@pytest.mark.parametrize("absolute", ["theirs", "ours"])
@pytest.mark.parametrize("start", ["previous", "observed"])
@pytest.mark.parametrize("frame", ["base", "tool"])
def test_motions_and_positions(absolute, start, frame):
    """Against scipy, for a chunk of three, with a state for each of two observations and four samples of each."""
    policy_map, rng = position_map(absolute, start, frame), np.random.default_rng(0)
    proprio = rng.uniform(-0.5, 0.5, (2, 6))
    motions = rng.uniform(-0.3, 0.3, (2, 4, 3, 6))
    positions = np.zeros_like(motions)
    for b, k in np.ndindex(2, 4):
        at, turn = proprio[b, :3], Rotation.from_euler("xyz", proprio[b, 3:])
        for step in range(3):
            motion = Rotation.from_euler("xyz", motions[b, k, step, 3:])
            moved, turned = at + motions[b, k, step, :3], motion * turn if frame == "base" else turn * motion
            positions[b, k, step] = [*moved, *turned.as_euler("xyz")]
            if start == "previous":
                at, turn = moved, turned
    ours, expected = (positions, motions) if absolute == "ours" else (motions, positions)
    theirs = policy_map.actions_to_theirs(ours, proprio)
    quaternions = convert(expected[..., 3:], "euler_xyz", "quaternion_wxyz")
    assert np.allclose(theirs[..., :3], expected[..., :3])
    assert angle_between(theirs[..., 3:][..., [1, 2, 3, 0]], quaternions[..., [1, 2, 3, 0]]).max() < 1e-9
    assert np.allclose(policy_map.actions_from_theirs(theirs, proprio), ours)
    # A single action is a chunk of one.
    assert np.allclose(policy_map.actions_to_theirs(ours[1, 2, 0], proprio[1]), theirs[1, 2, 0])


def test_a_missing_or_misshapen_proprio_is_one_line():
    policy_map = position_map("theirs", "previous", "base")
    for proprio, says in (
        (None, "'proprio', which the observation lacks"),
        (np.zeros(4), "6 numbers"),
        (np.zeros((3, 6)), "shape"),
    ):
        with pytest.raises(InputError, match=says):
            policy_map.actions_from_theirs(np.ones((2, 5, 7)), proprio)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observation/image": None}, "no 'observation/image'; it has observation/wrist_image, observation/state, prompt"),
        ({"prompt": None}, "no 'prompt'"),
        ({"prompt": 3}, "'prompt' must be text, not int"),
        ({"observation/state": None}, "no 'observation/state'"),
        ({"observation/state": np.zeros(7)}, r"'observation/state' has shape \[7\]; the map says 8 numbers"),
        ({"observation/state": np.zeros((1, 8))}, "shape"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": ["a"] * 8}, "array of numbers"),
        ({"observation/state": [[1], [2, 3]]}, "array of numbers"),
        ({"observation/image": PICTURE.transpose(2, 0, 1)}, r"shape \[3, 5, 7\]; the map says HWC"),
        ({"observation/image": PICTURE[0]}, "the map says HWC"),
        ({"observation/image": PICTURE[None]}, "the map says HWC"),
        ({"observation/image": PICTURE.astype(np.float32)}, "is float32; the map says uint8"),
    ],
)
def test_a_wrong_observation_is_one_line(change, says):
    whole = {"observation/image": PICTURE, "observation/wrist_image": PICTURE, "observation/state": np.zeros(8), "prompt": "go"}
    theirs = {key: value for key, value in {**whole, **change}.items() if value is not None}
    with pytest.raises(InputError, match=says) as caught:
        load_map("libero").observation_from_theirs(theirs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.full((3, 2, 2), 200.0, np.float32), "values in 200..200; the map says 0..1"),
        (np.full((3, 2, 2), np.nan, np.float32), "values in nan..nan"),
        (np.zeros((3, 2, 2), np.uint8), "is uint8; the map says float"),
        (np.zeros((2, 2, 3), np.float32), "the map says CHW"),
    ],
)
def test_a_wrong_float_picture_is_one_line(picture, says):
    with pytest.raises(InputError, match=says):
        load_map("lerobot").observation_from_theirs({"observation.images.top": picture})


def test_what_ours_lacks_is_said_too():
    libero = load_map("libero")
    ours = {"image_primary": PICTURE, "image_wrist": PICTURE, "proprio": np.zeros(8, np.float32), "instruction": "go"}
    for change, says in (
        ({"image_wrist": None}, "no 'image_wrist'"),
        ({"instruction": None}, "no 'instruction'"),
        ({"proprio": np.zeros(6)}, "'proprio' has shape"),
        ({"image_primary": PICTURE / 255}, "'image_primary' must be uint8"),
    ):
        given_observation = {key: value for key, value in {**ours, **change}.items() if value is not None}
        with pytest.raises(InputError, match=says):
            libero.observation_to_theirs(given_observation)
    for wrong in (np.zeros((4, 6)), np.zeros(8), np.array("a"), np.zeros(())):
        with pytest.raises(InputError, match=r"the map says \[..., 7\]"):
            libero.actions_from_theirs(wrong)
        with pytest.raises(InputError, match=r"the map says \[..., 7\]"):
            libero.actions_to_theirs(wrong)
