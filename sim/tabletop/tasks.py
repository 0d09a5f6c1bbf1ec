"""The six tasks: what lies on the table, what is asked, and the physical predicate that says it was done.

A predicate looks at poses, contacts, speeds and joints, never at what a demonstrator meant. Who looks through cameras learns which
block is meant from the instruction alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.tabletop.scene import BLOCK_SIZE, BLOCKS, BOWL_HEIGHT, BOWL_RADIUS, ZONE_SIZE, Pose, Scene

REACH_X, REACH_Y = (0.20, 0.38), (-0.17, 0.17)  # where objects may lie: the arm reaches all of it pointing down, any yaw
SPACING = 0.092  # an open gripper comes down between two blocks
PLACED_SPEED = 0.03  # m/s below which an object counts as at rest


@dataclass(frozen=True)
class Layout:
    """One episode: object poses, the block that is acted on (or the drawer), where it goes, and the words for it."""

    poses: dict[str, Pose]
    target: str
    goal: str
    instruction: str


@dataclass(frozen=True)
class Task:
    """One task. `layout(rng)` draws an episode; `succeeded(scene, layout)` judges the present physical state."""

    name: str
    env_id: str
    max_steps: int
    hold_steps: int  # the predicate must be true at the end of this many control steps in a row
    instructions: tuple[str, ...]
    layout: Callable[[Task, np.random.Generator], Layout]
    succeeded: Callable[[Scene, Layout], bool]


# ---- layouts


def _free_pose(rng: np.random.Generator, poses: dict[str, Pose], gaps: dict[str, float], x=REACH_X, y=REACH_Y) -> Pose | None:
    """A random pose that keeps `gaps` (default SPACING) from everything placed so far; None after 60 failures."""
    for _ in range(60):
        pose = Pose(rng.uniform(*x), rng.uniform(*y), rng.uniform(-math.pi, math.pi))
        if all(math.hypot(pose.x - o.x, pose.y - o.y) > gaps.get(name, SPACING) for name, o in poses.items()):
            return pose
    return None


def _with_blocks(rng: np.random.Generator, poses: dict[str, Pose], blocks: tuple[str, ...], gaps: dict[str, float]) -> bool:
    """Add the blocks at free places; False when one found none."""
    for name in blocks:
        pose = _free_pose(rng, poses, gaps)
        if pose is None:
            return False
        poses[name] = pose
    return True


def _shuffled_blocks(rng: np.random.Generator, least: int) -> tuple[str, ...]:
    """Two or three (at least `least`) block names in random order; the first is the target."""
    count = int(rng.integers(least, len(BLOCKS) + 1))
    return tuple(BLOCKS[i] for i in rng.permutation(len(BLOCKS))[:count])


def _instruction(task: Task, rng: np.random.Generator, target: str, goal: str = "") -> str:
    return task.instructions[rng.integers(len(task.instructions))].format(target=target, goal=goal)


def _blocks_only(task: Task, rng: np.random.Generator) -> Layout:
    """Blocks alone; the goal is the second block."""
    while True:
        blocks = _shuffled_blocks(rng, 2)
        poses: dict[str, Pose] = {}
        if _with_blocks(rng, poses, blocks, {}):
            return Layout(poses, blocks[0], blocks[1], _instruction(task, rng, blocks[0], blocks[1]))


def _blocks_and_bowl(task: Task, rng: np.random.Generator) -> Layout:
    while True:
        blocks = _shuffled_blocks(rng, 2)
        poses = {"bowl": Pose(rng.uniform(0.22, 0.36), rng.uniform(-0.15, 0.15), rng.uniform(-math.pi, math.pi))}
        if _with_blocks(rng, poses, blocks, {"bowl": 0.135}):
            return Layout(poses, blocks[0], "bowl", _instruction(task, rng, blocks[0]))


def _blocks_and_zone(task: Task, rng: np.random.Generator) -> Layout:
    """The zone is some way off the target block, and the arm can get behind the block to push it there."""
    while True:
        blocks = _shuffled_blocks(rng, 2)
        poses = {"zone": Pose(rng.uniform(0.22, 0.36), rng.uniform(-0.13, 0.13), rng.uniform(-math.pi / 4, math.pi / 4))}
        if not _with_blocks(rng, poses, blocks, {"zone": 0.12}):
            continue
        zone, block = poses["zone"], poses[blocks[0]]
        distance = math.hypot(zone.x - block.x, zone.y - block.y)
        ux, uy = (zone.x - block.x) / distance, (zone.y - block.y) / distance
        behind = Pose(block.x - 0.07 * ux, block.y - 0.07 * uy)
        others = [poses[name] for name in blocks[1:]]
        if distance > 0.24 or not (0.17 < behind.x < 0.42 and abs(behind.y) < 0.22):
            continue
        if all(_clearance(other, behind, zone) > 0.075 for other in others):
            return Layout(poses, blocks[0], "zone", _instruction(task, rng, blocks[0]))


def _clearance(point: Pose, start: Pose, end: Pose) -> float:
    """Distance of a point from a segment on the table."""
    dx, dy = end.x - start.x, end.y - start.y
    along = min(1.0, max(0.0, ((point.x - start.x) * dx + (point.y - start.y) * dy) / (dx * dx + dy * dy)))
    return math.hypot(point.x - start.x - along * dx, point.y - start.y - along * dy)


def _blocks_and_drawer(task: Task, rng: np.random.Generator) -> Layout:
    """The cabinet stands at the far edge, facing the robot more or less; blocks lie out of the drawer's way."""
    while True:
        x, y = rng.uniform(0.40, 0.43), rng.uniform(-0.12, 0.12)
        yaw = 0.5 * math.atan2(y, x) + rng.uniform(-0.25, 0.25)
        poses = {"drawer": Pose(x, y, yaw)}
        pulled = Pose(x - 0.18 * math.cos(yaw), y - 0.18 * math.sin(yaw))
        for name in _shuffled_blocks(rng, 1)[:2]:
            pose = _free_pose(rng, poses, {"drawer": 0.0})
            if pose is not None and _clearance(pose, poses["drawer"], pulled) > 0.13:
                poses[name] = pose
        if len(poses) > 1:
            return Layout(poses, "drawer", "drawer", _instruction(task, rng, "drawer"))


