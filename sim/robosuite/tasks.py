"""The six tasks: which robosuite environment, what of it is used, what is asked, and the physical predicate that says it was done.

The predicates are robosuite's own thresholds; where an object is to be put somewhere, it must have been let go and lie still too.
This module does not import robosuite, so that the tasks can be listed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sim.robosuite.world import World

PLACED_SPEED = 0.05  # m/s below which an object counts as at rest
TABLE = -0.112  # the table's height in the base frame, metres
BIN = (0.195 / 2, 0.245 / 2)  # half sides of a quarter of the bin


@dataclass(frozen=True)
class Entity:
    """Something in the world. MuJoCo's names: the body has the contacts and the heading; the site, where given, the position.

    symmetry: how often a full turn repeats it, 0 for round things. A gripper at its heading holds it across its narrow side.
    half_height: metres from its middle to its foot. grasp_height: of the fingers above its middle, for the palm to stay clear.
    """

    body: str
    site: str = ""
    symmetry: int = 4
    half_height: float = 0.02
    grasp_height: float = 0.0


ENTITIES = {
    "cube": Entity("cube_main"),
    "red cube": Entity("cubeA_main"),
    "green cube": Entity("cubeB_main", half_height=0.025),
    "can": Entity("Can_main", symmetry=0, half_height=0.041, grasp_height=0.012),
    "milk carton": Entity("Milk_main", half_height=0.061, grasp_height=0.05),
    "bread": Entity("Bread_main", half_height=0.024, grasp_height=0.014),
    "cereal box": Entity("Cereal_main", symmetry=2, half_height=0.075, grasp_height=0.04),
    "can's bin": Entity("VisualCan_main", symmetry=0),
    "milk carton's bin": Entity("VisualMilk_main", symmetry=0),
    "bread's bin": Entity("VisualBread_main", symmetry=0),
    "cereal box's bin": Entity("VisualCereal_main", symmetry=0),
    "square nut": Entity("SquareNut_main", symmetry=1),
    "peg": Entity("peg1"),
    "door handle": Entity("Door_latch", site="Door_handle", symmetry=2),
}


@dataclass(frozen=True)
class Task:
    """One task. `succeeded(world, target, goal)` judges the present physical state."""

    name: str
    env_id: str
    robosuite_name: str
    max_steps: int
    hold_steps: int  # the predicate must be true at the end of this many control steps in a row
    targets: tuple[str, ...]  # one of which is asked for
    goal: str  # "" where nothing is to be put anywhere; `{target}` is filled in
    instructions: tuple[str, ...]
    objects: tuple[str, ...]  # robosuite's names of what moves freely
    succeeded: Callable[[World, str, str], bool]
    fixtures: tuple[str, ...] = ()  # ... of what is placed in each episode, and stays
    left_out: tuple[str, ...] = ()  # ... of what this task does without
    spacing: float = 0.0  # metres between the middles of what moves freely, for a hand to come down between
    options: Mapping[str, object] = field(default_factory=dict)  # of the robosuite environment


def _let_go(world: World, target: str) -> bool:
    return world.fingers_on(target) == 0 and world.speed(target) < PLACED_SPEED


def _lifted(world: World, target: str, goal: str) -> bool:
    """4 cm above the table, held by both fingers."""
    return world.position(target)[2] > TABLE + 0.04 and world.fingers_on(target) == 2


def _stacked(world: World, target: str, goal: str) -> bool:
    """On the other cube, clear of the table, let go."""
    return world.position(target)[2] > TABLE + 0.04 and world.touching(target, goal) and _let_go(world, target)


def _in_bin(world: World, target: str, goal: str) -> bool:
    """In its own quarter of the second bin, let go."""
    offset = world.position(target) - world.position(goal)
    return bool((np.abs(offset[:2]) < BIN).all()) and TABLE < world.position(target)[2] < TABLE + 0.1 and _let_go(world, target)


def _on_peg(world: World, target: str, goal: str) -> bool:
    """Around the peg and down, let go."""
    offset = world.position(target) - world.position(goal)
    return bool((np.abs(offset[:2]) < 0.03).all()) and world.position(target)[2] < TABLE + 0.05 and _let_go(world, target)


def _opened(world: World, target: str, goal: str) -> bool:
    """The door stands open by 0.3 radians."""
    return world.joint("Door_hinge") > 0.3


_LIFT = ("lift the cube", "pick up the cube", "raise the cube off the table")
_STACK = ("stack the red cube on the green cube", "put the red cube on top of the green cube")
_PLACE = ("put the {target} in its bin", "move the {target} to its bin", "place the {target} into the bin where it belongs")
_NUT = ("put the square nut on the peg", "place the square nut over the square peg", "fit the square nut onto its peg")
_DOOR = ("open the door", "pull the door open", "open the door by its handle")

TASK_TABLE = {
    task.name: task
    for task in (
        Task("lift", "Robosuite-Lift-v0", "Lift", 25, 2, ("cube",), "", _LIFT, ("cube",), _lifted),
        Task("stack", "Robosuite-Stack-v0", "Stack", 40, 2, ("red cube",), "green cube", _STACK, ("cubeA", "cubeB"), _stacked),
        Task(
            "can",
            "Robosuite-PickPlaceCan-v0",
            "PickPlaceCan",
            45,
            2,
            ("can",),
            "{target}'s bin",
            _PLACE,
            ("Can",),
            _in_bin,
            fixtures=("VisualCan",),
            left_out=("Milk", "Bread", "Cereal", "VisualMilk", "VisualBread", "VisualCereal"),
        ),
        Task(
            "groceries",
            "Robosuite-PickPlaceGroceries-v0",
            "PickPlace",
            45,
            2,
            ("milk carton", "bread", "cereal box"),
            "{target}'s bin",
            _PLACE,
            ("Milk", "Bread", "Cereal"),
            _in_bin,
            fixtures=("VisualMilk", "VisualBread", "VisualCereal"),
            left_out=("Can", "VisualCan"),
            spacing=0.14,
        ),
        Task(
            "square",
            "Robosuite-NutAssemblySquare-v0",
            "NutAssemblySquare",
            60,
            2,
            ("square nut",),
            "peg",
            _NUT,
            ("SquareNut",),
            _on_peg,
            left_out=("RoundNut",),
        ),
        Task(
            "door",
            "Robosuite-Door-v0",
            "Door",
            40,
            2,
            ("door handle",),
            "",
            _DOOR,
            (),
            _opened,
            fixtures=("Door",),
            options={"use_latch": False},  # which a hand that cannot turn by 75 degrees on the handle does not press down
        ),
    )
}
