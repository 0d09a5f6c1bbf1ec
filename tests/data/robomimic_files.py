"""Files as robomimic's dataset_states_to_obs.py writes them, by h5py; arrays are made of the episode's number: tests know them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

OSC_POSE = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "impedance_mode": "fixed",
    "control_delta": True,
}
SHAPES = {
    "agentview_image": (20, 24, 3),
    "robot0_eye_in_hand_image": (12, 12, 3),
    "robot0_eef_pos": (3,),
    "robot0_eef_quat": (4,),
    "robot0_gripper_qpos": (2,),
    "object": (10,),
}


def env_args(controllers: Any = OSC_POSE, name: str = "NutAssemblySquare", **settings: Any) -> dict[str, Any]:
    kwargs = {"control_freq": 20, "robots": ["Panda"], "controller_configs": controllers, "reward_shaping": False, **settings}
    return {"env_name": name, "type": 1, "env_version": "1.4.1", "env_kwargs": kwargs}


def observations(number: int, length: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    """[length + 1, ...] by key."""
    rng = np.random.default_rng(number)
    return {
        key: rng.integers(0, 256, (length + 1, *shape), np.uint8) if len(shape) == 3 else rng.normal(size=(length + 1, *shape))
        for key, shape in shapes.items()
    }


def actions(number: int, length: int, size: int = 7) -> np.ndarray:
    """[length, size] in [-1, 1], the last of them -1 or 1."""
    values = np.random.default_rng(1000 + number).uniform(-1, 1, (length, size))
    values[:, 6:7] = np.sign(values[:, 6:7])
    return values


def write(
    path: Path,
    count: int = 12,
    args: dict[str, Any] | None = None,
    next_obs: bool = True,
    size: int = 7,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    masks: dict[str, list[str]] | None = None,
    attributes: dict[str, str] | None = None,
) -> Path:
    """`count` demonstrations, of 4 + number steps; those of odd numbers reach a reward of 1."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in range(count):
            length = 4 + number
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update({"num_samples": length, "model_file": "<mujoco/>"})
            last = np.arange(length) == length - 1
            demo["actions"], demo["states"] = actions(number, length, size), np.zeros((length, 32))
            demo["rewards"], demo["dones"] = (last & bool(number % 2)).astype(float), last.astype(int)
            for key, value in observations(number, length, shapes).items():
                demo.create_dataset(f"obs/{key}", data=value[:-1], compression="gzip" if value.ndim == 4 else None)
                if next_obs:
                    demo[f"next_obs/{key}"] = value[1:]
        data.attrs["total"] = sum(demo.attrs["num_samples"] for demo in data.values())
        data.attrs.update(attributes or {})
        if args is not None:
            data.attrs["env_args"] = json.dumps(args, indent=4)
        for name, demos in (masks or {}).items():
            file[f"mask/{name}"] = np.array(demos, dtype=np.bytes_)
    return path
