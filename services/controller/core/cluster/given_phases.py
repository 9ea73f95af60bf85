"""A plan whose pipelines have the phases that the settings give, or had before, or that suit the
workload better, and hand on at the rates that placement names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.common.phases import PipelinePhase
from services.controller.core.cluster.plan import Deployment, Plan, PlannedPipeline


def in_phases(
    plan: Plan, phases: Sequence[PipelinePhase], running: Iterable[PlannedPipeline] = ()
) -> Plan:
    """Pipelines of each model have these in their order, those behind the last one do both; one
    that is `running` already, by its nodes and layers, keeps what it has."""
    kept = {_nodes_of(pipeline): pipeline.phase for pipeline in running}

    def phased(place: int, pipeline: PlannedPipeline) -> PlannedPipeline:
        given = phases[place] if place < len(phases) else PipelinePhase.BOTH
        return replace(pipeline, phase=kept.get(_nodes_of(pipeline), given))

    return replace(
        plan,
        deployments=tuple(
            replace(
                deployment,
                pipelines=tuple(phased(*one) for one in enumerate(deployment.pipelines)),
            )
            for deployment in plan.deployments
        ),
    )


def is_split(deployment: Deployment) -> bool:
    """Some of its pipelines hand on to others."""
    phases = {pipeline.phase for pipeline in deployment.pipelines}
    return phases >= {PipelinePhase.PREFILL, PipelinePhase.DECODE}


def handing_on(deployment: Deployment, flows: Iterable[tuple[int, int, float]]) -> Deployment:
    """Pipelines hand on at these rates: each of them from one to another, by their places. Raises
    IndexError for a place that there is not."""
    onward: dict[int, list[tuple[str, float]]] = {}
    pipelines = deployment.pipelines
    for prefill, decode, rate in flows:
        onward.setdefault(prefill, []).append((pipelines[decode].pipeline_id, rate))
    return replace(
        deployment,
        pipelines=tuple(
            replace(pipeline, onward=tuple(onward.get(place, ())))
            for place, pipeline in enumerate(pipelines)
        ),
    )


def weighed_by_flows(deployment: Deployment, tokens_per_request: float) -> Deployment:
    """Prefill pipelines take requests as they hand them on: what others can go on with is less,
    perhaps, than they could read."""
    return replace(
        deployment,
        pipelines=tuple(
            replace(
                one, weight_tokens_per_s=tokens_per_request * sum(rate for _, rate in one.onward)
            )
            if one.phase is PipelinePhase.PREFILL
            else one
            for one in deployment.pipelines
        ),
    )


def with_phases_of(plan: Plan, made: Plan, running: Sequence[PlannedPipeline]) -> Plan:
    """The plan that is carried out with phases, weights and proportions of another one, made of the
    pipelines of it that are `running`; the others stay as they are, and hand on to any."""
    names = {_nodes_of(one): one.pipeline_id for one in running}
    renamed = {p.pipeline_id: names[_nodes_of(p)] for _, p in made.pipelines()}
    told = {p.pipeline_id: p for _, p in made.renamed(renamed).pipelines()}

    def phased(pipeline: PlannedPipeline) -> PlannedPipeline:
        now = told.get(pipeline.pipeline_id)
        if now is None:
            return replace(pipeline, onward=())
        weight = now.weight_tokens_per_s
        return replace(pipeline, phase=now.phase, weight_tokens_per_s=weight, onward=now.onward)

    return Plan(
        made.number,
        tuple(
            replace(one, pipelines=tuple(map(phased, one.pipelines)))
            if one.model in made.models
            else one
            for one in plan.deployments
        ),
        made.why,
    )


def _nodes_of(pipeline: PlannedPipeline) -> tuple[object, ...]:
    return tuple((stage.node_id, stage.layers, stage.tp_degree) for stage in pipeline.stages)
