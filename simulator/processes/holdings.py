"""What a simulated engine holds: the stage it was asked for last, and the one of its formation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.common.errors import Superseded
from services.common.generation import ModelRef
from services.common.nodes import StageSpec

Answer = Callable[[Any], None]
Stage = tuple[ModelRef, StageSpec]


@dataclass(frozen=True, slots=True)
class Hold:
    """One that is being done, and who waits for it."""

    stage: Stage
    fits: bool
    """Else it is fetched only."""
    answers: list[Answer]


class Holdings:
    """As the engine's `Stages` keeps them: the newest Hold counts, and the stage of the formation
    that lives stays beside what is asked for."""

    def __init__(self, room: int) -> None:
        """`room`: stages that fit into memory."""
        self.held: set[Stage] = set()
        self.fetched: Stage | None = None
        """Asked for, and without room beside the stage of the formation."""
        self._room = room
        self._wanted: Stage | None = None
        self._used: Stage | None = None
        self._hold: Hold | None = None

    def begin(self, stage: Stage, answer: Answer) -> Hold | None:
        """A Hold; None if it is being done already."""
        before = self._hold
        if before is not None and before.stage == stage:
            before.answers.append(answer)
            return None
        if before is not None:
            for waiting in before.answers:
                waiting(Superseded("a newer Hold asks for something else"))
        fits = self._used in (None, stage) or self._room > 1
        self._hold = Hold(stage, fits, [answer])
        self._wanted, self.fetched = stage if fits else None, None
        self._drop()
        return self._hold

    def is_current(self, hold: Hold) -> bool:
        """No other has taken its place."""
        return hold is self._hold

    def end(self, hold: Hold, *, done: bool) -> None:
        """It is done, or failed."""
        self._hold = None
        if done and hold.fits:
            self.held.add(hold.stage)
        elif done:
            self.fetched = hold.stage

    def can_form(self, stage: Stage) -> bool:
        """A formation may count on the stage."""
        return stage == self._wanted and stage in self.held

    def use(self, stage: Stage) -> None:
        """A formation lives with it."""
        self._used = stage

    def unuse(self) -> None:
        """That formation ended."""
        self._used = None
        self._drop()

    def _drop(self) -> None:
        self.held &= {self._wanted, self._used}
