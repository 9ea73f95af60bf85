"""A plan that an operator gives: checked against what this controller serves."""

from __future__ import annotations

from dataclasses import replace

from services.common.errors import InvalidArgument
from services.controller.core.cluster.backends import KnownShapes, with_backend
from services.controller.core.cluster.degrees import check_degree, check_devices
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.plan import Deployment, Plan
from services.controller.core.cluster.plan_json import plan_from_json
from services.controller.core.cluster.replanning import Cause
from services.controller.core.cluster.why import Why


def operators_plan(
    text: str, number: int, goals: Goals, known: KnownShapes, source: str = ""
) -> Plan:
    """The plan of a JSON text from this file, with this number and cause whatever the text says,
    for every model that is deployed. A deployment without a digest is of the version that is
    served, and a pipeline that names no backend of one that there is. Raises InvalidArgument,
    naming the field."""
    plan = plan_from_json(text, number)
    deployments = enumerate(plan.deployments)
    plan = replace(
        plan,
        deployments=tuple(_checked(one, goals, known, index) for index, one in deployments),
        why=Why(
            reasons=(f"applied by an operator from {source or 'a text'}, nothing was compared",),
            causes=(Cause.OPERATOR.value,),
        ),
    )
    lacking = goals.models - plan.models
    if lacking:
        names = ", ".join(sorted(model.model_id for model in lacking))
        message = f"{names} is deployed and has no pipeline here; `shunt undeploy` ends it"
        raise InvalidArgument(message, field="deployments")
    return plan


def _checked(deployment: Deployment, goals: Goals, known: KnownShapes, index: int) -> Deployment:
    where = f"deployments[{index}]"
    model, goal = deployment.model, goals.find(deployment.model.model_id)
    if goal is None:
        names = ", ".join(sorted(one.model_id for one in goals.models))
        raise InvalidArgument(f"{names} is what is served", field=f"{where}.model")
    served, layer_count = goal.model, goal.facts.layer_count
    if model.digest not in ("", served.digest):
        raise InvalidArgument(f"{served.digest} is what is served", field=f"{where}.digest")
    if not deployment.pipelines:
        raise InvalidArgument("a deployment has a pipeline at least", field=f"{where}.pipelines")
    pipelines = []
    for number, pipeline in enumerate(deployment.pipelines):
        field = f"{where}.pipelines[{number}]"
        layers = pipeline.stages[-1].layers.end
        if layers != layer_count:
            raise InvalidArgument(
                f"the model has {layer_count} layers, not {layers}",
                field=f"{field}.stages",
            )
        pipeline = with_backend(pipeline, goal.facts, known, field)
        for place, stage in enumerate(pipeline.stages):
            degree, at = stage.tp_degree, f"{field}.stages[{place}].tp_degree"
            check_degree(goal.facts, degree, at)
            whose = stage.node_id or stage.offer_id or "the largest node"
            check_devices(degree, known.devices_of(stage), whose, at)
        pipelines.append(pipeline)
    return replace(deployment, model=served, pipelines=tuple(pipelines))
