"""Asks placement for another plan when there is reason to; a better one goes to the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.errors import ShuntError
from services.common.nodes import NodeFacts
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.replanning import Ask, Candidate, Cause, Replanner
from services.controller.event_log import EventLog

_log = logging.getLogger(__name__)

_NOTHING = 1e-9
"""A budget that nothing fits; 0 would not bind."""
LOOK_S = 0.5
"""Between two looks at what has changed."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is made for."""

    budget_per_hour: float = 0.0
    """Dollars; 0 does not bind."""
    nodes_max: int = 0
    """A plan of more nodes is not taken; 0: of more than were there at first."""
    horizon_s: float = 1800.0
    """How long a plan is expected to last."""


@dataclass(frozen=True, slots=True)
class Replanning:
    """A question to placement: what runs, what is to be had, what is wanted."""

    number: int
    goal: Goal
    """The model that is to be served better, and what for."""
    nodes: tuple[tuple[NodeFacts, Offer | None], ...]
    """Usable nodes, and what each was launched from."""
    candidates: tuple[Candidate, ...]
    running: tuple[PlannedPipeline, ...]
    improve: bool
    wishes: Wishes


@dataclass(frozen=True, slots=True)
class NextPlan:
    """Placement's answer; no plan where it is to stay."""

    plan: Plan | None
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
        *,
        cluster: Callable[[], Cluster],
        market: Market,
        placement: Placement,
        adopt: Callable[[Plan], None],
        events: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self._replanner = replanner
        self._wishes = wishes
        self._cluster = cluster
        self._market = market
        self._placement = placement
        self._adopt = adopt
        self._events = events
        self._clock = clock
        self._idle: frozenset[str] = frozenset()
        self._refusals: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Asks what there is to ask by now, and takes up the answer."""
        now_s, cluster = self._clock(), self._cluster()
        if cluster.plan is None or not cluster.settled:
            return  # the first plan is the cluster's own question; a change is carried out first
        self._tell(cluster, now_s)
        running = {o.offer_id: self._market.running(o.offer_id) for o in self._market.offers()}
        ask = self._replanner.due(running, now_s)
        if ask is None:
            return
        try:
            answer = await self._asked(cluster, ask)
        except ShuntError as error:
            _log.warning("no answer to a replan", extra={"why": error.message})
            self._replanner.failed(error.message, error.permanent, self._clock())
            return
        self._take(answer, ask)

    def _tell(self, cluster: Cluster, now_s: float) -> None:
        self._replanner.offered(self._market.offers(), now_s)
        idle = cluster.idle_nodes()
        if idle - self._idle:
            self._replanner.happened(Cause.CAME, now_s)
        self._idle = idle
        for offer_id, until_s in self._market.shut().items():
            if until_s > now_s and self._refusals.get(offer_id, 0.0) < until_s:
                self._refusals[offer_id] = until_s
                self._replanner.refused(offer_id, until_s, now_s)

    async def _asked(self, cluster: Cluster, ask: Ask) -> NextPlan:
        """One model after another, until one is better served otherwise; the others keep what they
        have. Raises what placement does."""
        reasons: list[str] = []
        for goal in cluster.goals.deployed:
            answer = await self._placement.replan(self._question(cluster, ask, goal))
            if answer.plan is not None:
                return replace(answer, plan=_beside(cluster.plan, answer.plan))
            reasons += answer.reasons
        return NextPlan(None, 0.0, tuple(reasons))

    def _question(self, cluster: Cluster, ask: Ask, goal: Goal) -> Replanning:
        nodes = cluster.usable_nodes()
        most = self._wishes.nodes_max or len(cluster.settings.initial)
        room = max(0, most - len(nodes))
        running = cluster.running()
        others = {s.node_id for model, p in running if model != goal.model for s in p.stages}
        return Replanning(
            cluster.next_plan_number,
            goal,
            tuple((n, self._offer(n)) for n in nodes if n.node_id not in others),
            _spread(ask.candidates, room),
            tuple(pipeline for model, pipeline in running if model == goal.model),
            ask.improve,
            self._left_by([self._offer(n) for n in nodes if n.node_id in others]),
        )

    def _offer(self, node: NodeFacts) -> Offer | None:
        return self._market.offer(self._market.offer_id_of(node.node_id))

    def _left_by(self, others: Sequence[Offer | None]) -> Wishes:
        """What is wished with what the other models' nodes leave of the budget."""
        budget = self._wishes.budget_per_hour
        if not budget:
            return self._wishes
        spent = sum(offer.price_per_hour or 0.0 for offer in others if offer is not None)
        return replace(self._wishes, budget_per_hour=max(_NOTHING, budget - spent))

    def _take(self, answer: NextPlan, ask: Ask) -> None:
        now_s = self._clock()
        causes = ", ".join(ask.causes)
        if answer.plan is None:
            self._replanner.kept(now_s)
            attributes = {"causes": causes, "reason": "; ".join(answer.reasons)}
            self._events.add("plan_kept", attributes=attributes)
            return
        self._replanner.taken(now_s)
        attributes = {
            "plan": str(answer.plan.number),
            "causes": causes,
            "gain": f"{answer.gain:.3f}",
            "reason": "; ".join(answer.reasons),
        }
        self._events.add("plan_chosen", attributes=attributes)
        self._adopt(answer.plan)


def _beside(running: Plan | None, plan: Plan) -> Plan:
    """The plan with every other model's deployment as it is."""
    others = running.deployments if running is not None else ()
    rest = (deployment for deployment in others if deployment.model not in plan.models)
    return replace(plan, deployments=(*rest, *plan.deployments))


def _spread(candidates: tuple[Candidate, ...], room: int) -> tuple[Candidate, ...]:
    """At most `room` of them, of each offer as many as of any other: the first of each first."""
    by_offer: dict[str, list[Candidate]] = {}
    for one in candidates:
        by_offer.setdefault(one.offer.offer_id, []).append(one)
    longest = max((len(group) for group in by_offer.values()), default=0)
    turns = [
        group[turn] for turn in range(longest) for group in by_offer.values() if turn < len(group)
    ]
    return tuple(turns[:room])
