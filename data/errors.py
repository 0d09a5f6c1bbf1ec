"""The one exception for a user's mistake, and the check of settings that raises it.

Its text is a single line that says what is wrong, where, and what to do. The command line prints it and exits with code 2;
every other exception is a defect of ours and keeps its traceback.
"""

import os
import re


class InputError(Exception):
    """Bad input: a missing dataset, a wrong schema, a corrupt record, an incompatible checkpoint."""


def reason(error: BaseException) -> str:
    """What a library said, in one line and in words, for an InputError."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, (TypeError, AttributeError)):
        return "something in it is of the wrong kind"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__


def without_skip_advice(line: str) -> str:
    """What is said of an episode that was left out, without the advice to leave it out."""
    return _SKIP_ADVICE.sub(lambda found: ";" if found[1] else "", line)


_SKIP_ADVICE = re.compile(r"(?:, or|;) (?:drop|leave|skip) [^;:,]*--skip-bad\)?(,? or(?= ))?")
inf = float("inf")
POSITIVE = (1, inf)
NONNEGATIVE = (0, inf)
RATE = (1e-12, 1e6)
LEARNING_RATE = (1e-12, 1)


def check_settings(settings: object, **bounds: tuple[float, float]) -> None:
    """Hold attributes of a settings object to [low, high]; InputError names the option, its value and what is allowed."""
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            allowed = f"{low:g} or more" if high == inf else f"between {low:g} and {high:g}"
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")
