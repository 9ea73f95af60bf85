"""What falls with a node, and with a formation: stages, hand-overs, other members' places."""

from __future__ import annotations

from services.controller.actions import Action, DissolveFormation, LogEvent, TerminateNode
from services.controller.cluster_settings import ClusterSettings
from services.controller.membership import FormationState, Membership, Node, Pipeline, Stage


def lose(
    state: Membership, settings: ClusterSettings, node: Node, cause: str, now_s: float
) -> list[Action]:
    """The node is gone: its stages go to their spares or stand empty, its formation dissolves."""
    silent_s = f"{now_s - node.heard_s:.3f}" if node.facts is not None else "0"
    node.lost, node.since_s, node.loading = True, now_s, None
    node.deadline_s = None
    attributes = {"cause": cause, "silent_s": silent_s}
    actions: list[Action] = [LogEvent("node_lost", node.node_id, "", attributes)]
    if node.layers is None and not state.pipelines:
        state.first_launches.fail(settings, now_s)
    for pipeline in state.pipelines:
        for stage in pipeline.stages:
            if node.layers is None and node.node_id in (stage.node_id, stage.spare_id):
                stage.launches.fail(settings, now_s)
            if stage.spare_id == node.node_id:
                stage.spare_id = ""
                pipeline.replacement_ready_s = pipeline.ready_sampled = None
            if stage.node_id == node.node_id:
                stage.node_id, stage.spare_id = stage.spare_id, ""
                actions += dissolve(state, settings, pipeline, cause, now_s)
    return actions


def dissolve(
    state: Membership, settings: ClusterSettings, pipeline: Pipeline, cause: str, now_s: float
) -> list[Action]:
    """The pipeline's formation ends, if it has one; spares that are ready take their stages."""
    formation, pipeline.formation = pipeline.formation, None
    pipeline.replacement_ready_s = pipeline.ready_sampled = None
    if formation is None:
        return []
    if formation.state is FormationState.FORMING:
        pipeline.forms.fail(settings, now_s)
    if pipeline.down_since_s is None:
        pipeline.down_since_s = now_s
    actions = [action for stage in pipeline.stages for action in hand_stage(state, stage)]
    attributes = {"formation": formation.formation_id, "cause": cause}
    return [
        LogEvent("pipeline_lost", "", pipeline.pipeline_id, attributes),
        DissolveFormation(formation.formation_id, state.living(formation)),
        *actions,
    ]


def hand_stage(state: Membership, stage: Stage) -> list[Action]:
    """Gives the stage to its spare, if that is ready, and lets the old node go."""
    spare = state.nodes.get(stage.spare_id)
    if spare is None or not spare.holds(stage.layers):
        return []
    node = state.nodes.get(stage.node_id)
    stage.node_id, stage.spare_id = stage.spare_id, ""
    if node is None:
        return []
    node.leaving = True
    return [TerminateNode(node.node_id)]
