"""How long blocks that go ahead rest between two rounds, for the sake of what decodes beside them.

A round takes cores, memory and a link from steps. How much of their rate that is, is seen: steps a
second while rounds went over steps a second while they rested. With rounds for a share of the time
decoding loses that share of it, so they have the share that costs no more than is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

_FADES = 0.7
"""What was seen before counts so much beside what is seen now."""


@dataclass(frozen=True, slots=True)
class AheadSettings:
    """What going ahead may have."""

    share: float = 0.5
    """Of the time, at most."""
    slows: float = 0.1
    """Of the rate of decoding, at most."""


@dataclass(slots=True)
class _Seen:
    took_s: float = 0.0
    steps: float = 0.0

    def add(self, took_s: float, steps: int) -> None:
        self.took_s = _FADES * self.took_s + took_s
        self.steps = _FADES * self.steps + steps

    @property
    def rate(self) -> float:
        return self.steps / self.took_s if self.took_s > 0 else 0.0


class Resting:
    """Of one formation's blocks."""

    def __init__(self, settings: AheadSettings) -> None:
        self._settings = settings
        self._gone, self._rested = _Seen(), _Seen()

    def went(self, took_s: float, steps: int) -> None:
        """A round took so long, and so many steps departed meanwhile."""
        self._gone.add(took_s, steps)

    def rested(self, took_s: float, steps: int) -> None:
        """Nothing went for so long, and so many steps departed meanwhile."""
        self._rested.add(took_s, steps)

    @property
    def share(self) -> float:
        """Of the time, for rounds; before anything has rested, and where nothing decodes then, as
        much as there may be."""
        most, alone = self._settings.share, self._rested.rate
        lost = max(0.0, 1 - self._gone.rate / alone) if alone else 0.0
        return most if lost * most <= self._settings.slows else self._settings.slows / lost

    def rest_s(self, took_s: float) -> float:
        """Behind a round that took so long."""
        return took_s * (1 / self.share - 1)
