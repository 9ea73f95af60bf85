"""A simulated placement service: the production judgement of a next plan over a small search."""

from __future__ import annotations

from functools import cache

from services.common.errors import FailedPrecondition, ShuntError, Unavailable
from services.common.generation import LayerRange
from services.common.nodes import NodeShape
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.question import NextPlan, Replanning
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import HardwareCatalogue, load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    Workload,
    described,
)
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.estimate.model import built_in
from services.placement.replan.change import Change
from services.placement.replan.moves import ResidentStage
from services.placement.replan.next_plan import replan
from services.placement.search.budget import Unlimited
from services.placement.search.problem import Objective, ObjectiveKind, Problem
from simulator.environment.addresses import PLACEMENT
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply
from simulator.processes import search
from simulator.processes.stages import LAYER_COUNT

LAYERS = (LayerRange(0, 18), LayerRange(18, 30))
"""Of the pipelines of a first plan."""
SEARCH_S = (0.02, 0.3)
"""Meanwhile things happen."""
SHAPED_AS = "smollm2-135m"
"""A model of as many layers, by which plans are judged."""


@cache
def _catalogue() -> HardwareCatalogue:
    return load_catalogue()


@cache
def _costs() -> Costs:
    model = built_in(SHAPED_AS)
    if model.layers != LAYER_COUNT:
        raise AssertionError
    return Costs(model, Workload(), load_calibration("measured"), _catalogue())


class SimulatedPlacement(Process):
    """Answers by values what the service answers by messages."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(PLACEMENT, environment.network)
        self.environment = environment

    def plan(self, reply: Reply, ask: AskPlan) -> None:
        """A first plan: pipelines of two nodes each, in the order in which they come."""
        if self.environment.random.random() < self.environment.settings.plan_fails:
            reply(Unavailable("no answer"))
            return
        size = len(LAYERS)
        planned: list[PlannedPipeline] = []
        for first in range(0, len(ask.nodes) - size + 1, size):
            nodes = ask.nodes[first : first + size]
            stages = tuple(
                PlannedStage(layers, 1, node.shape, node.node_id)
                for node, layers in zip(nodes, LAYERS, strict=True)
            )
            name = f"pipeline-{len(planned) + 1}"
            planned.append(PlannedPipeline(name, stages, 100.0 / (first + size)))
        if len(planned) < len(ask.goals):
            reply(FailedPrecondition("too few nodes"))
            return
        deployments = (
            Deployment(goal.model, THROUGHPUT, tuple(planned[turn :: len(ask.goals)]))
            for turn, goal in enumerate(ask.goals)
        )
        reply(Plan(ask.number, tuple(deployments)))

    def replan(self, reply: Reply, question: Replanning) -> None:
        """The next plan, after a while."""
        random, (least_s, most_s) = self.environment.random, SEARCH_S
        if random.random() < self.environment.settings.plan_fails:
            reply(Unavailable("no answer"))
            return
        self.after(random.uniform(least_s, most_s), self._replanned, reply, question)

    def _replanned(self, reply: Reply, question: Replanning) -> None:
        try:
            reply(next_plan(question))
        except ShuntError as error:
            reply(error)


def next_plan(question: Replanning) -> NextPlan:
    """As the service answers. Raises ShuntError where there is no plan."""
    wishes, goal, told = question.wishes, question.goal, question.workload
    there = {
        node.node_id: (_node(node.node_id, node.shape, node.offer), node.shape, node.node_id, "")
        for node in question.nodes
    }
    open_ = {
        one.name: (
            _node(one.name, one.offer.shape, one.offer),
            one.offer.shape,
            "",
            one.offer.offer_id,
        )
        for one in question.candidates
    }
    known = there | open_
    nodes = tuple(node for node, *_ in known.values())
    if not nodes:
        raise FailedPrecondition("no nodes", field="nodes")
    objective = Objective(ObjectiveKind(goal.aim.objective), wishes.budget_per_hour)
    costs = _costs().at_rate(told.arrival_rate_rps) if told is not None else _costs()
    running = tuple(_placed(pipeline, nodes) for pipeline in question.running)
    starting = {node.node_id: node.offer for node in question.nodes if node.starts}
    change = Change(
        running,
        {
            node.node_id: tuple(
                ResidentStage(held.layers.start, held.layers.end, 1) for held in node.held
            )
            for node in question.nodes
            if node.held
        },
        horizon_s=wishes.horizon_s,
        notice_s=question.notice_s,
        improve=question.improve,
        ready_in_s={
            **{name: offer.launch_s for name, offer in starting.items() if offer is not None},
            **{one.name: one.offer.launch_s for one in question.candidates},
        },
        nodes_min=wishes.nodes_min,
        nodes_max=wishes.nodes_max,
    )
    found = replan(Problem(costs, nodes, objective), change, search.plan, Unlimited())
    if not found.change and len(found.pipelines) == question.planned:
        return NextPlan(None, 0.0, found.reasons)  # else what is left is the plan
    pipelines = []
    for place, pipeline in enumerate(found.pipelines, 1):
        stages = []
        for stage in pipeline.stages:
            _, shape, node_id, offer_id = known[stage.node.node_id]
            layers = LayerRange(stage.start, stage.end)
            stages.append(PlannedStage(layers, stage.tp, shape, node_id, offer_id))
        weight = estimate_pipeline(costs, pipeline).throughput_tokens_per_s
        pipelines.append(PlannedPipeline(f"pipeline-{place}", tuple(stages), weight))
    deployment = Deployment(goal.model, goal.aim.objective, tuple(pipelines))
    return NextPlan(Plan(question.number, (deployment,)), found.gain, found.reasons)


def _node(name: str, shape: NodeShape, offer: Offer | None) -> CandidateNode:
    """As placement is told of it; what nobody names a price for is free."""
    kind = described(
        _catalogue(),
        device_type=shape.device_type,
        device_count=1,
        memory_bytes=shape.memory_bytes,
        relative_speed=shape.relative_speed,
        price_per_hour=(offer.price_per_hour or 0.0) if offer is not None else 0.0,
        pool=offer.pool if offer is not None else "",
        spot=offer.spot if offer is not None else False,
        interruptions_per_hour=offer.interruptions_per_hour if offer is not None else 0.0,
    )
    return CandidateNode(name, kind)


def _placed(pipeline: PlannedPipeline, nodes: tuple[CandidateNode, ...]) -> PlacedPipeline:
    """What runs may name nodes that are gone: any class stands in for theirs."""
    known = {node.node_id: node for node in nodes}
    return PlacedPipeline(
        tuple(
            PlacedStage(
                known.get(stage.node_id) or CandidateNode(stage.node_id, nodes[0].kind),
                stage.layers.start,
                stage.layers.end,
                stage.tp_degree,
            )
            for stage in pipeline.stages
        )
    )
