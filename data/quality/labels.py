"""Faults of episodes as wholes: unusable ones, copies, instructions, lengths and ends, success and rewards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from data.quality.finding import Finding
from data.quality.survey import EpisodeFacts, Survey

SPARSE = 3  # a reward of at most so many values is sparse: its highest one means that the task is done
MANY = 10  # what is said of "all" or "nearly all" episodes needs so many of them
SAME_LENGTH = 0.9
# Demonstrations of one dataset differ in length by a factor of three or so; a tenth of the median is a slip of the record button.
SHORT = 0.1
NAMED = 10  # of the episodes that cannot be used
LEFT_AFTER_GOAL = 3  # steps that a recorder may run on after the task is done


def label_faults(found: Survey) -> Iterator[Finding]:
    yield from _unusable(found)
    yield from _copies(found)
    yield from _instructions(found)
    yield from _lengths(found)
    yield from _rewards(found)
    counts = Counter(facts.success for facts in found.episodes)
    if counts[False] >= MANY and not counts[True]:
        yield Finding(
            "warning", "never-succeeds", "no episode is labelled a success", "is `success` of robot_rl.json the right feature?"
        )
    if found.assumes_success and counts[None]:
        yield Finding.of(
            "warning",
            "assumed-success",
            [facts.source for facts in found.episodes if facts.success is None],
            "no label of success, so the rewards are those of a success",
            "right for demonstrations; of others say how they ended, with `robot-rl data label`",
        )


def _unusable(found: Survey) -> Iterator[Finding]:
    if found.errors:
        fault, _, advice = found.errors[0].partition("; ")
        yield Finding(
            "error",
            "unusable-episode",
            f"{len(found.errors)} of {found.total} episodes cannot be used, the first: {fault}",
            advice or "repair them, or leave them out with --skip-bad",
            len(found.errors),
            _names(found.errors),
        )
    if found.left_out:
        yield Finding(
            "warning",
            "left-out",
            f"{len(found.left_out)} episodes of the source were left out by conversion, the first: {found.left_out[0]}",
            "if they are needed, repair them there and convert it again",
            len(found.left_out),
            _names(found.left_out),
        )
    if len(found.shapes) > 1:
        usual = dict(found.shapes.most_common(1)[0][0])
        odd = [dict(shapes) for shapes in found.shapes if dict(shapes) != usual]
        keys = sorted({key for other in odd for key in {*usual, *other} if usual.get(key) != other.get(key)})
        count = found.shapes.total() - found.shapes.most_common(1)[0][1]
        yield Finding(
            "error",
            "ragged-observations",
            f"{count} episodes lack {', '.join(keys)} or have it in another shape than the rest",
            "describe the kinds as datasets of their own, or leave that observation out of robot_rl.json",
        )


def _names(lines: Sequence[str]) -> tuple[str, ...]:
    """The first of the episodes (or files) that lines of fault are about; none where all are about one, which the message names."""
    names = dict.fromkeys(line.partition(": ")[0] for line in lines)
    return tuple(names)[:NAMED] if len(names) > 1 else ()


def _copies(found: Survey) -> Iterator[Finding]:
    """Copies are counted twice in training, and put the same episode on both sides of a held-out split."""
    wholes: dict[bytes, list[EpisodeFacts]] = defaultdict(list)
    for facts in found.episodes:
        wholes[facts.whole].append(facts)
    copies = [facts.source for group in wholes.values() for facts in group[1:]]
    if copies:
        originals = [group[0].source for group in wholes.values() if len(group) > 1]
        yield Finding.of(
            "error",
            "duplicate-episode",
            copies,
            f"same actions, proprio and instruction as an earlier one (the first of {originals[0]})",
            "drop the copies; a held-out set made of this data would not be held out",
        )
    # Two people, or one person twice, never send the same floats for this long; a still or nearly still episode is all alike, though.
    moving = [group[0] for group in wholes.values() if group[0].length >= MANY and (group[0].high > group[0].low).sum() > 1]
    motions: dict[bytes, list[EpisodeFacts]] = defaultdict(list)
    for facts in moving:
        motions[facts.motion].append(facts)
    near = [facts.source for group in motions.values() for facts in group[1:]]
    if near:
        yield Finding.of(
            "warning",
            "same-actions",
            near,
            "the actions of an earlier one, bit by bit, with other observations or another instruction",
            "a replay or a relabelled copy: keep both only if that is meant, and on one side of a held-out split",
        )


def _instructions(found: Survey) -> Iterator[Finding]:
    empty = [facts.source for facts in found.episodes if not facts.instruction.strip()]
    if empty and len(empty) < len(found.episodes):
        yield Finding.of(
            "error", "empty-instruction", empty, "no instruction, where others have one", "drop them, or label them"
        )
    elif empty:
        yield Finding(
            "warning",
            "empty-instruction",
            "no episode has an instruction",
            'say what the task is: "instruction": {"text": "..."} in robot_rl.json',
        )


def _lengths(found: Survey) -> Iterator[Finding]:
    lengths = np.array([facts.length for facts in found.episodes])
    median = float(np.median(lengths))
    short = [facts.source for facts in found.episodes if facts.length < SHORT * median]
    if short:
        yield Finding.of(
            "warning",
            "short-episode",
            short,
            f"less than a tenth of the median length, {median:g} steps",
            "drop aborted recordings",
        )
    longest = [facts for facts in found.episodes if facts.length == lengths.max()]
    ended = sum(facts.terminated is True for facts in longest)
    if len(lengths) >= MANY and len(longest) >= SAME_LENGTH * len(lengths) and ended < len(longest) / 2:
        yield Finding(
            "warning",
            "cut-episodes",
            f"{len(longest)} of {len(lengths)} episodes have exactly {lengths.max()} steps and no end of their own",
            "cut by a limit, their last steps are not the task's end: do not label them successes by that",
        )


def _rewards(found: Survey) -> Iterator[Finding]:
    rewarded = [(facts, facts.reward) for facts in found.episodes if facts.reward is not None]
    if not rewarded:
        return
    values = set[float]().union(*(reward[0] for _, reward in rewarded))
    successes = [facts for facts, _ in rewarded if facts.success]
    if len(values) == 1:
        if all(facts.success is False for facts, _ in rewarded):
            return  # as it should be
        yield Finding(
            "error" if successes else "warning",
            "constant-reward",
            f"every reward is {values.pop():g}"
            + (f", yet {len(successes)} episodes are labelled successes" if successes else ""),
            "say in robot_rl.json which feature the reward is, or make rewards of success labels, as `robot-rl data convert` does by "
            "itself (--reward success)",
        )
        return
    if len(values) > SPARSE:
        return
    goal = max(values)
    unpaid = [facts.source for facts, reward in rewarded if facts.success is True and reward[1] < goal]
    if unpaid:
        yield Finding.of(
            "error",
            "success-without-reward",
            unpaid,
            f"labelled a success, but no step has the reward {goal:g} that others get",
            "correct the label or the reward",
        )
    undue = [facts.source for facts, reward in rewarded if facts.success is False and reward[3] == goal]
    if undue:
        yield Finding.of(
            "error",
            "reward-without-success",
            undue,
            f"labelled a failure, but the last step has the reward {goal:g} of a success",
            "correct the label or the reward",
        )
    early = [
        facts.source
        for facts, reward in rewarded
        if reward[1] == goal
        and reward[3] < goal
        and reward[2] < facts.length - 1 - LEFT_AFTER_GOAL
        and facts.success is not False
    ]
    if early:
        yield Finding.of(
            "error",
            "reward-before-end",
            early,
            f"the reward {goal:g} comes once, well before the end, and the steps after it are unrewarded",
            "cut the episode where the task is done, or keep the reward there until the end",
        )
