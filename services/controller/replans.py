"""Asks placement for another plan when there is reason to; a better one goes to the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from services.common.demand import Demand
from services.common.errors import FailedPrecondition, ShuntError
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.plan import Deployment, Plan
from services.controller.core.cluster.question import NextPlan, Replanning, Wishes, question
from services.controller.core.cluster.replanning import Ask, Cause, Replanner
from services.controller.core.cluster.why import Why
from services.controller.core.cluster.workload import Workload, Workloads
from services.controller.event_log import EventLog
from services.controller.signal import Signal

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplansSettings:
    """What is asked for by itself, and when a model goes to sleep (seconds)."""

    automatic: bool = True
    """Otherwise an operator asks, and nobody else."""
    sleep_s: float = 300.0
    """A model that may have no node has none once nobody has asked for it for so long."""


@dataclass(frozen=True, slots=True)
class Replanned:
    """What an operator's question came to."""

    change: bool
    number: int
    """Of the plan that counts."""
    gain: float
    reasons: tuple[str, ...]


class Placement(Protocol):
    """Who answers."""

    async def replan(self, question: Replanning) -> NextPlan: ...


class Replans:
    """Runs beside the cluster's runtime; what placement does not answer changes nothing."""

    def __init__(
        self,
        replanner: Replanner,
        wishes: Wishes,
        settings: ReplansSettings,
        *,
        cluster: Callable[[], Cluster],
        market: Market,
        workloads: Workloads,
        placement: Placement,
        adopt: Callable[[Plan], None],
        events: EventLog,
        changed: Signal,
        clock: Callable[[], float],
    ) -> None:
        """`changed` fires whenever cluster or market may be others."""
        self._replanner = replanner
        self._wishes = wishes
        self._settings = settings
        self._cluster = cluster
        self._market = market
        self._workloads = workloads
        self._placement = placement
        self._adopt = adopt
        self._events = events
        self._changed = changed
        self._clock = clock
        self._guests: frozenset[str] = frozenset()
        self._refusals: dict[str, float] = {}
        self._number = 0
        """Of the newest plan that was seen."""
        self._asking: asyncio.Task[None] | None = None
        self._operators: list[asyncio.Future[Replanned]] = []
        self._began = False
        """What is offered at the start was taken note of."""

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

    async def now(self) -> Replanned:
        """Has the whole planned anew, and takes what is worth its move. Raises FailedPrecondition
        where there is no plan yet or nothing fits, and what placement's absence is."""
        if self._cluster().plan is None:
            raise FailedPrecondition("there is no plan yet", field="plan")
        answer: asyncio.Future[Replanned] = asyncio.get_running_loop().create_future()
        self._operators.append(answer)
        self._replanner.happened(Cause.OPERATOR, self._clock())
        self._changed.fire()
        return await answer

    def reported(
        self, router_id: str, incarnation: str, measured_s: float, demands: Mapping[str, Demand]
    ) -> None:
        """A router says what it was asked for."""
        self._workloads.reported(router_id, incarnation, measured_s, demands, self._clock())
        self._changed.fire()

    def look(self) -> float:
        """Asks what there is to ask by now; until when it need not look again, if nothing
        happens."""
        now_s, cluster = self._clock(), self._cluster()
        if cluster.plan is None:
            return inf  # the first plan is the cluster's own question
        self._hear(cluster, now_s)
        if not self._settings.automatic and not self._operators:
            return inf
        if cluster.asleep() and not self._wakes(cluster, now_s):
            return inf
        sleeps_at_s = self._sleeps_at_s(cluster, now_s)
        if now_s >= sleeps_at_s:
            self._sleep(cluster, now_s)
            return inf
        if self._asking is not None and self._replanner.overtaken:
            self._asking.cancel()
            self._asking = None
            self._replanner.withdrawn(now_s)
        ask = self._replanner.due(self._running(), now_s, busy=cluster.busy)
        if ask is not None:
            asked = question(cluster, self._market, ask, self._wishes, now_s)
            self._asking = asyncio.get_running_loop().create_task(self._ask(ask, asked))
        return min(self._replanner.wakes_at_s(busy=cluster.busy), sleeps_at_s)

    async def answered(self) -> None:
        """Returns when no question is out."""
        while self._asking is not None:
            await asyncio.wait([self._asking])

    def _running(self) -> dict[str, int]:
        return {o.offer_id: self._market.running(o.offer_id) for o in self._market.offers()}

    # What happens

    def _hear(self, cluster: Cluster, now_s: float) -> None:
        self._hear_market(now_s)
        self._replanner.lacking(cluster.lacks(), now_s)
        guests = cluster.guests()
        if guests - self._guests:
            self._replanner.happened(Cause.CAME, now_s)
        self._guests = guests
        if cluster.next_plan_number - 1 > self._number:
            if self._number:
                self._replanner.changed(now_s)
            self._number = cluster.next_plan_number - 1
        workload = self._workloads.of(cluster.settings.model.model_id, now_s)
        self._replanner.measured(workload, now_s)

    def _hear_market(self, now_s: float) -> None:
        offers = self._market.offers()
        if not self._began:
            # Who names no price offers what the nodes run on already.
            self._replanner.start_with([o for o in offers if o.price_per_hour is None])
            self._began = True
        self._replanner.offered(offers, now_s)
        for offer_id, until_s in self._market.shut().items():
            if until_s > now_s and self._refusals.get(offer_id, 0.0) < until_s:
                self._refusals[offer_id] = until_s
                self._replanner.refused(offer_id, until_s)
        over = self._market.exceeds(self._wishes.budget_per_hour)
        self._replanner.exceeded(over, now_s)

    # Sleep

    def _wakes(self, cluster: Cluster, now_s: float) -> bool:
        """Somebody asks for a model that sleeps, or it may sleep no more."""
        wanted = any(self._workloads.open(model.model_id, now_s) for model in cluster.asleep())
        if wanted or self._wishes.nodes_min:
            if not self._replanner.asking:
                self._replanner.happened(Cause.ASKED, now_s)
            return True
        return bool(self._operators)

    def _sleeps_at_s(self, cluster: Cluster, now_s: float) -> float:
        """When the model goes to sleep, if nobody asks for it until then."""
        if self._wishes.nodes_min or not self._settings.automatic:
            return inf
        if cluster.asleep() or cluster.busy or self._asking is not None or self._operators:
            return inf
        name = cluster.settings.model.model_id
        if self._workloads.open(name, now_s):
            return inf
        quiet_since_s = max(self._workloads.asked_s(name), self._replanner.changed_s)
        return quiet_since_s + self._settings.sleep_s

    def _sleep(self, cluster: Cluster, now_s: float) -> None:
        """No pipeline any more, until somebody asks."""
        deployments = (Deployment(cluster.settings.model, self._wishes.objective, ()),)
        why = Why(
            reasons=(f"nobody asked for it for {self._settings.sleep_s:g} s",),
            causes=(Cause.QUIET.value,),
        )
        plan = Plan(cluster.next_plan_number, deployments, why)
        attributes = {"plan": str(plan.number), "quiet_s": f"{self._settings.sleep_s:g}"}
        self._events.add("fell_asleep", attributes=attributes)
        self._adopt(plan)
        self._replanner.changed(now_s)

    # Questions

    async def _ask(self, ask: Ask, asked: Replanning) -> None:
        try:
            answer = await self._placement.replan(asked)
        except ShuntError as error:
            self._asking = None
            self._failed(ask, error)
        else:
            self._asking = None
            self._take(answer, ask, asked)
        self._changed.fire()

    def _failed(self, ask: Ask, error: ShuntError) -> None:
        causes = ", ".join(ask.causes)
        _log.warning("no answer to a replan", extra={"why": error.message, "causes": causes})
        attributes = {"causes": causes, "reason": error.message}
        self._events.add("replan_failed", attributes=attributes)
        self._replanner.failed(error.message, error.permanent, self._clock())
        if Cause.OPERATOR in ask.causes:
            self._replanner.forget(Cause.OPERATOR)  # whoever asked is told, and may ask again
            for operator in self._told():
                operator.set_exception(error)

    def _take(self, answer: NextPlan, ask: Ask, asked: Replanning) -> None:
        now_s, cluster, causes = self._clock(), self._cluster(), ", ".join(ask.causes)
        if not self._still_holds(answer, asked, cluster):
            self._replanner.withdrawn(now_s)
            return
        number = cluster.next_plan_number - 1 if answer.plan is None else answer.plan.number
        attributes = {"causes": causes, "reason": "; ".join(answer.reasons)}
        if answer.plan is None:
            self._replanner.kept(now_s)
            self._events.add("plan_kept", attributes=attributes)
        else:
            self._replanner.taken(now_s)
            attributes |= {"plan": str(number), "gain": f"{answer.gain:.3f}"}
            self._events.add("plan_chosen", attributes=attributes)
            self._number = number
            why = replace(answer.plan.why, causes=tuple(cause.value for cause in ask.causes))
            self._adopt(replace(answer.plan, why=why))
        if Cause.OPERATOR in ask.causes:
            told = Replanned(answer.plan is not None, number, answer.gain, answer.reasons)
            for operator in self._told():
                operator.set_result(told)

    def _still_holds(self, answer: NextPlan, asked: Replanning, cluster: Cluster) -> bool:
        """No other plan has come meanwhile, and the nodes that it names are there."""
        if answer.plan is None:
            return True
        there = {node.node_id for node in cluster.staying()}
        return asked.number == cluster.next_plan_number and answer.plan.node_ids() <= there

    def _told(self) -> list[asyncio.Future[Replanned]]:
        operators, self._operators = self._operators, []
        return [operator for operator in operators if not operator.done()]

    # What others see

    def imagined(self) -> Replanning:
        """What placement would be asked now. Raises FailedPrecondition where there is no plan."""
        now_s, cluster = self._clock(), self._cluster()
        if cluster.plan is None:
            raise FailedPrecondition("there is no plan yet", field="plan")
        ask = self._replanner.imagined(self._running(), now_s)
        return question(cluster, self._market, ask, self._wishes, now_s)

    def workload(self, model_id: str) -> Workload | None:
        """What is asked of a model now; None while nobody can tell."""
        return self._workloads.of(model_id, self._clock())

    def open(self, model_id: str) -> int:
        """Requests of a model that wait or are being answered."""
        return self._workloads.open(model_id, self._clock())
