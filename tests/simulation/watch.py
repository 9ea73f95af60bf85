"""What all oracles share: the world they watch, a trace of it, and what they raise."""

from __future__ import annotations

from collections.abc import Callable

from simulator.world import World


class Violation(AssertionError):
    """An invariant does not hold."""


def judged(run: Callable[[], None]) -> None:
    """Runs a world. Raises Violation, also for what a core raises: in a mesh it ends a process."""
    try:
        run()
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"invariant 12: a core failed: {error!r}") from error


class Watch:
    """Watches one world."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.trace: list[str] = []

    def fail(self, number: int, message: str) -> None:
        """Raises Violation."""
        raise Violation(f"invariant {number}: {message}")

    def note(self, *words: object) -> None:
        """A line of the trace, by which two runs of a seed are compared."""
        self.trace.append(f"{self._now_s:.6f} {' '.join(map(str, words))}")

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s if self.world is not None else 0.0
