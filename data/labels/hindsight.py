"""What failed episodes achieved instead: another instruction of the store whose rule holds at their end.

The sampler gives such an episode that instruction and the rewards of a success (data/labels/relabelling.py); here it is only found.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data.errors import InputError
from data.labels.rules import Rule, episode_views
from data.store.store import Store


def achieved_instructions(store: Store, rules: Mapping[str, str], success: np.ndarray | None = None) -> np.ndarray:
    """int32 [E]: for each failed episode the index of an instruction that it achieved, by the first rule that holds; -1 for none.

    rules: instruction -> rule, in order of preference. Where several wordings of a task have one rule, an episode gets the first.
    success: int8 [E], by default the store's. Only failures (0) are looked at: what is unlabelled may be a success at what it was
    asked for. InputError when an instruction is not one of the store's, or a rule is wrong.
    """
    known = {text: index for index, text in enumerate(store.instructions)}
    unknown = [text for text in rules if text not in known]
    if unknown:
        some = ", ".join(map(repr, store.instructions[:4])) + (", ..." if len(known) > 4 else "")
        raise InputError(f"{store.path}: has no instruction {unknown[0]!r}; it has {some}")
    judges = [(known[text], Rule(expression)) for text, expression in rules.items()]
    success = store.success if success is None else success
    achieved = np.full(store.length, -1, np.int32)
    for index, view in enumerate(episode_views(store)):
        if success[index] == 0:
            own = known[view.instruction]
            achieved[index] = next((other for other, rule in judges if other != own and rule(view)), -1)
    return achieved
