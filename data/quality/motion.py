"""Faults of actions and proprio: dead and stuck dimensions, spikes, units, jumps, lag, a frozen sensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data.quality.finding import Finding
from data.quality.signals import Peak
from data.quality.survey import EpisodeFacts, Survey
from data.quality.values import absurd_values

DEAD = 1e-6
# Beyond the 1% and 99% quantiles by two times what lies between them: 11 standard deviations of a Gaussian, 19 scales of a Laplacian.
SPIKE_RANGES = 2.0
# A teleport: one step unlike both its neighbours, and long. Arms accelerate smoothly, so in clean data the most isolated step is two or
# three times the 99% quantile; where sensors are read unevenly that quantile is itself large.
JUMP_ALONE, JUMP_FAST = 8.0, 1.5
OUTSIDE = 0.05  # share of steps out of bounds; stray ones are clipped and do no harm
OUTSIDE_GRIPPER, GRIPPER_MARGIN = 0.01, 0.02  # a gripper has no stray values: it is told 0..1 and nothing else
UNUSED = 0.01  # of the bounds, by every dimension that moves: a thousandth is millimetres for metres; timid data use a tenth
MOVES_GRIPPER = 0.9  # share of an instruction's other episodes, at least MANY
MANY = 10
SEVERAL = 0.05  # of a task's episodes; fewer are as well a drawer that was once pulled with an open hand
FROZEN_STEPS, FROZEN_SHARE = 5, 0.2  # real encoders flicker in the last bit; friction holds an arm for a step or two
LAG_CORRELATION, LAG_RATIO = 0.5, 0.8
LATE_SECONDS = 0.35  # arms follow their commands within .05 to .3 s
OWN_CORRELATION, OWN_RATIO = 0.8, 0.5  # an episode's own lag, of few steps, has to be far clearer than the dataset's
# The proprio moves by this much more than it is told: what it is told is in other units. A controller's gain is between .3 and 1.5.
UNITS = {
    57.2958: ("rad", "degrees and radians"),
    1000.0: ("m", "millimetres and metres"),
    100.0: ("m", "centimetres and metres"),
}
UNITS_MARGIN, UNITS_CORRELATION = 0.3, 0.8


def motion_faults(found: Survey) -> Iterator[Finding]:
    names = found.action["names"]
    rows = found.rows.rows()
    actions, changes = rows[:, : found.size], rows[:, found.size + len(found.wraps) :]
    changes, alone = np.split(np.quantile(changes, 0.99, axis=0), 2)
    q01, q99 = np.quantile(actions, [0.01, 0.99], axis=0)
    yield from _dead(found)
    yield from _stuck_grippers(found)
    yield from _bounds(found, q01, q99)
    spikes: dict[str, str] = {}
    absurd = absurd_values(found)  # told once
    sane = [facts for facts in found.episodes if facts.source not in absurd]
    for i in (i for i in range(found.size) if i not in found.grippers and q99[i] > q01[i]):
        width = SPIKE_RANGES * (q99[i] - q01[i])
        for facts in sane:
            for value, at in ((facts.low[i], facts.low_at[i]), (facts.high[i], facts.high_at[i])):
                if not q01[i] - width <= value <= q99[i] + width:
                    spikes.setdefault(
                        facts.source, f"{names[i]} is {value:.3g} at step {at}, 98% are in {_span(q01[i], q99[i])}"
                    )
    yield from Finding.told("error", "action-spike", spikes, "cut or repair them: they stretch every normaliser")
    jumps: dict[str, str] = {}
    for index, pair in enumerate(found.pairs):
        for facts in sane:
            if facts.jump_alone[index] > JUMP_ALONE * alone[index] > 0 and facts.jump[index] > JUMP_FAST * changes[index]:
                jumps.setdefault(
                    facts.source,
                    f"{found.proprio_key}[{pair.proprio}] moves by {facts.jump[index]:.3g} after step {facts.jump_at[index]}, "
                    f"99% of steps move it by less than {changes[index]:.2g}",
                )
    yield from Finding.told("error", "proprio-jump", jumps, "two recordings in one, or missing steps: split the episode there")
    frozen = [facts for facts in found.episodes if facts.frozen[0] >= max(FROZEN_STEPS, FROZEN_SHARE * facts.length)]
    if frozen:
        length, start = frozen[0].frozen
        yield Finding.of(
            "error",
            "frozen-proprio",
            [facts.source for facts in frozen],
            f"{found.proprio_key} does not change for {length} steps from step {start} while the arm is told to move",
            "drop them: the state is not the robot's",
        )
    yield from _lag(found)
    yield from _units(found, q01, q99)


def _span(low: float, high: float) -> str:
    return f"[{low:.3g}, {high:.3g}]"


def _dead(found: Survey) -> Iterator[Finding]:
    std = found.rows.std
    dead = [name for name, value in zip(found.action["names"], std, strict=False) if value < DEAD]
    if dead:
        yield Finding(
            "warning",
            "dead-dimension",
            f"action {', '.join(dead)} never moves",
            "padding, or a lost signal: if it is none, leave it out of robot_rl.json; nothing can be learned of it",
        )
    width = len(found.wraps)
    if width and (std[found.size : found.size + width] < DEAD).all():
        yield Finding("error", "dead-proprio", f"{found.proprio_key} never changes", "name the robot's state in robot_rl.json")


def _stuck_grippers(found: Survey) -> Iterator[Finding]:
    """Only where a task needs its gripper, which its other episodes tell; a failure may well never have come to grasping."""
    for i in found.grippers:
        extent = found.rows.high[i] - found.rows.low[i]
        if extent < DEAD:
            continue
        tasks: dict[str, list[EpisodeFacts]] = defaultdict(list)
        for facts in found.episodes:
            if facts.success is not False:
                tasks[facts.instruction].append(facts)
        stuck, grave = [], False
        for episodes in tasks.values():
            still = [facts.source for facts in episodes if facts.high[i] - facts.low[i] < 0.1 * extent]
            if len(episodes) > MANY and len(still) <= (1 - MOVES_GRIPPER) * len(episodes):
                stuck += still
                grave = grave or len(still) > SEVERAL * len(episodes)
        if stuck:
            yield Finding.of(
                "error" if grave else "warning",
                "stuck-gripper",
                stuck,
                f"{found.action['names'][i]} never moves, where nearly every other episode of the same task moves it",
                "drop them, or repair the gripper's signal",
            )


def _bounds(found: Survey, q01: np.ndarray, q99: np.ndarray) -> Iterator[Finding]:
    low, high = np.asarray(found.action["low"], float), np.asarray(found.action["high"], float)
    used = []
    for i, name in enumerate(found.action["names"]):
        gripper = i in found.grippers
        margin = GRIPPER_MARGIN * (high[i] - low[i]) if gripper else 0.0
        beyond = found.rows.low[i] < low[i] - margin or found.rows.high[i] > high[i] + margin
        if beyond and found.outside[i] > (OUTSIDE_GRIPPER if gripper else OUTSIDE):
            guess = ""
            if "rad" in found.action["units"][i] and np.abs([q01[i], q99[i]]).max() / 57.3 <= np.abs([low[i], high[i]]).max():
                guess = " (degrees?)"
            yield Finding(
                "error",
                "gripper-range" if gripper else "out-of-bounds",
                f"action {name} leaves its bounds {_span(low[i], high[i])} in {100 * found.outside[i]:.0f}% of the steps, "
                f"98% are in {_span(q01[i], q99[i])}{guess}",
                "correct low, high or the unit in robot_rl.json, or the data",
            )
        if not gripper and q99[i] > q01[i] and high[i] > low[i]:
            used.append((q99[i] - q01[i]) / (high[i] - low[i]))
    if used and max(used) < UNUSED:
        yield Finding(
            "error",
            "bounds-unused",
            f"no action dimension uses more than {100 * max(used):.2g}% of its bounds",
            "correct low, high or the units in robot_rl.json: whoever acts within these bounds goes far off the data",
        )


def _lag(found: Survey) -> Iterator[Finding]:
    lag, own_faults = found.lag(), []
    if lag is None or lag.correlation < LAG_CORRELATION:
        return
    halves = {half.peak().steps for half in found.lags}
    early, late = lag.steps < 0, lag.steps >= 2 and lag.steps / found.hz > LATE_SECONDS
    if (early or late) and len(halves) == 1 and lag.stands_out_from(lag.at_zero, LAG_RATIO):
        yield Finding(
            "error",
            "action-lag",
            f"{found.proprio_key} follows the actions by {lag.steps} steps ({1000 * lag.steps / found.hz:.0f} ms); correlation "
            f"{lag.correlation:.2f} there, {lag.at_zero:.2f} at 0",
            "actions and observations are of different steps: shift them so that action t leads from observation t to t+1",
        )
    for facts in found.episodes:
        if facts.lag and facts.lag_curve is not None and _differs(facts.lag, facts.lag_curve, lag.steps):
            own_faults.append((facts.source, facts.lag.steps))
    if own_faults and len(own_faults) < len(found.episodes) / 2:
        yield Finding.of(
            "error",
            "episode-lag",
            [source for source, _ in own_faults],
            f"{found.proprio_key} follows the actions by {own_faults[0][1]} steps, in the others by {lag.steps}",
            "drop them, or shift them into line",
        )


def _differs(own: Peak, curve: np.ndarray, usual: int) -> bool:
    middle = len(curve) // 2
    if abs(usual) > middle or own.correlation < OWN_CORRELATION:
        return False
    return own.steps != usual and own.stands_out_from(float(curve[middle + usual]), OWN_RATIO)


def _units(found: Survey, q01: np.ndarray, q99: np.ndarray) -> Iterator[Finding]:
    if not found.pairs:
        return
    both = found.lags[0].merged(found.lags[1])
    correlations, slopes = both.correlations(), np.abs(both.slopes())
    for index, pair in enumerate(found.pairs):
        best = int(np.abs(correlations[index]).argmax())
        if abs(correlations[index, best]) < UNITS_CORRELATION:
            continue
        unit, slope = found.action["units"][pair.action], slopes[index, best]
        for factor, (of, words) in UNITS.items():
            inverted = slope < 1
            ratio = slope * factor if inverted else slope / factor
            if unit == of and abs(ratio - 1) < UNITS_MARGIN and q99[pair.action] > q01[pair.action]:
                yield Finding(
                    "error",
                    "unit-mismatch",
                    f"{found.proprio_key}[{pair.proprio}] moves by {slope:.3g} for each {unit} that action "
                    f"{found.action['names'][pair.action]} says: {words} are mixed up",
                    "correct the unit in robot_rl.json, or scale the data",
                )
                break
