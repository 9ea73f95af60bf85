"""What an operator's plan would change: in the cluster, its cost, and by placement's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.errors import ShuntError
from services.common.generation import ModelRef
from services.common.nodes import NodeShape
from services.controller.core.cluster.applying import operators_plan
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.difference import Difference, StageToBe
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.node import HeldStage


@dataclass(frozen=True, slots=True)
class Estimating:
    """A question to placement: what a model's pipelines carry, and what their nodes load."""

    goal: Goal
    nodes: Mapping[str, tuple[NodeShape, Offer | None]]
    pipelines: Sequence[Sequence[StageToBe]]
    resident: Mapping[str, tuple[HeldStage, ...]]
    """What nodes hold now."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """Placement's answer."""

    throughput_tokens_per_s: float
    load_bytes: Mapping[str, int]
    """By node."""


class Estimator(Protocol):
    """Who answers."""

    async def estimate(self, question: Estimating) -> Estimated: ...


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What applying a plan would change."""

    cluster: Difference
    launched: Mapping[str, Offer | None]
    """Nodes that are ordered, and what from; None where nobody offers one."""
    cost_before: float | None
    """Dollars an hour, as is the next; None where a price is not known."""
    cost_after: float | None
    now: Estimated | None
    after: Estimated | None
    estimates_lack: str
    """Why there are no estimates; empty where there are."""


async def plan_diff(
    plan_json: str, *, cluster: Cluster, market: Market, placement: Estimator, now_s: float
) -> PlanDiff:
    """Raises what the plan's application would."""
    view = cluster.view
    plan = operators_plan(plan_json, view.next_plan_number, cluster.goals, view.shapes())
    cluster.check_plan(plan)
    found = cluster.view.difference(plan, now_s)
    launched = {
        name: market.named(action.offer_id, action.shape, now_s)
        for name, action in found.launched.items()
    }
    now, after, lack = None, None, ""
    try:
        now = await _estimated(cluster, market, placement, _present(cluster), {})
        to_be = [(found.models[name], stages) for name, stages in found.pipelines.items()]
        after = await _estimated(cluster, market, placement, to_be, launched)
    except ShuntError as error:
        now, lack = None, error.message
    before = market.cost_per_hour()
    cost_after = _cost_after(before, market, found, launched)
    return PlanDiff(found, launched, before, cost_after, now, after, lack)


Modelled = Sequence[tuple[ModelRef, Sequence[StageToBe]]]
"""Pipelines, each with its model."""


def _present(cluster: Cluster) -> Modelled:
    return [
        (model, [StageToBe(s.node_id, s.layers, s.tp_degree, s.shape, ()) for s in pipeline.stages])
        for model, pipeline in cluster.view.running()
    ]


async def _estimated(
    cluster: Cluster,
    market: Market,
    placement: Estimator,
    pipelines: Modelled,
    launched: Mapping[str, Offer | None],
) -> Estimated:
    """Of all models together."""
    rate, load_bytes = 0.0, dict[str, int]()
    for goal in cluster.goals.deployed:
        own = [stages for model, stages in pipelines if model == goal.model]
        if own or len(cluster.goals.deployed) == 1:
            asked = _question(cluster, market, goal, own, launched)
            answer = await placement.estimate(asked)
            rate += answer.throughput_tokens_per_s
            load_bytes |= answer.load_bytes
    return Estimated(rate, load_bytes)


def _question(
    cluster: Cluster,
    market: Market,
    goal: Goal,
    pipelines: Iterable[Sequence[StageToBe]],
    launched: Mapping[str, Offer | None],
) -> Estimating:
    nodes: dict[str, tuple[NodeShape, Offer | None]] = {}
    named: list[list[StageToBe]] = []
    for stages in pipelines:
        named.append([])
        for stage in stages:
            name = stage.node_id or f"vacant-{len(nodes)}"
            bought = launched.get(name)
            offer = bought or market.offer(market.offer_id_of(name))
            nodes[name] = (stage.shape if bought is None else bought.shape, offer)
            named[-1].append(replace(stage, node_id=name))
    held = {node.node_id: node.stages for node in cluster.view.staying() if node.node_id in nodes}
    return Estimating(goal, nodes, named, held)


def _cost_after(
    before: float | None,
    market: Market,
    found: Difference,
    launched: Mapping[str, Offer | None],
) -> float | None:
    if before is None:
        return None
    cost = before
    for node_id in found.freed:
        offer = market.offer(market.offer_id_of(node_id))
        if offer is None or offer.price_per_hour is None:
            return None
        cost -= offer.price_per_hour
    for offer in launched.values():
        if offer is None or offer.price_per_hour is None:
            return None
        cost += offer.price_per_hour
    return max(0.0, cost)