# ---- predicates


def _at_rest(scene: Scene, name: str) -> bool:
    return scene.speed(name) < PLACED_SPEED


def _horizontal(scene: Scene, name: str, other: str) -> np.ndarray:
    return (scene.position(name) - scene.position(other))[:2]


def _touched(scene: Scene, layout: Layout) -> bool:
    """A finger is on the target and on no other block."""
    others = [name for name in BLOCKS if name in scene.bodies and name != layout.target]
    return scene.fingers_on(layout.target) > 0 and not any(scene.fingers_on(name) for name in others)


def _pushed(scene: Scene, layout: Layout) -> bool:
    """The block's centre is inside the square by at least 1 cm, and the block rests on the table, not between two fingers."""
    offset = _horizontal(scene, layout.target, layout.goal) @ scene.rotation(layout.goal)[:2, :2]
    inside = bool(np.abs(offset).max() < ZONE_SIZE / 2 - 0.01)
    return (
        inside
        and scene.touching(layout.target, "table")
        and _at_rest(scene, layout.target)
        and scene.fingers_on(layout.target) < 2
    )


def _lifted(scene: Scene, layout: Layout) -> bool:
    """The block hangs at least 8 cm over its place, held by both fingers."""
    return scene.position(layout.target)[2] > BLOCK_SIZE / 2 + 0.08 and scene.fingers_on(layout.target) == 2


def _in_bowl(scene: Scene, layout: Layout) -> bool:
    """The block lies in the bowl, let go."""
    block, bowl = scene.position(layout.target), scene.position("bowl")
    within = math.hypot(*(block - bowl)[:2]) < BOWL_RADIUS - 0.01 and block[2] < bowl[2] + BOWL_HEIGHT + 0.01
    released = scene.fingers_on(layout.target) == 0 and scene.touching(layout.target, "bowl")
    return within and released and _at_rest(scene, layout.target)


def _stacked(scene: Scene, layout: Layout) -> bool:
    """The block rests on the other one, which rests on the table, and the gripper has let go."""
    gap = scene.position(layout.target) - scene.position(layout.goal)
    above = abs(gap[2] - BLOCK_SIZE) < 0.006 and math.hypot(*gap[:2]) < 0.75 * BLOCK_SIZE
    resting = scene.touching(layout.target, layout.goal) and scene.touching(layout.goal, "table")
    return above and resting and scene.fingers_on(layout.target) == 0 and _at_rest(scene, layout.target)


def _opened(scene: Scene, layout: Layout) -> bool:
    """The drawer is out by 7 of its 12 cm, and is not flying."""
    return scene.drawer_opening() > 0.07 and scene.speed("drawer") < 0.3


_REACH = ("touch the {target}", "reach for the {target}")
_PUSH = ("push the {target} onto the yellow zone", "slide the {target} to the yellow zone")
_LIFT = ("lift the {target}", "pick up the {target}")
_BOWL = ("put the {target} in the bowl", "place the {target} into the bowl")
_STACK = ("stack the {target} on the {goal}",)
_DRAWER = ("open the drawer", "pull the drawer open")

TASK_TABLE = {
    task.name: task
    for task in (
        Task("reach", "Tabletop-Reach-v0", 30, 1, _REACH, _blocks_only, _touched),
        Task("push", "Tabletop-Push-v0", 60, 2, _PUSH, _blocks_and_zone, _pushed),
        Task("lift", "Tabletop-Lift-v0", 45, 2, _LIFT, _blocks_only, _lifted),
        Task("bowl", "Tabletop-Bowl-v0", 60, 2, _BOWL, _blocks_and_bowl, _in_bowl),
        Task("stack", "Tabletop-Stack-v0", 60, 2, _STACK, _blocks_only, _stacked),
        Task("drawer", "Tabletop-Drawer-v0", 50, 2, _DRAWER, _blocks_and_drawer, _opened),
    )
}
