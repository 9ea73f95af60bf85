"""A simulated placement service: the production judgement of a next plan over a small search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, repeat
from typing import TypeVar

from services.common.errors import FailedPrecondition, ShuntError, Unavailable
from services.common.generation import LayerRange
from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.given_phases import (
    handing_on,
    in_phases,
    is_split,
    weighed_by_flows,
)
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.question import Dividing, NextPlan, Question, Replanning
from services.controller.core.cluster.replanning import ReplanSettings
from services.controller.core.cluster.why import Why
from services.controller.core.cluster.workload import Workload as ModelWorkload
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
from services.placement.replan.moves import LOAD_BYTES_PER_S, ResidentStage
from services.placement.replan.next_plan import replan
from services.placement.replan.redivision import redivide
from services.placement.search.budget import Unlimited
from services.placement.search.planners import spotserve
from services.placement.search.problem import Objective, ObjectiveKind, Planner, Problem
from services.placement.search.shares import Limits, Share
from services.placement.search.transport import even_flows, sides_of
from simulator.environment.addresses import PLACEMENT
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply
from simulator.processes import search
from simulator.processes.stages import LAYER_COUNT

SEARCH_S = (0.02, 0.3)
"""Meanwhile things happen."""
Asked = TypeVar("Asked", Replanning, Dividing)
Lengths = tuple[int, int]
"""Of prompts and answers, in tokens."""
SHAPED_AS = "smollm2-135m"
"""A model of as many layers, by which plans are judged."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What plans are made and judged by."""

    costs: Costs
    planner: Planner
    node: Callable[[str, NodeShape, Offer | None], CandidateNode]
    """As the planner sees it: by name, shape and what it was, or would be, launched from."""
    load_bytes_per_s: float = LOAD_BYTES_PER_S
    counts_lengths: bool = False
    """What requests look like is as it was measured; else what the costs say."""
    _known: dict[Lengths, Costs] = field(default_factory=dict)

    def costs_at(self, told: ModelWorkload | None) -> Costs:
        """For such requests. Lengths that differ by no more than plans are made for are the same:
        what was estimated for them holds."""
        costs = self.costs
        if told is None:
            return costs
        if self.counts_lengths and told.input_tokens and told.output_tokens:
            costs = self._like(told)
        return costs.at_rate(told.arrival_rate_rps)

    def _like(self, told: ModelWorkload) -> Costs:
        base = self.costs.workload
        self._known.setdefault((base.input_tokens, base.output_tokens), self.costs)
        for lengths, costs in self._known.items():
            known = ModelWorkload(told.arrival_rate_rps, *lengths)
            if told.within(known, ReplanSettings().envelope, arrivals=False):
                return costs
        lengths = round(told.input_tokens), round(told.output_tokens)
        costs = self.costs
        made = Costs(costs.model, Workload(*lengths), costs.calibration, costs.catalogue)
        return self._known.setdefault(lengths, made)


@cache
def small_judge() -> Judge:
    """For clusters of a few nodes of the local mesh; one for all."""
    model, catalogue = built_in(SHAPED_AS), load_catalogue()
    if model.layers != LAYER_COUNT:
        raise AssertionError
    costs = Costs(model, Workload(), load_calibration("measured"), catalogue)
    return Judge(costs, search.plan, partial(_node, catalogue))


