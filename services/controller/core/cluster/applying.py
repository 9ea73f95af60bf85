"""A plan that an operator gives: checked against what this controller serves."""

from __future__ import annotations

from dataclasses import replace

from services.common.errors import InvalidArgument
from services.controller.core.cluster.plan import Deployment, Plan, WorkPhase
from services.controller.core.cluster.plan_json import plan_from_json
from services.controller.core.cluster.replanning import Cause
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.why import Why


def operators_plan(text: str, number: int, settings: ClusterSettings, source: str = "") -> Plan:
    """The plan of a JSON text from this file, with this number and cause whatever the text says. A
    deployment without a digest is of the version that is served. Raises InvalidArgument, naming the
    field."""
    plan = plan_from_json(text, number)
    deployments = enumerate(plan.deployments)
    return replace(
        plan,
        deployments=tuple(_checked(one, settings, index) for index, one in deployments),
        why=Why(
            reasons=(f"applied by an operator from {source or 'a text'}, nothing was compared",),
            causes=(Cause.OPERATOR.value,),
        ),
    )


def _checked(deployment: Deployment, settings: ClusterSettings, index: int) -> Deployment:
    where, served = f"deployments[{index}]", settings.model
    model = deployment.model
    if model.model_id != served.model_id:
        raise InvalidArgument(f"{served.model_id} is what is served", field=f"{where}.model")
    if model.digest not in ("", served.digest):
        raise InvalidArgument(f"{served.digest} is what is served", field=f"{where}.digest")
    if not deployment.pipelines:
        raise InvalidArgument("a deployment has a pipeline at least", field=f"{where}.pipelines")
    for number, pipeline in enumerate(deployment.pipelines):
        field = f"{where}.pipelines[{number}]"
        layers = pipeline.stages[-1].layers.end
        if settings.layer_count and layers != settings.layer_count:
            raise InvalidArgument(
                f"the model has {settings.layer_count} layers, not {layers}",
                field=f"{field}.stages",
            )
        if pipeline.phase is not WorkPhase.WHOLE:
            raise InvalidArgument("engines do whole generations", field=f"{field}.phase")
    return replace(deployment, model=served)
