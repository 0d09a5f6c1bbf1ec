"""The six skills of the tabletop's demonstrator: what he aims at next."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sim.expert import Intent, View, Waypoint
from sim.tabletop.scene import BLOCK_SIZE, BOWL_FLOOR, SYMMETRY


def grasp(view: View, intent: Intent) -> Waypoint:
    """Close the gripper on the target, turned to its faces."""
    name = intent.target
    yaw = view.turned(view.scene.yaw(name), 2 if name == "drawer" else SYMMETRY[name])
    return view.close_on(intent, view.scene.position(name), yaw)


def touch(view: View, intent: Intent) -> Waypoint:
    """Come down on top of the target with closed fingers."""
    position = view.scene.position(intent.target) + np.array([*intent.offset, 0.022 + intent.close_height])
    return view.above(position, view.turned(view.scene.yaw(intent.target), 4), 0.0)


def lift(view: View, intent: Intent) -> Waypoint:
    if not view.holds(intent.target):
        return grasp(view, intent)
    height = view.scene.position(intent.target)[2]
    dropped = intent.release_distance > 0 and height > 0.11 - 0.5 * intent.release_distance
    return Waypoint(np.array([*view.tool[:2], 0.16]), view.yaw, 1.0 if dropped else 0.0)


def place(view: View, intent: Intent, height: float, carry: float) -> Waypoint:
    """Grasp the target, carry it `carry` above where its centre will lie (`height`) on the goal, lower it, let go, back off."""
    scene, block = view.scene, view.scene.position(intent.target)
    goal = scene.position(intent.goal)[:2] + intent.goal_offset
    error = math.hypot(*(goal - block[:2]))
    held = view.holds(intent.target)
    if error < (0.012 if held else 0.03) and block[2] < height + 0.012:
        up = 0.0 if view.opening < 0.9 else 0.05
        return Waypoint(view.tool + np.array([0.0, 0.0, up]), view.yaw, 1.0)
    if not held:
        return grasp(view, intent)
    opening = 1.0 if error < intent.release_distance else 0.0
    move = goal - block[:2]
    climb = min(carry, 3 * max(0.0, error - 0.01))
    if block[2] < height + 0.6 * carry and error > 0.05:
        move = 0.15 * move
    target = np.array([*(view.tool[:2] + move), view.tool[2] + height + climb - block[2]])
    return Waypoint(target, view.yaw, opening)


def put_in_bowl(view: View, intent: Intent) -> Waypoint:
    return place(view, intent, BOWL_FLOOR + BLOCK_SIZE / 2 + 0.012, 0.055)


def stack(view: View, intent: Intent) -> Waypoint:
    return place(view, intent, 1.5 * BLOCK_SIZE + 0.001, 0.03)


def push(view: View, intent: Intent) -> Waypoint:
    """Get behind the block with a half-open gripper turned across the way, and walk it to the goal with two points of contact."""
    scene, block = view.scene, view.scene.position(intent.target)
    way = scene.position(intent.goal)[:2] + intent.goal_offset - block[:2]
    distance = math.hypot(*way)
    along = way / max(distance, 1e-6)
    across = np.array([-along[1], along[0]])
    yaw = view.turned(math.atan2(along[1], along[0]), 2)
    offset = view.tool[:2] - block[:2] - intent.offset
    behind, aside = -float(offset @ along), float(offset @ across)
    if distance < 0.012:
        return Waypoint(np.array([*(view.tool[:2] - 0.03 * along), view.tool[2] + 0.02]), view.yaw, 0.35)
    low = view.tool[2] < 0.04
    if low and 0.015 < behind < 0.085 and abs(aside) < 0.014 and abs(yaw - view.yaw) < 0.25:
        ahead = min(0.05, distance + max(0.0, behind - 0.033))
        goal = view.tool[:2] + ahead * along - 0.8 * aside * across
        return Waypoint(np.array([*goal, 0.02]), yaw, 0.35)
    start = block[:2] + intent.offset - 0.06 * along
    return view.above(np.array([*start, 0.02]), yaw, 0.35)


def open_drawer(view: View, intent: Intent) -> Waypoint:
    """Close on the handle and walk backwards along the drawer's slide."""
    if not view.holds(intent.target):
        return grasp(view, intent)
    out = -view.scene.rotation("drawer")[:2, 0]
    opened = view.scene.drawer_opening()
    dropped = intent.release_distance > 0 and opened > 0.07 - 0.5 * intent.release_distance
    handle = view.scene.position(intent.target)
    goal = np.array([*(view.tool[:2] + 0.05 * out), handle[2] if intent.target == "drawer" else view.tool[2]])
    return Waypoint(goal, view.yaw, 1.0 if dropped else 0.0)


SKILLS: dict[str, Callable[[View, Intent], Waypoint]] = {
    "reach": touch,
    "push": push,
    "lift": lift,
    "bowl": put_in_bowl,
    "stack": stack,
    "drawer": open_drawer,
}