class SimulatedPlacement(Process):
    """Answers by values what the service answers by messages."""

    def __init__(self, environment: Environment, judge: Judge | None = None) -> None:
        """For clusters of a few nodes where nobody judges."""
        super().__init__(PLACEMENT, environment.network)
        self.environment = environment
        self.judge = judge if judge is not None else small_judge()

    def plan(self, reply: Reply, ask: AskPlan) -> None:
        """A first plan: pipelines of as many nodes as the settings name layers for, in the order in
        which they come."""
        if self.environment.random.random() < self.environment.settings.plan_fails:
            reply(Unavailable("no answer"))
            return
        first_layers = self.environment.settings.first_layers
        size = len(first_layers)
        planned: list[PlannedPipeline] = []
        for first in range(0, len(ask.nodes) - size + 1, size):
            nodes = ask.nodes[first : first + size]
            stages = tuple(
                PlannedStage(layers, 1, node.shape, node.node_id)
                for node, layers in zip(nodes, first_layers, strict=True)
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
        plan = in_phases(Plan(ask.number, tuple(deployments)), self._phases)
        reply(replace(plan, deployments=tuple(map(self._handing_on, plan.deployments))))

    def replan(self, reply: Reply, question: Replanning) -> None:
        """The next plan, after a while."""
        uniform = self.environment.settings.cluster.strategy.uniform

        def answer(question: Replanning) -> NextPlan:
            found = next_plan(self.judge, question, uniform=uniform)
            if found.plan is None or question.phases_only:
                return found
            return replace(found, plan=in_phases(found.plan, self._phases, question.running))

        self._answers(reply, answer, question)

    def _handing_on(self, deployment: Deployment) -> Deployment:
        """At any rates, where it is split."""
        if not is_split(deployment):
            return deployment
        random = self.environment.random
        places = {
            phase: [n for n, one in enumerate(deployment.pipelines) if one.phase is phase]
            for phase in (PipelinePhase.PREFILL, PipelinePhase.DECODE)
        }
        return handing_on(
            deployment,
            [
                (prefill, decode, random.choice((1.0, 4.0)))
                for prefill in places[PipelinePhase.PREFILL]
                for decode in places[PipelinePhase.DECODE]
            ],
        )

    @property
    def _phases(self) -> tuple[PipelinePhase, ...]:
        return self.environment.settings.cluster.phases

    def divide(self, reply: Reply, question: Dividing) -> None:
        """The next plan of all models, after a while."""

        def answer(question: Dividing) -> NextPlan:
            found = next_division(self.judge, question)
            if found.plan is None:
                return found
            running = [pipeline for _, pipeline in question.running]
            return replace(found, plan=in_phases(found.plan, self._phases, running))

        self._answers(reply, answer, question)

    def _answers(self, reply: Reply, answer: Callable[[Asked], NextPlan], question: Asked) -> None:
        random, (least_s, most_s) = self.environment.random, SEARCH_S
        if random.random() < self.environment.settings.plan_fails:
            reply(Unavailable("no answer"))
            return
        self.after(random.uniform(least_s, most_s), self._answered, reply, answer, question)

    def _answered(self, reply: Reply, answer: Callable[[Asked], NextPlan], question: Asked) -> None:
        try:
            reply(answer(question))
        except ShuntError as error:
            reply(error)


@dataclass(frozen=True, slots=True)
class Known:
    """A node that an answer may name."""

    node: CandidateNode
    shape: NodeShape
    node_id: str = ""
    offer_id: str = ""


def next_plan(judge: Judge, question: Replanning, *, uniform: bool = False) -> NextPlan:
    """As the service answers, by the planner of uniform degrees where that is asked. Raises
    ShuntError where there is no plan."""
    wishes, goal, known = question.wishes, question.goal, _known(judge, question)
    nodes = _nodes(known)
    objective = objective_of(goal.aim, wishes.budget_per_hour)
    costs = judge.costs_at(question.workload)
    phases = [one.phase if question.phases_only else PipelinePhase.BOTH for one in question.running]
    change = replace(
        _change(judge, question, goal, question.running, nodes, phases),
        notice_s=question.notice_s,
        improve=question.improve,
        nodes_min=wishes.nodes_min,
        nodes_max=wishes.nodes_max,
        anew=uniform,
        phases_only=question.phases_only,
    )
    planner = spotserve.plan if uniform else judge.planner
    found = replan(Problem(costs, nodes, objective), change, planner, Unlimited())
    whole = question.phases_only or len(found.pipelines) == question.planned
    if not found.change and whole:
        return NextPlan(None, 0.0, found.reasons)  # else what is left is the plan
    made = deployment(goal, found.pipelines, costs, known)
    if question.phases_only:
        made = in_proportion(made, found.pipelines, costs)
    plan = Plan(question.number, (made,), Why(found.reasons, late=found.late))
    return NextPlan(plan, found.gain, found.reasons)


def next_division(judge: Judge, question: Dividing) -> NextPlan:
    """As the service answers. Raises ShuntError where there is no plan."""
    wishes, known = question.wishes, _known(judge, question)
    nodes = _nodes(known)
    shares, changes = [], []
    for goal, told in zip(question.goals, question.workloads, strict=True):
        objective = objective_of(goal.aim)
        name = goal.model.model_id
        shares.append(Share(name, judge.costs_at(told), judge.planner, objective, goal.aim.weight))
        running = tuple(pipeline for model, pipeline in question.running if model == goal.model)
        changes.append(_change(judge, question, goal, running, nodes))
    limits = Limits(wishes.budget_per_hour, wishes.nodes_min, wishes.nodes_max)
    found = redivide(nodes, shares, changes, limits, Unlimited())
    if not found.change:
        return NextPlan(None, 0.0, found.reasons)
    deployments, late, made = list[Deployment](), list[str](), 0
    for goal, share, plan in zip(question.goals, shares, found.plans, strict=True):
        if plan.pipelines:
            deployments.append(deployment(goal, plan.pipelines, share.costs, known, made))
            made += len(plan.pipelines)
            if plan.late:
                late.append(f"{share.name}: {plan.late}")
    why = Why(found.reasons, late="; ".join(late))
    return NextPlan(Plan(question.number, tuple(deployments), why), found.gain, found.reasons)


def objective_of(aim: Aim, budget_per_hour: float = 0.0) -> Objective:
    """As placement's service is asked for it."""
    kind = ObjectiveKind(aim.objective)
    return Objective(kind, budget_per_hour, aim.ttft_target_s, aim.tpot_target_s)


def _known(judge: Judge, question: Question) -> dict[str, Known]:
    """Raises FailedPrecondition where there is none."""
    there = {
        one.node_id: Known(judge.node(one.node_id, one.shape, one.offer), one.shape, one.node_id)
        for one in question.nodes
    }
    open_ = {
        one.name: Known(
            judge.node(one.name, one.offer.shape, one.offer),
            one.offer.shape,
            offer_id=one.offer.offer_id,
        )
        for one in question.candidates
    }
    if not there and not open_:
        raise FailedPrecondition("no nodes", field="nodes")
    return there | open_


def _nodes(known: Mapping[str, Known]) -> tuple[CandidateNode, ...]:
    return tuple(one.node for one in known.values())


def _change(
    judge: Judge,
    question: Question,
    goal: Goal,
    running: Sequence[PlannedPipeline],
    nodes: tuple[CandidateNode, ...],
    phases: Sequence[PipelinePhase] = (),
) -> Change:
    given = chain(phases, repeat(PipelinePhase.BOTH))
    starting = {node.node_id: node.offer for node in question.nodes if node.starts}
    return Change(
        tuple(
            _placed(pipeline, nodes, phase) for pipeline, phase in zip(running, given, strict=False)
        ),
        {
            node.node_id: tuple(
                ResidentStage(held.layers.start, held.layers.end, held.tp_degree)
                for held in node.held
                if held.model == goal.model
            )
            for node in question.nodes
            if any(held.model == goal.model for held in node.held)
        },
        horizon_s=question.wishes.horizon_s,
        load_bytes_per_s=judge.load_bytes_per_s,
        ready_in_s={
            **{name: offer.launch_s for name, offer in starting.items() if offer is not None},
            **{one.name: one.offer.launch_s for one in question.candidates},
        },
    )


def deployment(
    goal: Goal,
    placed: Sequence[PlacedPipeline],
    costs: Costs,
    known: Mapping[str, Known],
    made: int = 0,
) -> Deployment:
    """Pipelines named on behind those that are `made` already."""
    pipelines = []
    for place, pipeline in enumerate(placed, made + 1):
        stages = []
        for stage in pipeline.stages:
            one, layers = known[stage.node.node_id], LayerRange(stage.start, stage.end)
            stages.append(PlannedStage(layers, stage.tp, one.shape, one.node_id, one.offer_id))
        weight = estimate_pipeline(costs, pipeline).throughput_tokens_per_s
        name = f"pipeline-{place}"
        pipelines.append(PlannedPipeline(name, tuple(stages), weight, pipeline.phase))
    return Deployment(goal.model, goal.aim.objective, tuple(pipelines))


def in_proportion(made: Deployment, placed: Sequence[PlacedPipeline], costs: Costs) -> Deployment:
    """With the rates at which its pipelines, here `placed`, hand on to each other."""
    if not is_split(made):
        return made
    rates = [estimate_pipeline(costs, one).throughput_rps for one in placed]
    sides = sides_of(costs, placed, rates)
    even = even_flows(sides)
    flows = [
        (prefill, decode, float(even[i, j]))
        for i, prefill in enumerate(sides.prefill)
        for j, decode in enumerate(sides.decode)
        if even[i, j] > 0
    ]
    return weighed_by_flows(handing_on(made, flows), costs.workload.output_tokens)


def _node(
    catalogue: HardwareCatalogue, name: str, shape: NodeShape, offer: Offer | None
) -> CandidateNode:
    """As placement is told of it; what nobody names a price for is free."""
    kind = described(
        catalogue,
        device_type=shape.device_type,
        device_count=1,
        memory_bytes=shape.memory_bytes,
        relative_speed=shape.relative_speed,
        price_per_hour=(offer.price_per_hour or 0.0) if offer is not None else 0.0,
        pool=offer.pool if offer is not None else "",
        spot=offer.spot if offer is not None else False,
        interruptions_per_hour=offer.interruptions_per_hour if offer is not None else 0.0,
        backend=shape.backend,
    )
    return CandidateNode(name, kind)


def _placed(
    pipeline: PlannedPipeline, nodes: tuple[CandidateNode, ...], phase: PipelinePhase
) -> PlacedPipeline:
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
        ),
        phase,
    )
