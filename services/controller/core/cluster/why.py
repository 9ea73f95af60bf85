"""Why a plan was made: a value that is kept with it, so it has a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

MAX_ENTRIES = 16
"""Of each list; what is beyond it is left out."""
MAX_CHARS = 400
"""Of each text; what is beyond it is cut."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that was looked at and not taken."""

    plan: str
    lacks: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", _cut(self.plan))
        object.__setattr__(self, "lacks", _cut(self.lacks))


@dataclass(frozen=True, slots=True)
class Why:
    """What its maker says; all of it is for people."""

    reasons: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    """The best first."""
    causes: tuple[str, ...] = ()
    """What made somebody ask for a plan."""
    gain: float | None = None
    """By how much it beats staying, as a share of what staying is worth; None where there was
    nothing to stay with."""
    horizon_s: float | None = None
    """How long it was expected to last."""
    adopted_unix_s: float | None = None
    late: str = ""
    """Which latency target it was made to miss by how much; empty where it keeps all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", _few(tuple(map(_cut, self.reasons))))
        object.__setattr__(self, "alternatives", _few(self.alternatives))
        object.__setattr__(self, "causes", _few(tuple(map(_cut, self.causes))))
        object.__setattr__(self, "late", _cut(self.late))
        if self.gain is not None and not math.isfinite(self.gain):
            object.__setattr__(self, "gain", None)


def _few(entries: tuple[T, ...]) -> tuple[T, ...]:
    return entries[:MAX_ENTRIES]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"
