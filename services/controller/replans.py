"""Asks placement for another plan when there is reason to; a better one is carried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Protocol

from services.common.demand import Demand
from services.common.errors import ShuntError
from services.controller.core.cluster.actions import Action
from services.controller.core.cluster.question import Dividing, NextPlan, Question, Replanning
from services.controller.core.cluster.succession import Replanned, Succession, Taken
from services.controller.core.cluster.workload import Workload
from services.controller.signal import Signal

_log = logging.getLogger(__name__)


class Placement(Protocol):
    """Who answers."""

    async def replan(self, question: Replanning) -> NextPlan: ...

    async def divide(self, question: Dividing) -> NextPlan: ...


class Replans:
    """Runs beside the cluster's runtime."""

    def __init__(
        self,
        succession: Succession,
        *,
        placement: Placement,
        submit: Callable[[Sequence[Action]], object],
        note_budget: Callable[[float], Awaitable[None]],
        changed: Signal,
        clock: Callable[[], float],
    ) -> None:
        """`submit` has actions carried out, `note_budget` makes an operator's budget durable;
        `changed` fires whenever cluster or market may be others."""
        self._succession = succession
        self._placement = placement
        self._submit = submit
        self._note_budget = note_budget
        self._changed = changed
        self._clock = clock
        self._asking: asyncio.Task[None] | None = None
        self._operators: list[asyncio.Future[Replanned]] = []

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                wakes_at_s = self.look()
                left_s = None if wakes_at_s == inf else max(0.0, wakes_at_s - self._clock())
                await self._changed.wait(left_s)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def now(self, budget_per_hour: float | None = None) -> Replanned:
        """Has the whole planned anew, within another budget where one is given, and takes what is
        worth its move. Raises FailedPrecondition where there is no plan yet or nothing fits, and
        what placement's absence is; the budget counts all the same."""
        if budget_per_hour is not None:
            await self._note_budget(budget_per_hour)
            self._succession.spend(budget_per_hour, self._clock())
        self._succession.operator_asks(self._clock())
        answer: asyncio.Future[Replanned] = asyncio.get_running_loop().create_future()
        self._operators.append(answer)
        self._changed.fire()
        return await answer

    def reported(
        self, router_id: str, incarnation: str, measured_s: float, demands: Mapping[str, Demand]
    ) -> None:
        """A router says what it was asked for."""
        self._succession.reported(router_id, incarnation, measured_s, demands, self._clock())
        self._changed.fire()

    def look(self) -> float:
        """Asks what there is to ask by now; until when it need not look again, if nothing
        happens."""
        look = self._succession.look(self._clock())
        if look.actions:
            self._submit(look.actions)
        if look.question is not None:
            if self._asking is not None:
                self._asking.cancel()  # it was overtaken
            self._begin(look.question)
        return look.wakes_at_s

    async def answered(self) -> None:
        """Returns when no question is out."""
        while self._asking is not None:
            await asyncio.wait([self._asking])

    def _begin(self, question: Question) -> None:
        self._asking = asyncio.get_running_loop().create_task(self._ask(question))

    async def _ask(self, asked: Question) -> None:
        try:
            answer = await self._answer(asked)
        except ShuntError as error:
            self._asking = None
            self._failed(asked, error)
        else:
            self._asking = None
            self._take(self._succession.answered(asked, answer, self._clock()))
        self._changed.fire()

    async def _answer(self, asked: Question) -> NextPlan:
        if isinstance(asked, Dividing):
            return await self._placement.divide(asked)
        return await self._placement.replan(asked)

    def _take(self, taken: Taken) -> None:
        self._submit(taken.actions)
        if taken.question is not None:
            self._begin(taken.question)
        if taken.told is not None:
            for operator in self._told():
                operator.set_result(taken.told)

    def _failed(self, asked: Question, error: ShuntError) -> None:
        _log.warning("no answer to a replan", extra={"why": error.message})
        taken = self._succession.failed(asked, error, self._clock())
        self._take(taken)
        for operator in self._told() if taken.refused else ():
            operator.set_exception(error)

    def _told(self) -> list[asyncio.Future[Replanned]]:
        operators, self._operators = self._operators, []
        return [operator for operator in operators if not operator.done()]

    # What others see

    def imagined(self) -> tuple[Replanning, ...]:
        """What placement would be asked now, for each model. Raises FailedPrecondition where there
        is no plan."""
        return self._succession.imagined(self._clock())

    def workload(self, model_id: str) -> Workload | None:
        """What is asked of a model now; None while nobody can tell."""
        return self._succession.workload(model_id, self._clock())

    def open(self, model_id: str) -> int:
        """Requests of a model that wait or are being answered."""
        return self._succession.open(model_id, self._clock())
