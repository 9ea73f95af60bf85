"""A plan whose pipelines have the phases that the settings give, or had before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.common.phases import PipelinePhase
from services.controller.core.cluster.plan import Plan, PlannedPipeline


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


def _nodes_of(pipeline: PlannedPipeline) -> tuple[object, ...]:
    return tuple((stage.node_id, stage.layers, stage.tp_degree) for stage in pipeline.stages)
