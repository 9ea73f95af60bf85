"""Plans, their reasons and their differences as messages."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve.controller.v1 import controller_pb2 as pb

from services.common import wire
from services.controller.core.cluster.difference import StageToBe
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.views import SpareView
from services.controller.diffs import PlanDiff
from services.controller.what_ifs import Answers
from services.controller.wire import spare_to


def plan_to(plan: Plan) -> pb.PlanStatus:
    return pb.PlanStatus(
        number=plan.number,
        deployments=[
            pb.DeploymentStatus(
                model=wire.model_to(deployment.model),
                objective=deployment.objective,
                pipeline_ids=[pipeline.pipeline_id for pipeline in deployment.pipelines],
            )
            for deployment in plan.deployments
        ],
        adopted_unix_s=plan.why.adopted_unix_s,
        causes=plan.why.causes,
    )


def explanation_to(plan: Plan, spares: Iterable[SpareView]) -> pb.ExplainPlanResponse:
    why = plan.why
    return pb.ExplainPlanResponse(
        number=plan.number,
        reasons=why.reasons,
        alternatives=[pb.RejectedPlan(plan=a.plan, lacks=a.lacks) for a in why.alternatives],
        causes=why.causes,
        gain=why.gain,
        horizon_s=why.horizon_s,
        adopted_unix_s=why.adopted_unix_s,
        spares=map(spare_to, spares),
        late=why.late,
    )


def diff_to(diff: PlanDiff) -> pb.DiffPlanResponse:
    found = diff.cluster
    load_bytes = {} if diff.after is None else diff.after.load_bytes
    return pb.DiffPlanResponse(
        kept_pipeline_ids=found.kept,
        new_pipelines=[
            pb.PipelineToBe(
                pipeline_id=name,
                stages=[_stage_to_be(stage, load_bytes.get(stage.node_id)) for stage in stages],
            )
            for name, stages in found.pipelines.items()
            if name not in found.kept
        ],
        gone_pipeline_ids=found.gone,
        launched=[
            pb.NodeToBe(
                node_id=node_id,
                offer_id="" if offer is None else offer.offer_id,
                price_per_hour=None if offer is None else offer.price_per_hour,
            )
            for node_id, offer in diff.launched.items()
        ],
        freed_node_ids=found.freed,
        idle_node_ids=found.idle,
        cost_per_hour=diff.cost_before,
        cost_per_hour_after=diff.cost_after,
        throughput_tokens_per_s=None if diff.now is None else diff.now.throughput_tokens_per_s,
        throughput_tokens_per_s_after=(
            None if diff.after is None else diff.after.throughput_tokens_per_s
        ),
        estimates_lack=diff.estimates_lack,
    )


def _stage_to_be(stage: StageToBe, load_bytes: int | None) -> pb.StageToBe:
    return pb.StageToBe(
        node_id=stage.node_id,
        layers=wire.layers_to(stage.layers),
        tp_degree=stage.tp_degree,
        lacks=[wire.layers_to(layers) for layers in stage.lacks],
        load_bytes=load_bytes,
    )


def add_what_ifs(explained: pb.ExplainPlanResponse, found: Answers) -> None:
    for change, answer in found.answers:
        explained.what_ifs.add(change=change, answer=answer)
    if not found.complete:
        explained.what_ifs_lack = "there was no time for more"
