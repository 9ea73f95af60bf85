"""What placement is asked when there is reason to, and what comes of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.generation import ModelRef
from services.common.nodes import NodeFacts
from services.controller.core.cluster.actions import Action, LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.replanning import Ask, Candidate, Cause, Replanner


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is made for."""

    objective: str = "throughput"
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
    model: ModelRef
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


class Questions:
    """Ties the replanner to the cluster and its market; one question at a time. What placement does
    not answer changes nothing."""

    def __init__(
        self, replanner: Replanner, wishes: Wishes, cluster: Cluster, market: Market
    ) -> None:
        self._replanner = replanner
        self._wishes = wishes
        self._cluster = cluster
        self._market = market
        self._idle: frozenset[str] = frozenset()
        self._refusals: dict[str, float] = {}
        self._asked: Ask | None = None

    def due(self, now_s: float) -> Replanning | None:
        """What there is to ask by now. Answer with `answered` or `failed`."""
        cluster = self._cluster
        if cluster.plan is None or not cluster.settled:
            return None  # the first is the cluster's own; a change is carried out before the next
        self._tell(now_s)
        running = {o.offer_id: self._market.running(o.offer_id) for o in self._market.offers()}
        self._asked = self._replanner.due(running, now_s)
        return None if self._asked is None else self._question(self._asked)

    def answered(self, answer: NextPlan, now_s: float) -> list[Action]:
        """A better plan is carried out from now on."""
        ask, self._asked = self._asked, None
        causes = ", ".join(ask.causes) if ask is not None else ""
        attributes = {"causes": causes, "reason": "; ".join(answer.reasons)}
        if answer.plan is None:
            self._replanner.kept(now_s)
            return [LogEvent("plan_kept", attributes=attributes)]
        self._replanner.taken(now_s)
        attributes |= {"plan": str(answer.plan.number), "gain": f"{answer.gain:.3f}"}
        chosen = LogEvent("plan_chosen", attributes=attributes)
        return [chosen, *self._cluster.plan_ready(answer.plan, now_s)]

    def failed(self, reason: str, permanent: bool, now_s: float) -> None:
        """There was no answer."""
        self._asked = None
        self._replanner.failed(reason, permanent, now_s)

    def _tell(self, now_s: float) -> None:
        self._replanner.offered(self._market.offers(), now_s)
        idle = self._cluster.idle_nodes()
        if idle - self._idle:
            self._replanner.happened(Cause.CAME, now_s)
        self._idle = idle
        for offer_id, until_s in self._market.shut().items():
            if until_s > now_s and self._refusals.get(offer_id, 0.0) < until_s:
                self._refusals[offer_id] = until_s
                self._replanner.refused(offer_id, until_s, now_s)

    def _question(self, ask: Ask) -> Replanning:
        cluster, market = self._cluster, self._market
        nodes = cluster.usable_nodes()
        most = self._wishes.nodes_max or len(cluster.settings.initial)
        room = max(0, most - len(nodes))
        return Replanning(
            cluster.next_plan_number,
            cluster.settings.model,
            tuple((n, market.offer(market.offer_id_of(n.node_id))) for n in nodes),
            _spread(ask.candidates, room),
            cluster.running(),
            ask.improve,
            self._wishes,
        )


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
