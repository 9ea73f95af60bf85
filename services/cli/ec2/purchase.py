"""What is to be bought for a model, and what comes of it, by placement's own planner: the first
nodes of a mesh, from what EC2 offers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from services.cli.mesh_directory import MeshError
from services.common.errors import ShuntError
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.table import Table
from services.placement.command.report import plan_data
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import HardwareCatalogue, load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    NodeClass,
    PlacedPipeline,
    Workload,
    described,
)
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_plan
from services.placement.estimate.model import ModelShape
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Objective, Problem
from services.placement.search.registry import DEFAULT_PLANNER, planner


@dataclass(frozen=True, slots=True)
class Wish:
    """What the nodes are for, and what they may cost."""

    objective: Objective
    workload: Workload
    max_instances: int
    max_dollars_per_hour: float
    """Of all of them, each at its price on demand."""
    counts: Mapping[str, int] | None = None
    """By type, where somebody says what to begin with; else the planner chooses."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """Nodes to begin with, and the plan of them."""

    bought: tuple[tuple[Offer, int], ...]
    """How many of each offer, the dearest first."""
    plan: Mapping[str, Any]
    """As `shunt plan solve --json` has one; without pipelines where these nodes hold none."""
    on_demand_per_hour: float
    """What they cost at most: spot prices do not pass that."""

    @property
    def count(self) -> int:
        return sum(count for _, count in self.bought)

    @property
    def cost_per_hour(self) -> float:
        """At the prices in force."""
        return sum((offer.price_per_hour or 0.0) * count for offer, count in self.bought)

    @property
    def first_nodes(self) -> str:
        """As the controller takes it: TYPE:COUNT,…"""
        counts: Counter[str] = Counter()
        for offer, count in self.bought:
            counts[offer.instance_type] += count
        return ",".join(f"{name}:{count}" for name, count in sorted(counts.items()))

    @property
    def instances(self) -> tuple[tuple[str, bool, int], ...]:
        """Types, whether on spot, and how many."""
        return tuple((offer.instance_type, offer.spot, count) for offer, count in self.bought)


def purchase(
    model: ModelShape, table: Table, offers: Sequence[Offer], wish: Wish, budget: SearchBudget
) -> Purchase:
    """Raises MeshError where nothing holds the model, or what holds it is over a limit, naming
    the option."""
    catalogue = load_catalogue(None)
    costs = Costs(model, wish.workload, load_calibration("measured"), catalogue)
    by_node = {
        f"{offer.offer_id}#{number}": offer
        for offer, count in _candidates(offers, wish)
        for number in range(count)
    }
    nodes = tuple(CandidateNode(n, _kind(catalogue, offer)) for n, offer in by_node.items())
    objective = wish.objective
    if wish.counts is not None:  # whether they cost too much is told by their price, not by a plan
        objective = replace(objective, budget_per_hour=0.0)
    problem = Problem(costs, nodes, objective)
    try:
        pipelines = _planned(problem, wish, budget)
    except ShuntError as error:
        raise MeshError(f"there is no plan for {model.name}: {error.message}") from None
    used = by_node if wish.counts is not None else _used(pipelines)
    counts = Counter(by_node[node_id] for node_id in used)
    bought = sorted(
        counts.items(), key=lambda one: (-(one[0].price_per_hour or 0), one[0].offer_id)
    )
    dearest = sum(table.dollars_per_hour(o.instance_type) * count for o, count in bought)
    total, each = estimate_plan(costs, pipelines)
    plan = plan_data(DEFAULT_PLANNER, pipelines, total, each, 0.0, None)
    for stage in (stage for pipeline in plan["pipelines"] for stage in pipeline["stages"]):
        stage["instance_type"] = by_node[stage["node"]].instance_type  # placement knows its device
    found = Purchase(tuple(bought), plan, dearest)
    _check(found, wish)
    return found


def _check(found: Purchase, wish: Wish) -> None:
    if found.on_demand_per_hour > wish.max_dollars_per_hour:
        raise MeshError(
            f"{found.first_nodes} costs up to {found.on_demand_per_hour:.4g} an hour on demand, and"
            f" --max-dollars-per-hour is {wish.max_dollars_per_hour:g}: the controller would not"
            " buy it"
        )
    budget = wish.objective.budget_per_hour
    if budget and found.cost_per_hour > budget:
        raise MeshError(
            f"{found.first_nodes} costs {found.cost_per_hour:.4g} an hour now, and"
            f" --budget-per-hour is {budget:g}"
        )


def _planned(problem: Problem, wish: Wish, budget: SearchBudget) -> tuple[PlacedPipeline, ...]:
    search = planner(DEFAULT_PLANNER)
    found = search(problem, budget).pipelines
    if wish.counts is not None or len(_used(found)) <= wish.max_instances:
        return found
    change = Change((), {}, improve=True, nodes_max=wish.max_instances)
    return replan(problem, change, search, budget).pipelines


def _used(pipelines: Iterable[PlacedPipeline]) -> list[str]:
    return [node_id for pipeline in pipelines for node_id in pipeline.node_ids]


def _candidates(offers: Sequence[Offer], wish: Wish) -> list[tuple[Offer, int]]:
    """Offers and how many of each may be taken: of each type the cheapest ones, as the controller
    buys them, as many as are wanted or allowed."""
    taken: list[tuple[Offer, int]] = []
    for name in wish.counts or sorted({offer.instance_type for offer in offers}):
        wanted = left = (wish.counts or {}).get(name, _most(offers, name, wish))
        own = [offer for offer in offers if offer.instance_type == name]
        for offer in sorted(own, key=lambda o: (o.price_per_hour or inf, o.offer_id)):
            taken.append((offer, min(left, offer.count)))
            left -= taken[-1][1]
        if left and wish.counts:
            raise MeshError(
                f"--nodes: {wanted} of {name} are wanted, and {wanted - left} are to be had in all"
                " zones and markets"
            )
    return [one for one in taken if one[1]]


def _most(offers: Sequence[Offer], instance_type: str, wish: Wish) -> int:
    """Of one type, by what may be spent on demand and in all."""
    prices = [o.price_per_hour for o in offers if o.instance_type == instance_type]
    known = [price for price in prices if price]
    by_budget = wish.objective.budget_per_hour or wish.max_dollars_per_hour
    return min(wish.max_instances, int(by_budget / min(known))) if known else 0


def _kind(catalogue: HardwareCatalogue, offer: Offer) -> NodeClass:
    """As the controller tells placement of it."""
    shape = offer.shape
    return described(
        catalogue,
        device_type=shape.device_type,
        device_count=shape.device_count,
        memory_bytes=shape.memory_bytes // shape.device_count,
        relative_speed=shape.relative_speed,
        price_per_hour=offer.price_per_hour or 0.0,
        pool=offer.pool,
        spot=offer.spot,
        interruptions_per_hour=offer.interruptions_per_hour,
        backend=shape.backend,
    )
