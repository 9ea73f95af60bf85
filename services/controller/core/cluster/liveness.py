"""Which heads serve, by their beats: a slow head is not a dead one, and a beat alone is no life.

A head serves while its beats come and show rising steps, or that there is nothing to make steps
for. This is the one place that judges so: readers that miss their frames ask, and move only when
the answer is here that their head does not serve.
"""

from __future__ import annotations

from services.controller.core.cluster.actions import Action, LogEvent
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State

GLANCE_S = 0.25
"""Time counts only as far as it was watched: behind a longer gap between two looks, the rest of it
is nobody's silence."""


def overlook(state: State, gap_s: float, now_s: float) -> None:
    """The controller looked again after so long."""
    unwatched_s = gap_s - GLANCE_S
    if unwatched_s <= 0:
        return
    for node in state.nodes.values():
        node.overlook(unwatched_s, now_s)


def judge(state: State, settings: ClusterSettings, awake: bool, now_s: float) -> list[Action]:
    """Looks at the head of every formation that serves; what changed is logged. Not `awake`:
    nobody new is to count as dead."""
    actions: list[Action] = []
    for pipeline in state.pipelines.values():
        formation = pipeline.formation
        if formation is None or not pipeline.is_ready:
            pipeline.judge(False)
            continue
        head = state.head(formation)
        cause = _stall(head, settings, now_s)
        if bool(cause) == pipeline.stalled or (cause and not awake):
            continue
        pipeline.judge(bool(cause))
        kind, attributes = ("head_stalled", {"cause": cause}) if cause else ("head_serves", {})
        actions.append(LogEvent(kind, head.node_id, pipeline.pipeline_id, attributes))
    return actions


def _stall(head: Node, settings: ClusterSettings, now_s: float) -> str:
    """Why the head does not serve; empty when it does."""
    if now_s - head.heard_s >= settings.stall_s:
        return "silence"
    if now_s - head.stepped_s >= settings.progress_s:
        return "no steps"
    return ""
