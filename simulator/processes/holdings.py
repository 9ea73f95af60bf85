"""What a simulated engine holds: the stages it was asked for last, and the one of its formation."""

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

    stages: tuple[Stage, ...]
    """Those first that have memory first."""
    fitting: frozenset[Stage]
    """The others are fetched only."""
    answers: list[Answer]


class Holdings:
    """As the engine's `Stages` keeps them: the newest Hold counts, and the stage of the formation
    that lives stays beside what is asked for."""

    def __init__(self, room: int) -> None:
        """`room`: stages that fit into memory."""
        self.held: set[Stage] = set()
        self.fetched: frozenset[Stage] = frozenset()
        """Asked for, and without room beside the stage of the formation, or what comes first."""
        self._room = room
        self._wanted: frozenset[Stage] = frozenset()
        self._used: Stage | None = None
        self._hold: Hold | None = None

    def begin(self, stages: tuple[Stage, ...], answer: Answer) -> Hold | None:
        """A Hold; None if it is being done already."""
        before = self._hold
        if before is not None and before.stages == stages:
            before.answers.append(answer)
            return None
        if before is not None:
            for waiting in before.answers:
                waiting(Superseded("a newer Hold asks for something else"))
        self._wanted, self.fetched = self._fitting(stages), frozenset()
        self._hold = Hold(stages, self._wanted, [answer])
        self._drop()
        return self._hold

    def _fitting(self, stages: tuple[Stage, ...]) -> frozenset[Stage]:
        used = () if self._used is None else (self._used,)
        chosen = frozenset(stage for stage in stages if stage in used)
        for stage in stages:
            if len({*chosen, *used, stage}) <= self._room:
                chosen |= {stage}
        return chosen

    def is_current(self, hold: Hold) -> bool:
        """No other has taken its place."""
        return hold is self._hold

    def end(self, hold: Hold, *, done: bool) -> None:
        """It is done, or failed."""
        self._hold = None
        if done:
            self.held |= hold.fitting
            self.fetched = frozenset(hold.stages) - hold.fitting

    def can_form(self, stage: Stage) -> bool:
        """A formation may count on the stage."""
        return stage in self._wanted and stage in self.held

    def use(self, stage: Stage) -> None:
        """A formation lives with it."""
        self._used = stage

    def unuse(self) -> None:
        """That formation ended."""
        self._used = None
        self._drop()

    def _drop(self) -> None:
        self.held &= {*self._wanted, self._used}
