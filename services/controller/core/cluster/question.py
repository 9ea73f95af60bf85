"""A question to placement: what runs, what is to be had, what is wanted, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from services.common.generation import ModelRef
from services.common.nodes import NodeShape
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.replanning import Ask, Candidate
from services.controller.core.cluster.workload import LEAST_RPS, Workload

MOST_CANDIDATES = 256
"""More nodes on offer are not looked at, the dearest of their speed first."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is made for; a limit of 0 does not bind."""

    budget_per_hour: float = 0.0
    """Dollars, of all that runs together."""
    nodes_min: int = 1
    """0: none while nobody asks."""
    nodes_max: int = 0
    horizon_s: float = 1800.0
    """How long a plan is expected to last."""


@dataclass(frozen=True, slots=True)
class NodeAsked:
    """A node that may be used: it is there, or was ordered."""

    node_id: str
    shape: NodeShape
    offer: Offer | None = None
    """What it was launched from."""
    held: tuple[HeldStage, ...] = ()
    starts: bool = False


@dataclass(frozen=True, slots=True)
class Replanning:
    """The question."""

    number: int
    """Of the plan that is asked for."""
    goal: Goal
    """The model that is to be served better, and what for."""
    nodes: tuple[NodeAsked, ...]
    candidates: tuple[Candidate, ...]
    running: tuple[PlannedPipeline, ...]
    """Those of the plan that have a node for every stage, or had until its notice; where phases
    alone may change, whose nodes are all there."""
    planned: int
    """How many pipelines the plan has."""
    improve: bool
    wishes: Wishes
    workload: Workload | None = None
    """None where no request's look is known: placement has one of its own."""
    notice_s: float = 0.0
    """What is left of those nodes' time that will be taken away."""
    phases_only: bool = False
    """Pipelines stay where they are: what they may have is another phase."""


@dataclass(frozen=True, slots=True)
class Dividing:
    """The question how all models share nodes and money, where one cannot be served within what
    the others leave."""

    number: int
    """Of the plan that is asked for."""
    goals: tuple[Goal, ...]
    nodes: tuple[NodeAsked, ...]
    candidates: tuple[Candidate, ...]
    running: tuple[tuple[ModelRef, PlannedPipeline], ...]
    """Those of the plan that have a node for every stage, or had until its notice."""
    wishes: Wishes
    workloads: tuple[Workload | None, ...] = ()
    """One a goal."""


Question = Replanning | Dividing


@dataclass(frozen=True, slots=True)
class NextPlan:
    """The answer; no plan where it is to stay."""

    plan: Plan | None
    gain: float
    reasons: tuple[str, ...]


NOTHING = 1e-9
"""A limit that lets nothing through; 0 would not bind."""


def question(
    cluster: Cluster,
    market: Market,
    ask: Ask,
    wishes: Wishes,
    goal: Goal,
    workload: Workload | None,
    now_s: float,
) -> Replanning:
    """What placement is asked for one model: of the nodes that no other one has, and within what
    those leave of the limits. Spares are no capacity but for what repairs a plan. `workload` is
    what is asked of the model."""
    view, stay = cluster.view, cluster.settings.strategy.weights_stay
    spares = {spare.node_id for spare in view.spares()}
    left_s = [deadline_s - now_s for deadline_s in view.deadlines_s().values()]
    others = view.seated_but_of(goal.model)
    nodes = _nodes(cluster, market)
    wishes = _left_by(wishes, [node for node in nodes if node.node_id in others])
    return Replanning(
        view.next_plan_number,
        goal,
        tuple(
            node
            for node in nodes
            if node.node_id not in others and not (ask.improve and node.node_id in spares)
        ),
        _spread(ask.candidates, wishes.nodes_max or MOST_CANDIDATES),
        tuple(
            pipeline
            for model, pipeline in (view.whole() if stay else view.running())
            if model == goal.model
        ),
        view.planned_pipelines(goal.model),
        ask.improve,
        wishes,
        _counting(workload, goal.aim),
        max(0.0, min(left_s, default=0.0)),
        stay,
    )


def dividing(
    cluster: Cluster,
    market: Market,
    ask: Ask,
    wishes: Wishes,
    workloads: Sequence[Workload | None],
) -> Dividing:
    """What placement is asked for all models; it is a repair, so spares may be used. `workloads`
    are what is asked of each."""
    goals = cluster.goals.deployed
    return Dividing(
        cluster.view.next_plan_number,
        goals,
        _nodes(cluster, market),
        _spread(ask.candidates, wishes.nodes_max or MOST_CANDIDATES),
        cluster.view.running(),
        wishes,
        tuple(_counting(one, goal.aim) for one, goal in zip(workloads, goals, strict=True)),
    )


def _nodes(cluster: Cluster, market: Market) -> tuple[NodeAsked, ...]:
    """All that may be used."""
    return tuple(
        NodeAsked(
            node.node_id,
            node.shape,
            market.offer(market.offer_id_of(node.node_id)),
            node.stages,
            node.facts is None,
        )
        for node in cluster.view.staying()
    )


def _left_by(wishes: Wishes, others: Sequence[NodeAsked]) -> Wishes:
    """What is wished with what the other models' nodes leave."""
    if not others:
        return wishes
    spent = sum(n.offer.price_per_hour or 0.0 for n in others if n.offer is not None)
    budget, most = wishes.budget_per_hour, wishes.nodes_max
    return replace(
        wishes,
        budget_per_hour=max(NOTHING, budget - spent) if budget else 0.0,
        nodes_min=max(1, wishes.nodes_min - len(others)),
        nodes_max=max(1, most - len(others)) if most else 0,
    )


def _counting(workload: Workload | None, aim: Aim) -> Workload | None:
    """A rate of nothing plans for saturation: that is what an objective means which counts no
    arrivals, and what no other one does."""
    if workload is None:
        return None
    rate = 0.0 if aim.is_plain else max(workload.arrival_rate_rps, LEAST_RPS)
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
