"""Asks placement which nodes form which pipelines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc
from shuntserve.placement.v1 import placement_pb2, placement_pb2_grpc

from services.common import channels, wire
from services.common.errors import DataLoss, InvalidArgument
from services.common.nodes import NodeShape, StageSpec
from services.common.phases import PipelinePhase
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.given_phases import (
    handing_on,
    in_phases,
    is_split,
    weighed_by_flows,
)
from services.controller.core.cluster.given_stages import plan_of_stages
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.plan import Deployment, Plan, PlannedPipeline, PlannedStage
from services.controller.core.cluster.question import Dividing, NextPlan, Question, Replanning
from services.controller.core.cluster.replanning import Cause
from services.controller.core.cluster.why import Alternative, Why
from services.controller.core.cluster.workload import Workload
from services.controller.diffs import Estimated, Estimating
from services.controller.what_ifs import Answers, LikeNodes
from services.controller.wire_placement import (
    flows_question,
    model_to,
    node_to,
    nodes_to,
    objective_to,
    phase_from,
    pipeline_to,
    resident_to,
    workload_to,
)

_log = logging.getLogger(__name__)
_RUNNERS_UP = 4
"""Plans that are told of beside the one that is taken."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What a name in a plan stands for: a node, or one more of an offer."""

    shape: NodeShape
    node_id: str = ""
    offer_id: str = ""


def _stage(stage: placement_pb2.Stage, named: _Named) -> PlannedStage:
    return PlannedStage(
        wire.layers_from(stage.layers),
        stage.tp_degree,
        named.shape,
        named.node_id,
        named.offer_id,
    )


Answer = placement_pb2.PlanResponse | placement_pb2.ReplanResponse


def _alternatives(
    answer: Answer | placement_pb2.ReplanDeploymentsResponse,
) -> tuple[Alternative, ...]:
    return tuple(Alternative(one.plan, one.lacks) for one in answer.alternatives)


def _late(pairs: Sequence[tuple[Goal, Answer]]) -> str:
    """Which targets are missed, of several models by model."""
    late = [(goal.model.model_id, answer.late) for goal, answer in pairs if answer.late]
    return "; ".join(told if len(pairs) == 1 else f"{name}: {told}" for name, told in late)


def _no_offer(node_id: str) -> Offer | None:
    """Where nobody knows what nodes were launched from."""
    return None


