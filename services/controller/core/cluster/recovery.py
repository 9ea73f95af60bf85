"""What a restarted controller does first with the cluster it finds in its notes."""

from __future__ import annotations

from services.controller.core.cluster.actions import (
    Action,
    DissolveFormation,
    DrainFormation,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.losses import follow
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State, match_shapes


def first_actions(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    """Asks again for what may have been cut short, or drops what was made for something else."""
    actions: list[Action] = []
    if state.basis != settings.basis:
        actions += _start_over(state, settings, now_s)
    for pipeline in list(state.pipelines.values()):
        formation = pipeline.formation
        if formation is None:
            continue
        if pipeline.drains:
            actions.append(DrainFormation(formation.formation_id, formation.members))
        elif formation.forming:
            state.end_formation(pipeline, settings, "controller restarted", now_s)
            actions.append(DissolveFormation(formation.formation_id, formation.members))
            actions += follow(state, settings, pipeline)
    leaving = [node for node in state.nodes.values() if node.leaving and not node.lost]
    return [*actions, *(TerminateNode(node.node_id) for node in leaving)]


def _start_over(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    """The model or the shape of the mesh is another one: the nodes stay, but for those that the
    new shape has no use for; what they hold and form counts no more."""
    dropped = state.start_over(settings, now_s)
    for node in state.nodes.values():
        state.forget_stage(node)
    if settings.can_launch:
        for node in match_shapes(settings.initial, state.staying())[1]:
            node.leave()
    return [
        LogEvent("plan_dropped"),
        *(DissolveFormation(f.formation_id, f.members) for f in dropped),
    ]
