"""The six skills of robosuite's demonstrator: what he aims at next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim.expert import Intent, View, Waypoint
from sim.robosuite.tasks import ENTITIES, TABLE
from sim.rotations import rotation_from_rpy

REACH = 0.775  # how far out things are put, metres: of the can's bin, the nearer half
PEG_TOP = 0.04  # in the base frame, metres
DOOR_ROLL = -0.8  # radians


def grasp(view: View, intent: Intent) -> Waypoint:
    """Close the gripper on the target, across its narrow side and as low as the palm permits."""
    scene, entity = view.scene, ENTITIES[intent.target]
    if intent.target == "square nut":
        position = scene.site("SquareNut_handle_site")
    else:
        position = scene.position(intent.target) + np.array([0.0, 0.0, entity.grasp_height])
    repeats = entity.symmetry if entity.symmetry in (0, 4) else 2
    return view.close_on(intent, position, view.turned(scene.yaw(intent.target), repeats))


def lift(view: View, intent: Intent) -> Waypoint:
    if not view.holds(intent.target):
        return grasp(view, intent)
    height = view.scene.position(intent.target)[2] - TABLE
    dropped = intent.release_distance > 0 and height > 0.09 - 0.5 * intent.release_distance
    return Waypoint(view.tool + np.array([0.0, 0.0, 0.04]), view.yaw, 1.0 if dropped else 0.0)


def place(view: View, intent: Intent, height: float, carry: float, near: float) -> Waypoint:
    """Grasp the target, carry it `carry` above `height`, where its middle will be on the goal; within `near` lower it and let go."""
    scene, held = view.scene, view.holds(intent.target)
    thing, goal = scene.position(intent.target), scene.position(intent.goal)[:2]
    goal = goal * min(1.0, REACH / math.hypot(*goal)) + intent.goal_offset
    way = goal - thing[:2]
    error = math.hypot(*way)
    if error < (near if held else 2 * near) and thing[2] < height + 0.012:
        up = 0.0 if view.opening < 0.8 else 0.05
        return Waypoint(view.tool + np.array([0.0, 0.0, up]), view.yaw, 1.0)
    if not held:
        return grasp(view, intent)
    opening = 1.0 if error < intent.release_distance else 0.0
    climb = min(carry, 3 * max(0.0, error - 0.7 * near))
    if thing[2] < height + 0.8 * carry and error > 0.15:
        way = 0.1 * way
    return Waypoint(np.array([*(view.tool[:2] + way), view.tool[2] + height + climb - thing[2]]), view.yaw, opening)


def stack(view: View, intent: Intent) -> Waypoint:
    """One cube's middle comes to lie above the other's by half of either's side."""
    height = view.scene.position(intent.goal)[2] + ENTITIES[intent.goal].half_height + ENTITIES[intent.target].half_height
    return place(view, intent, height + 0.002, 0.04, 0.012)


def put_in_bin(view: View, intent: Intent) -> Waypoint:
    """Over the bins' walls, into the middle of its quarter."""
    return place(view, intent, TABLE + ENTITIES[intent.target].half_height + 0.02, 0.13, 0.03)


def fit_nut(view: View, intent: Intent) -> Waypoint:
    """Hold the nut by its handle, over the peg with parallel sides, lower it a little and let it fall."""
    scene, held = view.scene, view.holds(intent.target)
    nut, peg = scene.position(intent.target), scene.position(intent.goal) + np.array([*intent.goal_offset, 0.0])
    error = math.hypot(*(peg - nut)[:2])
    if error < 0.02 and nut[2] < PEG_TOP - 0.03:
        up = 0.0 if view.opening < 0.8 else 0.05
        return Waypoint(view.tool + np.array([0.0, 0.0, up]), view.yaw, 1.0)
    if not held:
        return grasp(view, intent)
    yaw, aligned = scene.yaw(intent.target), scene.yaw(intent.goal)
    quarter = (aligned - yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4
    arms = {  # of the tool from the nut's middle, once turned
        turn: rotation_from_rpy(0.0, 0.0, turn) @ (view.tool - nut)
        for turn in (quarter + k * math.pi / 2 for k in (-2, -1, 0, 1, 2))
    }
    # The peg stands at the end of the arm's reach, and the wrist has an end to its turn.
    reachable = {turn: arm for turn, arm in arms.items() if math.hypot(*(peg + arm)[:2]) < 0.8 and abs(view.yaw + turn) < 2.2}
    turn, arm = min((reachable or arms).items(), key=lambda each: abs(each[0]))
    around = error < 0.008 and abs(turn) < 0.1
    on_peg = nut[2] < PEG_TOP and error < 0.02
    height = PEG_TOP - 0.04 if around or on_peg else PEG_TOP + 0.05
    goal = peg[:2] + arm[:2]
    if nut[2] < PEG_TOP + 0.02 and not on_peg and error > 0.02:
        goal = view.tool[:2]  # straight up first
    opening = 1.0 if error < intent.release_distance else 0.0
    return Waypoint(np.array([*goal, view.tool[2] + height - nut[2]]), view.yaw + turn, opening)


def open_door(view: View, intent: Intent) -> Waypoint:
    """Hold the handle from above with a tilted hand, which else would meet the door, and pull the door along its arc."""
    scene = view.scene
    if not view.holds(intent.target):
        return replace(grasp(view, intent), roll=DOOR_ROLL)
    dropped = intent.release_distance > 0 and scene.joint("Door_hinge") > 0.25 - intent.release_distance
    out = -scene.rotation(intent.target)[:2, 1]
    yaw = view.turned(scene.yaw(intent.target), 2)
    return Waypoint(view.tool + np.array([*(0.05 * out), 0.0]), yaw, 1.0 if dropped else 0.0, DOOR_ROLL)


SKILLS: dict[str, Callable[[View, Intent], Waypoint]] = {
    "lift": lift,
    "stack": stack,
    "can": put_in_bin,
    "groceries": put_in_bin,
    "square": fit_nut,
    "door": open_door,
}
