"""What falls with a node, and with a formation: stages, hand-overs, other members' places."""

from __future__ import annotations

from services.controller.core.cluster.actions import (
    Action,
    DissolveFormation,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.membership import (
    FormationState,
    Membership,
    Node,
    Pipeline,
    Stage,
)
from services.controller.core.cluster.settings import ClusterSettings

_SERVED = 8
"""The loss of a node that had served costs a pause so much shorter: it may have been taken away."""


def lose(
    state: Membership,
    settings: ClusterSettings,
    node: Node,
    cause: str,
    now_s: float,
    *,
    started: bool = True,
) -> list[Action]:
    """The node is gone: its stages go to their spares or stand empty, its formation dissolves. One
    that has `started` was paid for."""
    silent_s = f"{now_s - node.heard_s:.3f}" if node.facts is not None else "0"
    came_to_nothing = node.deadline_s is None and not node.came_to_something(
        settings.stable_s, now_s
    )
    node.lost, node.since_s, node.loading = True, now_s, None
    node.deadline_s = None
    attributes = {"cause": cause, "silent_s": silent_s}
    actions: list[Action] = [LogEvent("node_lost", node.node_id, "", attributes)]
    longest_s = settings.replace_max_s if started else settings.retry_max_s
    if came_to_nothing and not state.pipelines:
        _count(state.first_launches, settings, now_s, cause, node, longest_s)
    for pipeline in state.pipelines:
        for stage in pipeline.stages:
            if came_to_nothing and node.node_id in (stage.node_id, stage.spare_id):
                _count(stage.launches, settings, now_s, cause, node, longest_s)
            if stage.spare_id == node.node_id:
                stage.spare_id = ""
                pipeline.replacement_ready_s = pipeline.ready_sampled = None
            if stage.node_id == node.node_id:
                stage.node_id, stage.spare_id = stage.spare_id, ""
                actions += dissolve(state, settings, pipeline, cause, now_s)
    return actions


def give_up(settings: ClusterSettings, stage: Stage, node: Node, now_s: float) -> None:
    """The node could not load the stage."""
    stage.given_up += 1
    _count(stage.launches, settings, now_s, node.loads.cause, node, settings.replace_max_s)


def forgive(state: Membership, settings: ClusterSettings, stage: Stage, now_s: float) -> None:
    """What came to nothing at the stage before counts no more once a node has come to something."""
    node = state.nodes.get(stage.node_id)
    if node is not None and node.came_to_something(settings.stable_s, now_s):
        stage.launches.succeed()
        stage.given_up = 0


def _count(
    failing: Backoff,
    settings: ClusterSettings,
    now_s: float,
    cause: str,
    node: Node,
    longest_s: float,
) -> None:
    served = node.served_s is not None
    failing.fail(
        now_s,
        cause,
        first_s=settings.retry_s / (_SERVED if served else 1),
        longest_s=longest_s,
        free=served,
        node_id=node.node_id,
    )


def dissolve(
    state: Membership, settings: ClusterSettings, pipeline: Pipeline, cause: str, now_s: float
) -> list[Action]:
    """The pipeline's formation ends, if it has one; spares that are ready take their stages."""
    formation, pipeline.formation = pipeline.formation, None
    pipeline.replacement_ready_s = pipeline.ready_sampled = None
    if formation is None:
        return []
    if formation.state is FormationState.FORMING:
        pipeline.forms.fail(now_s, cause, first_s=settings.retry_s, longest_s=settings.retry_max_s)
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
    """Gives the stage to its spare and lets the old node go, if the spare is ready or the old node
    goes anyway."""
    node, spare = state.nodes.get(stage.node_id), state.nodes.get(stage.spare_id)
    ready = spare is not None and spare.holds(stage.layers)
    if not ready and (node is None or not node.departs):
        return []
    stage.node_id, stage.spare_id = stage.spare_id, ""
    if node is None:
        return []
    node.leaving = True
    return [TerminateNode(node.node_id)]
