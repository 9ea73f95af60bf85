"""Asks placement which nodes form which pipelines."""

from __future__ import annotations

import grpc
from shuntserve.placement.v1 import placement_pb2, placement_pb2_grpc

from services.common import channels, wire
from services.common.errors import DataLoss, InvalidArgument
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.model_facts import ModelFacts


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

    async def close(self) -> None:
        await self._channel.close()
