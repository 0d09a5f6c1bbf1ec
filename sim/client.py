"""A connection to one physics world of its own, so that many environments live in a process without knowing each other.

pybullet_utils.BulletClient does the same, but makes PyBullet print "argv[0]=" on standard output at every connection.
"""

from __future__ import annotations

import functools
from typing import Any

import pybullet


class PhysicsClient:
    """`pybullet`'s functions, bound to one in-process world."""

    def __init__(self) -> None:
        self._id = pybullet.connect(pybullet.DIRECT)
        if self._id < 0:
            raise RuntimeError("PyBullet refused another physics world in this process; close environments that are done")

    def __getattr__(self, name: str) -> Any:
        bound = functools.partial(getattr(pybullet, name), physicsClientId=self._id)
        setattr(self, name, bound)  # so that the next call does not come here
        return bound

    def close(self) -> None:
        """Free the world. Closing twice is harmless."""
        if self._id >= 0:
            pybullet.disconnect(physicsClientId=self._id)
            self._id = -1

    def __del__(self) -> None:
        self.close()
