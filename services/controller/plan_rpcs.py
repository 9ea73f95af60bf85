"""What operators ask of plans and deployments, at the controller's gRPC edge."""

from __future__ import annotations

from typing import Any

from shuntserve.controller.v1 import controller_pb2 as pb

from services.common import wire as common_wire
from services.common.errors import FailedPrecondition, ShuntError
from services.controller import wire, wire_plans
from services.controller.deployments import Deployments
from services.controller.replans import Replans
from services.controller.runtime import ClusterRuntime
from services.controller.what_ifs import WhatIfs


class PlanRpcs:
    """The RPCs about plans and what they are for, for the controller's service to inherit."""

    _runtime: ClusterRuntime
    _replans: Replans
    _what_ifs: WhatIfs
    _deployments: Deployments

    async def ApplyPlan(self, request: pb.ApplyPlanRequest, context: Any) -> pb.ApplyPlanResponse:
        await self._runtime.started.wait()
        source = wire.name_from(request.source, "source") if request.source else ""
        number = await self._runtime.apply_plan(request.plan_json, source)
        return pb.ApplyPlanResponse(number=number)

    async def DiffPlan(self, request: pb.DiffPlanRequest, context: Any) -> pb.DiffPlanResponse:
        await self._runtime.started.wait()
        return wire_plans.diff_to(await self._runtime.diff_plan(request.plan_json))

    async def ExplainPlan(
        self, request: pb.ExplainPlanRequest, context: Any
    ) -> pb.ExplainPlanResponse:
        await self._runtime.started.wait()
        cluster = self._runtime.cluster
        if cluster.plan is None:
            raise FailedPrecondition("there is no plan yet")
        explained = wire_plans.explanation_to(cluster.plan, cluster.view.spares())
        if request.what_ifs:
            try:
                found = await self._what_ifs.answers()
            except ShuntError as error:
                explained.what_ifs_lack = f"placement has no answer: {error.message}"
            else:
                wire_plans.add_what_ifs(explained, found)
        return explained

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.DeployResponse:
        model = wire.model_from(request.model)
        aim = wire.aim_from(request.aim)
        await self._runtime.started.wait()
        number, model = await self._deployments.deploy(model, aim)
        return pb.DeployResponse(plan_number=number, model=common_wire.model_to(model))

    async def Undeploy(self, request: pb.UndeployRequest, context: Any) -> pb.UndeployResponse:
        model_id = wire.name_from(request.model_id, "model_id")
        await self._runtime.started.wait()
        return pb.UndeployResponse(plan_number=await self._deployments.undeploy(model_id))

    async def Replan(self, request: pb.ReplanRequest, context: Any) -> pb.ReplanResponse:
        await self._runtime.started.wait()
        budget = request.budget_per_hour if request.HasField("budget_per_hour") else None
        told = await self._replans.now(budget)
        return pb.ReplanResponse(
            change=told.change, number=told.number, gain=told.gain, reasons=told.reasons
        )
