"""What the actions of Open-X policies mean: seven numbers, an end-effector motion and the gripper, at the rate of their dataset."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base import ActionSpec

# Control rates in Hz, as the Open X-Embodiment overview gives them, by the name before any suffix such as `_orig` or `_dataset`.
CONTROL_HZ = {
    "bridge": 5,
    "fractal20220817_data": 3,
    "kuka": 10,
    "taco_play": 15,
    "jaco_play": 10,
    "berkeley_cable_routing": 10,
    "roboturk": 10,
    "viola": 20,
    "berkeley_autolab_ur5": 5,
    "toto": 30,
    "language_table": 10,
    "stanford_hydra": 10,
    "austin_buds": 20,
    "nyu_franka_play": 3,
    "furniture_bench": 10,
    "ucsd_kitchen": 2,
    "austin_sailor": 20,
    "austin_sirius": 20,
    "bc_z": 10,
    "dlr_edan_shared_control": 5,
    "iamlab_cmu_pickup_insert": 20,
    "utaustin_mutex": 20,
    "berkeley_fanuc_manipulation": 10,
    "cmu_stretch": 10,
    "droid": 15,
    "libero": 20,
}


def open_x_spec(dataset: str, low: Sequence[float], high: Sequence[float], chunk: int, control_hz: float | None) -> ActionSpec:
    """The spec of a policy for `dataset` (its `unnorm_key`); bounds [A] in physical units.

    Open-X standardises to x, y, z, roll, pitch, yaw and an open gripper at 1. Vectors of another size are joint spaces or bimanual
    ones, of which a checkpoint tells nothing: their dimensions are numbered. control_hz: None looks the dataset up; 0 where unknown.
    """
    if control_hz is None:
        control_hz = next((hz for name, hz in CONTROL_HZ.items() if dataset.startswith(name)), 0)
    names: tuple[str, ...] = tuple(f"action_{i}" for i in range(len(low)))
    units: tuple[str, ...] = ("1",) * len(low)
    frame = "unknown"
    if len(low) == 7:
        names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
        units = ("m", "m", "m", "rad", "rad", "rad", "open")
        frame = "end_effector_delta_base"
    return ActionSpec(names, units, tuple(map(float, low)), tuple(map(float, high)), frame, float(control_hz), chunk)
