"""Maps as files: a preset is one, the documentation's example works, and what is wrong with one is said in a line."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
from policies import ActionSpec
from policies.maps import PolicyMap, load_map, presets


@pytest.mark.parametrize("preset", presets())
def test_a_map_is_its_file(preset, tmp_path):
    policy_map = load_map(preset)
    assert PolicyMap.from_json(policy_map.to_json(), preset) == policy_map
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(policy_map.to_json()))
    mine = load_map(path)
    assert (mine.observation, mine.actions) == (policy_map.observation, policy_map.actions)
    if policy_map.actions is not None:
        assert ActionSpec.from_json(policy_map.action_spec(4).to_json()) == policy_map.action_spec(4)


def test_the_maps_own_example(tmp_path):
    """The map file of the documentation: an arm that takes absolute poses with quaternions, and a gripper of 0 (open) to 255."""
    text = """{
      "observation": {
        "image_primary": {"key": "cameras/front", "layout": "CHW", "values": "0..1"},
        "proprio": {"parts": [
          {"key": "tcp", "slice": [0, 3]},
          {"key": "tcp", "slice": [3, 7], "rotation": "quaternion_wxyz"},
          {"key": "width", "size": 1, "scale": 12.5}]},
        "instruction": {"key": ["task", "prompt"]}
      },
      "actions": {"frame": "end_effector_delta_base", "control_hz": 10, "segments": [
        {"theirs": [0, 3], "names": ["x", "y", "z"], "unit": "m", "low": -0.05, "high": 0.05,
         "scale": 0.001, "reference": {"absolute": "theirs", "proprio": [0, 3]}},
        {"theirs": [3, 7], "names": ["roll", "pitch", "yaw"], "unit": "rad", "low": -0.25, "high": 0.25,
         "rotation": "quaternion_wxyz", "reference": {"absolute": "theirs", "proprio": [3, 6], "rotation": "euler_xyz"}},
        {"theirs": [7, 8], "names": ["gripper"], "unit": "open", "low": 0, "high": 1,
         "scale": -0.00392156862745098, "offset": 1, "threshold": 0.5}]}
    }"""
    (tmp_path / "arm.json").write_text(text)
    arm = load_map(tmp_path / "arm.json")
    tcp = np.array([0.4, 0.1, 0.3, 0, 1, 0, 0])
    theirs = {"cameras": {"front": np.zeros((3, 4, 4), np.float32)}, "tcp": tcp, "width": 0.08, "prompt": "pour"}
    ours = arm.observation_from_theirs(theirs)
    assert np.allclose(ours["proprio"], [0.4, 0.1, 0.3, math.pi, 0, 0, 1], atol=1e-6)
    step = np.array([[0.01, 0, 0, 0, 0, 0.1, 1], [0.01, 0, 0, 0, 0, 0.1, 0]])
    sent = arm.actions_to_theirs(step, ours["proprio"])
    assert np.allclose(sent[:, :3], [[410, 100, 300], [420, 100, 300]], atol=1e-4)
    assert np.allclose(sent[:, 7], [0, 255])
    assert np.allclose(arm.actions_from_theirs(sent, ours["proprio"]), step)


def libero_file() -> dict[str, Any]:
    return load_map("libero").to_json()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(colour=1), "unknown entry 'colour'"),
        (lambda m: m.pop("observation"), "no 'observation'"),
        (lambda m: m.update(observation=[]), "observation: must be an object"),
        (lambda m: m.update(nested="yes"), "nested is 'yes'; it must be true or false"),
        (lambda m: m["observation"].update(image={}), "ours are named image_"),
        (lambda m: m["observation"].update(image_primary="camera"), "image_primary: must be an object"),
        (lambda m: m["observation"]["image_primary"].pop("key"), "image_primary: has no 'key'"),
        (lambda m: m["observation"]["image_primary"].update(layout="WHC"), "layout is 'WHC'; it must be one of HWC, CHW"),
        (lambda m: m["observation"]["image_primary"].update(values="float"), "values is 'float'"),
        (lambda m: m["observation"]["image_primary"].update(colour="BGR"), "image_primary: has an unknown entry 'colour'"),
        (lambda m: m["observation"]["proprio"].update(slice=[3, 3]), r"slice is \[3, 3\]"),
        (lambda m: m["observation"]["proprio"].update(size=0), "size is 0"),
        (lambda m: m["observation"]["proprio"].update(scale=0), "proprio.scale is .* other than 0"),
        (lambda m: m["observation"].update(proprio={"parts": [{"key": "a"}, {"key": "b"}]}), "each needs a 'slice'"),
        (lambda m: m["observation"].update(proprio={"parts": []}), r"parts is \[\]"),
        (lambda m: m["observation"].update(proprio={"key": "a", "rotation": "rpy"}), "'rpy' is no representation"),
        (lambda m: m["observation"].update(proprio={"key": "a", "slice": [0, 4], "rotation": "axis_angle"}), "3 numbers"),
        (lambda m: m["observation"].update(instruction={"key": []}), "text or a list of texts"),
        (lambda m: m["actions"].pop("frame"), "actions: has no 'frame'"),
        (lambda m: m["actions"].update(control_hz=-1), "control_hz is -1"),
        (lambda m: m["actions"].update(segments=[]), r"segments is \[\]"),
        (lambda m: m["actions"].update(size=5), r"segments\[1\].theirs is \[3, 6\]"),
        (lambda m: m["actions"]["segments"][1].update(theirs=[2, 5]), r"segments\[1\].theirs is \[2, 5\].*apart"),
        (lambda m: m["actions"]["segments"][0].update(names=["x", "y"]), "3 numbers of theirs and 2 names"),
        (lambda m: m["actions"]["segments"][0].update(names=["x", "y", "yaw"]), "one name"),
        (lambda m: m["actions"]["segments"][0].update(scale=[1, 0, 1]), "scale is .* other than 0"),
        (lambda m: m["actions"]["segments"][0].update(low=[1, 2]), r"low is \[1, 2\].*a list of 3"),
        (lambda m: m["actions"]["segments"][0].update(low=1), "'low' must be below 'high'"),
        (lambda m: m["actions"]["segments"][0].update(high=float("nan")), "high is nan"),
        (lambda m: m["actions"]["segments"][0].update(speed=1), r"segments\[0\]: has an unknown entry 'speed'"),
        (lambda m: m["actions"]["segments"][1].update(rotation="yaw"), "'yaw' is no representation"),
        (lambda m: m["actions"]["segments"][1].update(rotation="rotation_6d"), "must have 6 and 3"),
        (lambda m: m["actions"]["segments"][1].update(threshold=0.5), "'threshold' goes with no 'rotation'"),
        (lambda m: m["actions"]["segments"][2].update(sticky=15), "'sticky' gripper"),
        (
            lambda m: m["actions"]["segments"][0].update(reference={"absolute": "theirs", "proprio": [0, 2]}),
            "must be 3 numbers",
        ),
        (lambda m: m["actions"]["segments"][0].update(reference={"absolute": "mine", "proprio": [0, 3]}), "absolute is 'mine'"),
        (lambda m: m["actions"]["segments"][1].update(reference={"absolute": "theirs", "proprio": [0, 3]}), "no 'rotation'"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, change, says):
    values = libero_file()
    change(values)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=says) as caught:
        load_map(str(path))
    assert "\n" not in str(caught.value)
    assert "mine.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", "\x00"])
def test_a_file_that_is_no_map(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.json") as caught:
        load_map(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match=r"'libera' is neither.*aloha, bridge, .*simpler_widowx"):
        load_map("libera")
