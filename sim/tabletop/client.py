"""A connection to one physics world of its own, so that many environments live in a process without knowing each other.

pybullet_utils.BulletClient does the same, but makes PyBullet print "argv[0]=" on standard output at every connection. Everything
here imports `pybullet` from this module, which keeps it from announcing its build time in every process.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any, ClassVar


def _import_silently() -> ModuleType:
    """The announcement is written by C code, past sys.stderr: the descriptor itself is turned away for a moment."""
    kept, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        import pybullet
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
    return pybullet


pybullet: Any = _import_silently()


class PhysicsClient:
    """`pybullet`'s functions, bound to one in-process world, which may be another's old one: empty it before use.

    A new world costs a tenth of an episode, most of it fresh memory, so those that are done with wait for the next.
    """

    _idle: ClassVar[list[int]] = []
    _id = -1

    def __init__(self) -> None:
        self._id = self._idle.pop() if self._idle else pybullet.connect(pybullet.DIRECT)
        if self._id < 0:
            raise RuntimeError("PyBullet refused another physics world in this process; close environments that are done")

    def __getattr__(self, name: str) -> Any:
        bound = functools.partial(getattr(pybullet, name), physicsClientId=self._id)
        setattr(self, name, bound)  # so that the next call does not come here
        return bound

    def close(self) -> None:
        """Leave the world to another. Closing twice is harmless."""
        if self._id >= 0:
            self._idle.append(self._id)
            self._id = -1

    def __del__(self) -> None:
        self.close()
