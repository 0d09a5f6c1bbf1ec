"""One small policy of every family and variant, for the suites that run over all of them.

A family joins them with a function here. `store` is the synthetic one of tests/conftest.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.language import LanguageEncoder
from data.normalizer import Normalizer
from policies import Policy, load_policy, observation_spec
from policies.config import (
    AutoregressiveConfig,
    DiffusionConfig,
    EncoderConfig,
    FlowConfig,
    GaussianConfig,
    OctoConfig,
    OctoTokensConfig,
    OpenVLAConfig,
)
from policies.contract import DataContract
from policies.loading import family_class
from policies.mapped import MappedPolicy
from policies.maps import PolicyMap
from policies.remote import RemotePolicy
from robot_rl.critic import Critic, CriticConfig
from robot_rl.runtime import PolicyService, ServingSettings
from robot_rl.steering import (
    MajorityVoting,
    ModeChoice,
    ModeConfig,
    RandomChoice,
    RandomConfig,
    SteeredPolicy,
    SteeringConfig,
    VotingConfig,
)
from tests.policies import octo_checkpoints
from tests.policies.foreign_checkpoints import FOREIGN
from tests.policies.openvla_checkpoint import OPENVLA, pretrained
from tests.robot_rl.runtime.processes import Running

VECTORS = EncoderConfig(inputs=("state", "proprio"), vector_features=32)
CAMERAS = EncoderConfig(inputs=("image_primary", "proprio"))


def make(store: Any, config: Any) -> Any:
    torch.manual_seed(0)
    contract = DataContract.from_store(store, config.chunk, config.encoder.inputs)
    return family_class(config.family).create(config, contract).eval()


def critic_for(policy: Policy) -> Critic:
    """An untrained critic that looks at a `state`, for the actions of this policy."""
    torch.manual_seed(0)
    spec = policy.action_spec
    scale = (np.asarray(spec.high, np.float32) - np.asarray(spec.low, np.float32)) / 2
    offset = (np.asarray(spec.high, np.float32) + np.asarray(spec.low, np.float32)) / 2
    table = {text: np.eye(8, dtype=np.float32)[i] for i, text in enumerate(("go left", "go right"))}
    size = observation_spec(policy).vectors.get("state", 2)
    state = Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32))
    contract = DataContract(
        spec, Normalizer(offset, scale), {"state": state}, {}, LanguageEncoder("dataset", table), ("made",), {"discount": 0.98}
    )
    return Critic(CriticConfig(EncoderConfig(inputs=("state",)), hidden=16, members=2, chunk=spec.chunk), contract).eval()


def critic(store: Any) -> Critic:
    torch.manual_seed(0)
    config = CriticConfig(encoder=VECTORS, hidden=16, members=2)
    return Critic(config, DataContract.from_store(store, config.chunk, VECTORS.inputs)).eval()


SMALL = DiffusionConfig(VECTORS, hidden=64)

# Trained here from nothing: config by name.
CONFIGS: dict[str, Any] = {
    "gaussian": GaussianConfig(VECTORS, hidden=64),
    "diffusion": SMALL,
    "diffusion, images": DiffusionConfig(CAMERAS, hidden=64),
    "diffusion, sample prediction": DiffusionConfig(VECTORS, hidden=64, prediction="sample"),
    "diffusion, unet": DiffusionConfig(VECTORS, hidden=64, blocks=2, denoiser="unet"),
    "diffusion, transformer": DiffusionConfig(VECTORS, hidden=32, blocks=2, denoiser="transformer"),
    "flow": FlowConfig(VECTORS, hidden=64),
    "flow, unet": FlowConfig(VECTORS, hidden=64, blocks=2, denoiser="unet"),
    "autoregressive": AutoregressiveConfig(VECTORS, hidden=32, layers=2, heads=2, bins=64),
    "octo": OctoConfig(OctoTokensConfig(inputs=VECTORS.inputs, language="sentence"), width=32, layers=2, heads=2),
    "octo, images and a window": OctoConfig(
        OctoTokensConfig(inputs=CAMERAS.inputs, language="sentence", window=2), width=32, layers=2, heads=2
    ),
    "openvla": OpenVLAConfig(pretrained=pretrained(), lora_rank=8),
}


def foreign(write: Callable[[Path], Path | str]) -> Callable[[Any], Policy]:
    """A member that is loaded from a checkpoint in its authors' layout, which `write` writes."""

    def member(_store: Any) -> Policy:
        with tempfile.TemporaryDirectory() as folder:
            return load_policy(write(Path(folder)))

    return member


# Theirs are the synthetic store's actions in units of 5 cm, and 1 closes the gripper.
HALF_SCALE = {
    "observation": {"instruction": {"key": "instruction"}},
    "actions": {
        "frame": "end_effector_delta_base",
        "control_hz": 5,
        "segments": [
            {"theirs": [0, 2], "names": ["x", "y"], "unit": "m", "low": -0.0025, "high": 0.0025, "scale": 0.05},
            {"theirs": [2, 3], "names": ["gripper"], "unit": "1", "low": 0, "high": 1, "scale": -1, "offset": 1},
        ],
    },
}
OCTO: dict[str, Callable[[Path], Path | str]] = {
    "octo, as published": lambda folder: octo_checkpoints.write(folder / "octo"),
    "octo, 1.0": lambda folder: octo_checkpoints.write(folder / "octo", old=True),
}
MEMBERS: dict[str, Callable[[Any], Policy]] = {
    **{name: foreign(write) for name, write in {**FOREIGN, **OPENVLA, **OCTO}.items()},
    **{name: lambda store, config=config: make(store, config) for name, config in CONFIGS.items()},
    "mapped": lambda store: MappedPolicy(make(store, SMALL), PolicyMap.from_json(HALF_SCALE, "half scale")),
    "remote": lambda store: RemotePolicy.load(
        Running(lambda: PolicyService(make(store, CONFIGS["flow"])), ServingSettings(port=0)).address
    ),
    "steered": lambda store: SteeredPolicy(make(store, SMALL), critic(store), SteeringConfig(num_samples=4)),
    "ascended": lambda store: SteeredPolicy(
        make(store, SMALL), critic(store), SteeringConfig(num_samples=4, ascent_steps=2, aggregate="mean")
    ),
    "majority voting": lambda store: MajorityVoting(make(store, SMALL), critic(store), VotingConfig(3, 4)),
    "mode": lambda store: ModeChoice(make(store, SMALL), critic(store), ModeConfig(4)),
    "random choice": lambda store: RandomChoice(make(store, SMALL), critic(store), RandomConfig(4)),
}

# Whose samples are one and the same, whatever the generator.
DETERMINISTIC = {"lerobot, act", "openvla, oft"}
