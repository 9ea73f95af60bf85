"""A question to placement: what runs, what is to be had, what is wanted, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from services.common.generation import ModelRef
from services.common.nodes import NodeShape
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import THROUGHPUT, Plan, PlannedPipeline
from services.controller.core.cluster.replanning import Ask, Candidate
from services.controller.core.cluster.workload import LEAST_RPS, Workload

MOST_CANDIDATES = 256
"""More nodes on offer are not looked at, the dearest of their speed first."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is made for; a limit of 0 does not bind."""

    objective: str = THROUGHPUT
    budget_per_hour: float = 0.0
    """Dollars, of all that runs together."""
    nodes_min: int = 1
    """0: none while nobody asks."""
    nodes_max: int = 0
    horizon_s: float = 1800.0
    """How long a plan is expected to last."""
    ttft_target_s: float = 0.0
    tpot_target_s: float = 0.0

    @property
    def counts_arrivals(self) -> bool:
        """What arrives decides how much is enough; otherwise as much as can be had is."""
        return self.objective != THROUGHPUT or bool(self.ttft_target_s or self.tpot_target_s)


@dataclass(frozen=True, slots=True)
class NodeAsked:
    """A node that may be used: it is there, or was ordered."""

    node_id: str
    shape: NodeShape
    offer: Offer | None = None
    """What it was launched from."""
    held: HeldStage | None = None
    starts: bool = False


@dataclass(frozen=True, slots=True)
class Replanning:
    """The question."""

    number: int
    """Of the plan that is asked for."""
    model: ModelRef
    nodes: tuple[NodeAsked, ...]
    candidates: tuple[Candidate, ...]
    running: tuple[PlannedPipeline, ...]
    improve: bool
    wishes: Wishes
    workload: Workload | None = None
    """None where no request's look is known: placement has one of its own."""
    notice_s: float = 0.0
    """What is left of those nodes' time that will be taken away."""


@dataclass(frozen=True, slots=True)
class NextPlan:
    """The answer; no plan where it is to stay."""

    plan: Plan | None
    gain: float
    reasons: tuple[str, ...]


def question(
    cluster: Cluster, market: Market, ask: Ask, wishes: Wishes, now_s: float
) -> Replanning:
    """What placement is asked. Spares are no capacity but for what repairs a plan."""
    spares = {spare.node_id for spare in cluster.spares()}
    left_s = [deadline_s - now_s for deadline_s in cluster.deadlines_s().values()]
    return Replanning(
        cluster.next_plan_number,
        cluster.settings.model,
        tuple(
            NodeAsked(
                node.node_id,
                node.shape,
                market.offer(market.offer_id_of(node.node_id)),
                node.held,
                node.facts is None,
            )
            for node in cluster.staying()
            if not ask.improve or node.node_id not in spares
        ),
        _spread(ask.candidates, wishes.nodes_max or MOST_CANDIDATES),
        cluster.running(),
        ask.improve,
        wishes,
        _counting(ask.workload, wishes),
        max(0.0, min(left_s, default=0.0)),
    )


def _counting(workload: Workload | None, wishes: Wishes) -> Workload | None:
    """A rate of nothing plans for saturation: that is what an objective means which counts no
    arrivals, and what no other one does."""
    if workload is None:
        return None
    rate = max(workload.arrival_rate_rps, LEAST_RPS) if wishes.counts_arrivals else 0.0
    return replace(workload, arrival_rate_rps=rate)


def _spread(candidates: Sequence[Candidate], most_of_one: int) -> tuple[Candidate, ...]:
    """So many of them as can be looked at: at most `most_of_one` of each offer, and of each as many
    as of any other, the first of each first."""
    by_offer: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: _price_of_speed(one.offer)):
        by_offer.setdefault(one.offer.offer_id, []).append(one)
    longest = max((len(group) for group in by_offer.values()), default=0)
    turns = [
        group[turn]
        for turn in range(min(longest, most_of_one))
        for group in by_offer.values()
        if turn < len(group)
    ]
    return tuple(turns[:MOST_CANDIDATES])


def _price_of_speed(offer: Offer) -> float:
    price = 0.0 if offer.price_per_hour is None else offer.price_per_hour
    return price / offer.shape.relative_speed if offer.shape.relative_speed > 0 else inf
