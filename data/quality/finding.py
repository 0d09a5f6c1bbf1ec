"""Finding: one fault of a dataset, in one line, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """fault: its id ("action-spike"). count: the episodes it is in, of which `episodes` are the first few; 0 for the whole dataset."""

    severity: Literal["error", "warning"]
    fault: str
    message: str
    advice: str
    count: int = 0
    episodes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, severity: Literal["error", "warning"], fault: str, episodes: Sequence[str], message: str, advice: str
    ) -> Finding:
        """About some episodes: "N episodes: message"."""
        noun = "episode" if len(episodes) == 1 else "episodes"
        return cls(severity, fault, f"{len(episodes)} {noun}: {message}", advice, len(episodes), tuple(episodes[:SHOWN]))

    @classmethod
    def told(
        cls, severity: Literal["error", "warning"], fault: str, messages: Mapping[str, str], advice: str
    ) -> Iterator[Finding]:
        """One about the episodes that have a message, in the words of the first; none where none has."""
        if messages:
            yield cls.of(severity, fault, list(messages), next(iter(messages.values())), advice)

    def __str__(self) -> str:
        where = f" ({', '.join(self.episodes)}{', ...' if self.count > len(self.episodes) else ''})" if self.episodes else ""
        return f"{self.severity}: {self.fault}: {self.message}{where}; {self.advice}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "episodes": list(self.episodes)}