class Planning:
    """The placement service, seen from here."""

    def __init__(
        self,
        address: str,
        *,
        planner: str,
        anew: bool = False,
        timeout_s: float,
        tls: TlsSettings | None = None,
        offer_of: Callable[[str], Offer | None] = _no_offer,
        stages: Sequence[StageSpec] = (),
        phases: Sequence[PipelinePhase] = (),
    ) -> None:
        """`planner` is a name of the placement API, such as proportional, for whoever wants
        throughput alone; `anew`: it makes every plan whole, the next one too. `offer_of` says what
        a node was launched from. With `stages`, every pipeline of one model has these, and
        placement is not asked for its plan. Pipelines have these `phases`, in their order."""
        self._channel = channels.open_channel(address, Role.PLACEMENT, tls=tls)
        self._stub = placement_pb2_grpc.PlacementServiceStub(self._channel)
        self._planner = placement_pb2.Planner.Value(f"PLANNER_{planner.upper()}")
        self._anew = anew
        self._timeout_s = timeout_s
        self._offer_of = offer_of
        self._stages = tuple(stages)
        self._phases = tuple(phases)

    async def plan(self, question: AskPlan) -> Plan:
        """Raises a ShuntError when there is no answer, DataLoss for a plan that cannot be."""
        if self._stages and len(question.goals) == 1:
            given = in_phases(plan_of_stages(question, self._stages), self._phases)
            return await self._in_proportion(given, question.goals)
        known = {n.node_id: _Named(n.shape, node_id=n.node_id) for n in question.nodes}
        try:
            if len(question.goals) == 1:
                answers = [await self._plan_one(question, question.goals[0])]
            else:
                answers = await self._plan_all(question)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if len(answers) != len(question.goals):
            raise DataLoss("a deployment has no plan", field="plans")
        pairs = list(zip(question.goals, answers, strict=True))
        why = Why(
            tuple(reason for answer in answers for reason in answer.reasons),
            tuple(one for answer in answers for one in _alternatives(answer)),
            ((Cause.DEPLOYMENTS if question.running else Cause.FIRST).value,),
            late=_late(pairs),
        )
        plan = replace(_plan_of(question.number, pairs, known), why=why)
        return await self._in_proportion(in_phases(plan, self._phases), question.goals)

    async def _plan_one(self, question: AskPlan, goal: Goal) -> placement_pb2.PlanResponse:
        request = placement_pb2.PlanRequest(
            model=model_to(goal),
            nodes=self._nodes(question),
            planner=self._planner,
            pipeline_count=question.pipelines,
            runners_up=_RUNNERS_UP,
        )
        return await self._stub.Plan(request, timeout=self._timeout_s)

    async def _plan_all(self, question: AskPlan) -> list[placement_pb2.PlanResponse]:
        """Each model has a part of the nodes."""
        request = placement_pb2.PlanDeploymentsRequest(
            nodes=self._nodes(question),
            deployments=[
                placement_pb2.DeploymentSpec(
                    model=model_to(goal),
                    objective=objective_to(goal.aim, priced=self._priced(question)),
                    planner=self._planner_for(goal.aim),
                    pipeline_count=question.pipelines,
                    weight=goal.aim.weight,
                    running=[
                        pipeline_to(p.stages)
                        for model, p in question.running
                        if model == goal.model
                    ],
                )
                for goal in question.goals
            ],
        )
        return list((await self._stub.PlanDeployments(request, timeout=self._timeout_s)).plans)

    def _nodes(self, question: AskPlan) -> list[placement_pb2.Node]:
        return [node_to(n.node_id, n.shape, self._offer_of(n.node_id)) for n in question.nodes]

    def _priced(self, question: AskPlan) -> bool:
        offers = (self._offer_of(node.node_id) for node in question.nodes)
        return any(offer is not None and offer.price_per_hour for offer in offers)

    def _planner_for(self, aim: Aim) -> placement_pb2.Planner.ValueType:
        plain = self._anew or aim.is_plain
        return self._planner if plain else placement_pb2.PLANNER_SHUNTSERVE

    @property
    def _makes_next(self) -> placement_pb2.Planner.ValueType:
        return self._planner if self._anew else placement_pb2.PLANNER_UNSPECIFIED

    async def replan(self, question: Replanning) -> NextPlan:
        """The next plan, or none where the whole plan stays; by placement's own planner, which
        knows every objective, but where another one makes every plan. Raises as `plan` does."""
        wishes, goal = question.wishes, question.goal
        try:
            reply = await self._stub.Replan(self._asked(question), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        whole = question.phases_only or len(reply.pipelines) == question.planned
        if not reply.change and whole:
            return NextPlan(None, 0.0, tuple(reply.reasons))  # else what is left is the plan
        pairs = [(goal, reply)]
        plan = _plan_of(question.number, pairs, _known(question))
        why = Why(
            tuple(reply.reasons),
            _alternatives(reply),
            gain=reply.gain,
            horizon_s=wishes.horizon_s,
            late=_late(pairs),
        )
        plan = replace(plan, why=why)
        if not question.phases_only:
            plan = in_phases(plan, self._phases, question.running)
        plan = await self._in_proportion(plan, [goal], [question.workload])
        return NextPlan(plan, reply.gain, why.reasons)

    async def divide(self, question: Dividing) -> NextPlan:
        """The next plan of all models that can be served together, or none where what runs stays.
        Raises as `plan` does."""
        goals, request = question.goals, self._all_asked(question)
        try:
            reply = await self._stub.ReplanDeployments(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if not reply.change:
            return NextPlan(None, 0.0, tuple(reply.reasons))
        if len(reply.plans) != len(goals):
            raise DataLoss("a deployment has no plan", field="plans")
        pairs = [pair for pair in zip(goals, reply.plans, strict=True) if pair[1].pipelines]
        plan = _plan_of(question.number, pairs, _known(question))
        why = Why(
            tuple(reply.reasons),
            _alternatives(reply),
            gain=reply.gain,
            horizon_s=question.wishes.horizon_s,
            late=_late(pairs),
        )
        running = [pipeline for _, pipeline in question.running]
        plan = in_phases(replace(plan, why=why), self._phases, running)
        plan = await self._in_proportion(plan, goals, question.workloads)
        return NextPlan(plan, reply.gain, why.reasons)

    async def _in_proportion(
        self, plan: Plan, goals: Sequence[Goal], workloads: Sequence[Workload | None] = ()
    ) -> Plan:
        """With the rates at which split pipelines are to hand on to each other; without them where
        there is no answer: then the least loaded goes on."""
        by_model = {goal.model: goal for goal in goals}
        workload_of = dict(zip(by_model, workloads, strict=False))
        deployments = []
        for one in plan.deployments:
            if is_split(one):
                request = flows_question(by_model[one.model], one, workload_of.get(one.model))
                try:
                    reply = await self._stub.Estimate(request, timeout=self._timeout_s)
                except grpc.RpcError as error:
                    why = from_rpc_error(error).message
                    _log.warning("placement names no proportions", extra={"why": why})
                else:
                    flows = [(flow.prefill, flow.decode, flow.rate_rps) for flow in reply.flows]
                    one = handing_on(one, flows)
                    carried = [each for each in reply.pipeline_estimates if each.throughput_rps > 0]
                    if carried:  # else who reads prompts keeps the weight that its plan has
                        tokens = carried[0].throughput_tokens_per_s / carried[0].throughput_rps
                        one = weighed_by_flows(one, tokens)
            deployments.append(one)
        return replace(plan, deployments=tuple(deployments))

    def _all_asked(self, question: Dividing) -> placement_pb2.ReplanDeploymentsRequest:
        wishes = question.wishes
        return placement_pb2.ReplanDeploymentsRequest(
            nodes=nodes_to(question),
            deployments=[
                placement_pb2.DeploymentSpec(
                    model=model_to(goal),
                    workload=None if workload is None else workload_to(workload),
                    objective=objective_to(goal.aim, priced=True),
                    weight=goal.aim.weight,
                    running=[
                        pipeline_to(p.stages)
                        for model, p in question.running
                        if model == goal.model
                    ],
                    resident=resident_to(question, goal),
                    planner=self._makes_next,
                )
                for goal, workload in zip(question.goals, question.workloads, strict=True)
            ],
            budget_per_hour=wishes.budget_per_hour,
            nodes_min=wishes.nodes_min,
            nodes_max=wishes.nodes_max,
            horizon_s=wishes.horizon_s,
        )

    async def what_ifs(self, question: Replanning, groups: Sequence[LikeNodes]) -> Answers:
        """What placement would answer to a question that is another in one thing. Raises a
        ShuntError when there is no answer."""
        request = placement_pb2.WhatIfRequest(
            question=self._asked(question),
            groups=[
                placement_pb2.NodeGroup(
                    name=group.name,
                    node_ids=group.node_ids,
                    more=None
                    if group.offer is None
                    else node_to(
                        f"{group.name}#more", group.offer.shape, group.offer, on_offer=True
                    ),
                )
                for group in groups
            ],
        )
        try:
            reply = await self._stub.WhatIf(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return Answers(tuple((one.change, one.answer) for one in reply.answers), reply.complete)

    async def estimate(self, question: Estimating) -> Estimated:
        """What pipelines carry, and what their nodes have to load. Raises a ShuntError when there
        is no answer."""
        request = placement_pb2.EstimateRequest(
            model=model_to(question.goal),
            nodes=[node_to(name, shape, offer) for name, (shape, offer) in question.nodes.items()],
            pipelines=[pipeline_to(stages) for stages in question.pipelines],
            resident=[
                placement_pb2.ResidentLayers(
                    node_id=name, layers=wire.layers_to(held.layers), tp_degree=held.tp_degree
                )
                for name, stages in question.resident.items()
                for held in stages
                if held.model == question.goal.model
            ],
        )
        try:
            reply = await self._stub.Estimate(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        rate = sum(one.throughput_tokens_per_s for one in reply.pipeline_estimates)
        return Estimated(rate, {move.node_id: move.load_bytes for move in reply.node_moves})

    def _asked(self, question: Replanning) -> placement_pb2.ReplanRequest:
        wishes, goal = question.wishes, question.goal
        return placement_pb2.ReplanRequest(
            model=model_to(goal),
            nodes=nodes_to(question),
            running=[
                pipeline_to(one.stages, one.phase)
                if question.phases_only  # others get the phases that they are given
                else pipeline_to(one.stages)
                for one in question.running
            ],
            resident=resident_to(question, goal),
            workload=None if question.workload is None else workload_to(question.workload),
            objective=objective_to(goal.aim, priced=True, budget_per_hour=wishes.budget_per_hour),
            horizon_s=wishes.horizon_s,
            notice_s=question.notice_s,
            improve=question.improve,
            nodes_min=wishes.nodes_min,
            nodes_max=wishes.nodes_max,
            planner=self._makes_next,
            anew=self._anew,
            phases_only=question.phases_only,
        )

    async def close(self) -> None:
        await self._channel.close()


def _known(question: Question) -> dict[str, _Named]:
    """What a stage of the answer may name."""
    return {n.node_id: _Named(n.shape, node_id=n.node_id) for n in question.nodes} | {
        one.name: _Named(one.offer.shape, offer_id=one.offer.offer_id)
        for one in question.candidates
    }


def _plan_of(
    number: int, answers: Sequence[tuple[Goal, Answer]], known: Mapping[str, _Named]
) -> Plan:
    """`known` is what a stage may name. Raises DataLoss for a plan that cannot be."""
    stages = [s for _, a in answers for pipeline in a.pipelines for s in pipeline.stages]
    named = [stage.node_id for stage in stages]
    if not all(answer.pipelines for _, answer in answers) or not set(named) <= set(known):
        raise DataLoss("the plan is empty or names nodes that it should not", field="stages")
    if len(set(named)) != len(named):
        raise DataLoss("the plan cannot be: a node is in two stages", field="node_id")
    deployments, made = [], 0
    for goal, answer in answers:
        pipelines = _pipelines_of(goal, answer, known, made)
        made += len(pipelines)
        deployments.append(Deployment(goal.model, goal.aim.objective, pipelines))
    try:
        return Plan(number, tuple(deployments))
    except InvalidArgument as error:
        raise DataLoss(f"the plan cannot be: {error.message}", field=error.field) from None


def _pipelines_of(
    goal: Goal, answer: Answer, known: Mapping[str, _Named], made: int
) -> tuple[PlannedPipeline, ...]:
    """Named on behind those that are `made` already."""
    if len(answer.pipelines) != len(answer.pipeline_estimates):
        raise DataLoss("a pipeline of the plan has no estimate", field="pipeline_estimates")
    pipelines = tuple(
        PlannedPipeline(
            f"pipeline-{place}",
            tuple(_stage(stage, known[stage.node_id]) for stage in pipeline.stages),
            estimate.throughput_tokens_per_s,
            phase_from(pipeline.phase),
        )
        for place, (pipeline, estimate) in enumerate(
            zip(answer.pipelines, answer.pipeline_estimates, strict=True), made + 1
        )
    )
    if any(p.stages[-1].layers.end != goal.facts.layer_count for p in pipelines if p.stages):
        raise DataLoss("the plan does not cover every layer once", field="layers")
    return pipelines
