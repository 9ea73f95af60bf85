"""A simulated controller asks for another plan when there is reason to, or for an operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from services.common.demand import Demand
from services.common.errors import ShuntError
from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.question import Dividing, Question
from services.controller.core.cluster.succession import Succession
from simulator.environment.addresses import PLACEMENT
from simulator.processes.controlling import PLAN_S, Controlling


class Replans:
    """Runs beside the cluster."""

    def __init__(
        self, of: Controlling, succession: Succession, note_budget: Callable[[float], None]
    ) -> None:
        """`note_budget` makes an operator's budget durable."""
        self._of = of
        self._succession = succession
        self._note_budget = note_budget

    def reported(self, router_id: str, measured_s: float, demands: dict[str, Demand]) -> None:
        """A router says what it was asked for."""
        now_s = self._of.clock.now_s
        self._succession.reported(router_id, router_id, measured_s, demands, now_s)

    def replan(self) -> None:
        """An operator has the whole planned anew. Raises FailedPrecondition where there is no plan
        yet."""
        self._succession.operator_asks(self._of.clock.now_s)
        self._of.monitor.operator_asks()
        self.look()

    def spend(self, per_hour: float) -> None:
        """An operator sets another budget, and has the whole planned anew within it. Raises
        FailedPrecondition where there is no plan yet."""
        self._note_budget(per_hour)
        self._succession.spend(per_hour, self._of.clock.now_s)
        self.replan()
        self._of.stir()

    def look(self) -> None:
        """Asks for another plan where there is reason to."""
        look = self._succession.look(self._of.clock.now_s)
        self._of.act(look.actions)
        if look.actions:
            self._of.stir()
        self._ask(look.question)

    def _ask(self, question: Question | None) -> None:
        if question is not None:
            self._of.monitor.asks(question)
            answered = partial(self._replanned, question)
            method = "divide" if isinstance(question, Dividing) else "replan"
            self._of.call(PLACEMENT, method, (question,), answered, PLAN_S)

    def _replanned(self, question: Question, result: Any) -> None:
        now_s = self._of.clock.now_s
        if isinstance(result, ShuntError):
            refused = self._succession.failed(question, result, now_s)
            self._of.act(refused.actions)
            if refused.refused:
                self._of.monitor.operator_told(None)
            self._ask(refused.question)
            return
        serving = self._of.monitor.adopts(result.plan) if result.plan is not None else {}
        taken = self._succession.answered(question, result, now_s)
        if any(isinstance(one, LogEvent) and one.kind == "plan_chosen" for one in taken.actions):
            self._of.monitor.answers(question, result)
            self._of.monitor.adopted(serving)
        if taken.told is not None:
            self._of.monitor.operator_told(taken.told)
        self._of.act(taken.actions)
        self._ask(taken.question)
        self._of.stir()
