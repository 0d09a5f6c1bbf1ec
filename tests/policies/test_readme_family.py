"""The README's family of one's own: its code, as it stands there, becomes a family by one line."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch

from policies import FAMILIES, Policy, abilities, load_policy
from robot_rl.steering import SteeredPolicy, SteeringConfig
from tests.policies.families import critic_for

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_family_is_one_file_and_one_line(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "class ConstantPolicy" in block]
    module = types.ModuleType("policies.constant")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "policies.constant", module)
    (line,) = re.findall(r'`"constant": "([^"]+)"`', README.read_text())
    monkeypatch.setitem(FAMILIES, "constant", line)

    spec = {
        "names": ["x", "gripper"],
        "units": ["m", "open"],
        "low": [-0.1, 0],
        "high": [0.1, 1],
        "frame": "made",
        "control_hz": 5,
    }
    (tmp_path / "constant.json").write_text(json.dumps({"action": [0.05, 1.0], "spec": {**spec, "chunk": 3}}))
    policy = load_policy(f"{tmp_path}?noise=0.02")
    assert isinstance(policy, Policy)
    assert policy.noise == 0.02
    assert abilities(policy) == ("sample",)
    steered = SteeredPolicy(policy, critic_for(policy), SteeringConfig(num_samples=8))
    seen = {
        "state": np.zeros((2, 2), np.float32),
        "proprio": np.zeros((2, 7), np.float32),
        "instruction": ["go left", "go right"],
    }
    actions = steered.sample(seen, 1, torch.Generator().manual_seed(0))
    assert actions.shape == (2, 1, 3, 2)
    assert len(code.splitlines()) <= 30
