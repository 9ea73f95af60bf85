"""A made-up cluster of any size: its settings, its nodes, its plan."""

from __future__ import annotations

from services.common.generation import LayerRange
from services.common.nodes import NodeFacts, NodeShape
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.model_facts import ModelFacts

STAGES = 4
"""Nodes of a pipeline."""
BEAT_S = 0.25
SHAPE = NodeShape(1 << 34, 1.0)
LAYERS = 32


def settings_of(nodes: int) -> ClusterSettings:
    return ClusterSettings(
        Goal(ModelFacts("model", "digest", LAYERS, 1, 8192, "{}")),
        (SHAPE,) * nodes,
        expected_nodes=nodes,
        pipelines=nodes // STAGES,
    )


def facts_of(node_id: str) -> NodeFacts:
    return NodeFacts(node_id, f"process-of-{node_id}", f"{node_id}:50051", 7, SHAPE)


def plan_of(ask: AskPlan) -> Plan:
    """Pipelines of STAGES nodes each, in the order of the nodes."""
    names = [node.node_id for node in ask.nodes]
    size = LAYERS // STAGES
    layers = [LayerRange(at, at + size) for at in range(0, LAYERS, size)]
    pipelines = tuple(
        PlannedPipeline(
            f"pipeline-{first // STAGES + 1}",
            tuple(
                PlannedStage(part, 1, SHAPE, name)
                for part, name in zip(layers, names[first : first + STAGES], strict=True)
            ),
            100.0,
        )
        for first in range(0, len(names), STAGES)
    )
    return Plan(ask.number, (Deployment(ask.goals[0].model, THROUGHPUT, pipelines),))
