"""What a restarted controller does first with the cluster it finds in its snapshot."""

from __future__ import annotations

from services.controller.core.cluster.actions import (
    Action,
    DissolveFormation,
    DrainFormation,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.membership import (
    FormationState,
    Membership,
    Pipeline,
    match_shapes,
)
from services.controller.core.cluster.settings import ClusterSettings


def first_actions(state: Membership, settings: ClusterSettings) -> list[Action]:
    """Asks again for what may have been cut short, or drops what was made for something else."""
    actions: list[Action] = []
    if state.basis != settings.basis:
        actions += _start_over(state, settings)
    for pipeline in state.pipelines:
        formation = pipeline.formation
        if formation is None:
            continue
        if formation.state is FormationState.HANDING_OVER:
            actions.append(DrainFormation(formation.formation_id, formation.members[0]))
        elif formation.state is FormationState.FORMING:
            actions += _drop(pipeline)
    leaving = [node for node in state.nodes.values() if node.leaving and not node.lost]
    return [*actions, *(TerminateNode(node.node_id) for node in leaving)]


def _start_over(state: Membership, settings: ClusterSettings) -> list[Action]:
    """The model or the shape of the mesh is another one: the nodes stay, but for those that the
    new shape has no use for; what they hold and form counts no more."""
    state.basis = settings.basis
    dropped = [action for pipeline in state.pipelines for action in _drop(pipeline)]
    state.pipelines.clear()
    for node in state.nodes.values():
        node.layers = None
    if settings.can_launch:
        for node in match_shapes(settings.initial, state.staying())[1]:
            node.leaving = True
    return [LogEvent("plan_dropped"), *dropped]


def _drop(pipeline: Pipeline) -> list[Action]:
    formation, pipeline.formation = pipeline.formation, None
    if formation is None:
        return []
    return [DissolveFormation(formation.formation_id, formation.members)]
