"""Nodes that were given notice: until when they are there, and what becomes of their stages."""

from __future__ import annotations

from services.controller.core.cluster.actions import Action, DrainFormation, LogEvent
from services.controller.core.cluster.membership import FormationState, Membership, Node, Pipeline
from services.controller.core.cluster.settings import ClusterSettings

SAME_NOTICE_S = 0.5
"""A deadline is not taken for another one for so little."""


def notice(node: Node, deadline_s: float, now_s: float) -> list[Action]:
    """The node will be taken away then; of several deadlines the earliest counts."""
    if node.deadline_s is not None and deadline_s > node.deadline_s - SAME_NOTICE_S:
        return []
    node.deadline_s = deadline_s
    attributes = {"notice_s": f"{deadline_s - now_s:g}"}
    return [LogEvent("interruption_noticed", node.node_id, "", attributes)]


def lapse(state: Membership, node: Node) -> list[Action]:
    """The deadline passed and nothing happened."""
    for pipeline in state.pipelines:
        formation = pipeline.formation
        for stage in pipeline.stages:
            if stage.node_id != node.node_id:
                continue
            if formation is not None and formation.state is FormationState.HANDING_OVER:
                return []
            stage.spare_id = ""
            pipeline.replacement_ready_s = pipeline.ready_sampled = None
    node.deadline_s = None
    node.leaving = False
    return [LogEvent("undrained", node.node_id)]


def hand_over(pipeline: Pipeline, tokens: int, now_s: float) -> list[Action]:
    """The pipeline is drained; `tokens` came from its head since the replacement was ready."""
    formation = pipeline.formation
    if formation is None:
        return []
    formation.state = FormationState.HANDING_OVER
    pipeline.down_since_s = now_s
    attributes = {
        "formation": formation.formation_id,
        "tokens_since_replacement_ready": str(tokens),
    }
    return [
        LogEvent("handover_started", "", pipeline.pipeline_id, attributes),
        DrainFormation(formation.formation_id, formation.members[0]),
    ]


def must_part(
    state: Membership, settings: ClusterSettings, pipeline: Pipeline, now_s: float
) -> bool:
    """A member is about to end without a replacement, or none will come and others serve."""
    others = any(other.is_ready for other in state.pipelines if other is not pipeline)
    for stage in pipeline.stages:
        node = state.nodes.get(stage.node_id)
        if node is None or not node.departs or node.deadline_s is None:
            continue
        hopeless = not (stage.spare_id or settings.can_launch)
        if (hopeless and others) or now_s >= node.deadline_s - settings.seal_s:
            return True
    return False
