"""Asks placement which nodes form which pipelines."""

from __future__ import annotations

import grpc
from shuntserve.placement.v1 import placement_pb2, placement_pb2_grpc

from services.common import channels, wire
from services.common.errors import DataLoss, InvalidArgument
from services.common.nodes import NodeShape
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.model_facts import ModelFacts
from services.controller.replans import NextPlan, Replanning

_OBJECTIVES = {
    "throughput": placement_pb2.OBJECTIVE_KIND_THROUGHPUT,
    "throughput-per-cost": placement_pb2.OBJECTIVE_KIND_THROUGHPUT_PER_COST,
    "goodput-per-cost": placement_pb2.OBJECTIVE_KIND_GOODPUT_PER_COST,
}


def _node(
    name: str, shape: NodeShape, offer: Offer | None, on_offer: bool = False
) -> placement_pb2.Node:
    """As placement knows it; what nobody names a price for is free."""
    node = placement_pb2.Node(
        node_id=name,
        device_type=shape.device_type,
        device_count=1,
        memory_bytes=shape.memory_bytes,
        relative_speed=shape.relative_speed,
    )
    if offer is not None:
        node.price_per_hour = offer.price_per_hour or 0.0
        node.pool = offer.pool
        node.spot = offer.spot
        node.interruptions_per_hour = offer.interruptions_per_hour
        node.ready_in_s = offer.launch_s if on_offer else 0.0
    return node


class Planning:
    """The placement service, seen from here."""

    def __init__(
        self,
        address: str,
        facts: ModelFacts,
        *,
        planner: str,
        timeout_s: float,
        tls: TlsSettings | None = None,
    ) -> None:
        """`planner` is a name of the placement API, such as proportional."""
        self._channel = channels.open_channel(address, tls=tls)
        self._stub = placement_pb2_grpc.PlacementServiceStub(self._channel)
        self._facts = facts
        self._planner = placement_pb2.Planner.Value(f"PLANNER_{planner.upper()}")
        self._timeout_s = timeout_s

    async def plan(self, question: AskPlan) -> Plan:
        """Raises a ShuntError when there is no answer, DataLoss for a plan that cannot be."""
        request = placement_pb2.PlanRequest(
            model=placement_pb2.ModelSpec(config_json=self._facts.config_json),
            nodes=[
                placement_pb2.Node(
                    node_id=node.node_id,
                    device_type=node.shape.device_type,
                    device_count=1,
                    memory_bytes=node.shape.memory_bytes,
                    relative_speed=node.shape.relative_speed,
                )
                for node in question.nodes
            ],
            planner=self._planner,
            pipeline_count=question.pipelines,
        )
        try:
            reply = await self._stub.Plan(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if len(reply.pipelines) != len(reply.pipeline_estimates):
            raise DataLoss("a pipeline of the plan has no estimate", field="pipeline_estimates")
        shapes = {node.node_id: node.shape for node in question.nodes}
        named = [stage.node_id for pipeline in reply.pipelines for stage in pipeline.stages]
        if not reply.pipelines or not set(named) <= set(shapes):
            raise DataLoss("the plan is empty or names nodes that it should not", field="stages")
        pipelines = tuple(
            PlannedPipeline(
                f"pipeline-{number}",
                stages=tuple(
                    PlannedStage(
                        wire.layers_from(stage.layers),
                        stage.tp_degree,
                        shapes[stage.node_id],
                        stage.node_id,
                    )
                    for stage in pipeline.stages
                ),
                weight_tokens_per_s=estimate.throughput_tokens_per_s,
            )
            for number, (pipeline, estimate) in enumerate(
                zip(reply.pipelines, reply.pipeline_estimates, strict=True), 1
            )
        )
        deployment = Deployment(question.model, THROUGHPUT, pipelines)
        if any(p.stages[-1].layers.end != self._facts.layer_count for p in pipelines if p.stages):
            raise DataLoss("the plan does not cover every layer once", field="layers")
        try:
            return Plan(question.number, (deployment,))
        except InvalidArgument as error:
            raise DataLoss(f"the plan cannot be: {error.message}", field=error.field) from None

    async def replan(self, question: Replanning) -> NextPlan:
        """The next plan, or none where the running one stays. Raises a ShuntError when there is no
        answer, DataLoss for a plan that cannot be."""
        named = {one.name: one.offer for one in question.candidates}
        shapes = {node.node_id: node.shape for node, _ in question.nodes}
        wishes = question.wishes
        request = placement_pb2.ReplanRequest(
            model=placement_pb2.ModelSpec(config_json=self._facts.config_json),
            nodes=[
                *(_node(n.node_id, n.shape, offer) for n, offer in question.nodes),
                *(_node(one.name, one.offer.shape, one.offer, True) for one in question.candidates),
            ],
            running=[
                placement_pb2.Pipeline(
                    stages=[
                        placement_pb2.Stage(
                            node_id=stage.node_id,
                            layers=wire.layers_to(stage.layers),
                            tp_degree=stage.tp_degree,
                        )
                        for stage in pipeline.stages
                    ]
                )
                for pipeline in question.running
            ],
            objective=placement_pb2.Objective(
                kind=_OBJECTIVES[wishes.objective], budget_per_hour=wishes.budget_per_hour
            ),
            horizon_s=wishes.horizon_s,
            improve=question.improve,
        )
        try:
            reply = await self._stub.Replan(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if not reply.change:
            return NextPlan(None, 0.0, tuple(reply.reasons))
        if len(reply.pipelines) != len(reply.pipeline_estimates):
            raise DataLoss("a pipeline of the plan has no estimate", field="pipeline_estimates")
        pipelines = []
        for number, pipeline in enumerate(reply.pipelines, 1):
            stages = []
            for stage in pipeline.stages:
                offer = named.get(stage.node_id)
                shape = offer.shape if offer is not None else shapes.get(stage.node_id)
                if shape is None:
                    raise DataLoss("the plan names nodes that it should not", field="stages")
                stages.append(
                    PlannedStage(
                        wire.layers_from(stage.layers),
                        stage.tp_degree,
                        shape,
                        stage.node_id if offer is None else "",
                        offer.offer_id if offer is not None else "",
                    )
                )
            weight = reply.pipeline_estimates[number - 1].throughput_tokens_per_s
            pipelines.append(PlannedPipeline(f"pipeline-{number}", tuple(stages), weight))
        deployment = Deployment(question.model, wishes.objective, tuple(pipelines))
        if any(p.stages[-1].layers.end != self._facts.layer_count for p in pipelines if p.stages):
            raise DataLoss("the plan does not cover every layer once", field="layers")
        try:
            plan = Plan(question.number, (deployment,))
        except InvalidArgument as error:
            raise DataLoss(f"the plan cannot be: {error.message}", field=error.field) from None
        return NextPlan(plan, reply.gain, tuple(reply.reasons))

    async def close(self) -> None:
        await self._channel.close()
