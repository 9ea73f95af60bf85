"""What becomes of a node by what its liveness says of it."""

from __future__ import annotations

from services.common.generation import LayerRange
from services.common.nodes import Member
from services.controller.core.cluster.actions import Action, DissolveFormation, LogEvent
from services.controller.core.cluster.liveness import (
    Advised,
    Departs,
    Misses,
    Serves,
    Silent,
    Stalled,
    Strays,
    Verdict,
)
from services.controller.core.cluster.losses import dissolve, lose
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notices import advise, notice
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def heed(state: State, settings: ClusterSettings, verdict: Verdict, now_s: float) -> list[Action]:
    """Acts upon a verdict."""
    node = state.nodes[verdict.node_id]
    match verdict:
        case Silent():
            return lose(state, settings, node, "silence", now_s)
        case Stalled(_, cause):
            return _judge(state, node, cause)
        case Serves():
            return _judge(state, node, "")
        case Departs(_, in_s, kind):
            return notice(node, now_s + in_s, now_s, kind, departs=True)
        case Advised():
            return advise(settings, node)
        case Misses(_, missed_ids):
            return _missed(state, settings, node, frozenset(missed_ids), now_s)
        case Strays(_, formation_id):
            return _astray(state, settings, node, formation_id, now_s)


def _judge(state: State, node: Node, cause: str) -> list[Action]:
    """A head stalled, or serves again; one whose formation is drained is waited for anyway."""
    pipeline = state.pipeline_of(node)
    if pipeline is None or not pipeline.is_ready or pipeline.stalled is bool(cause):
        return []
    pipeline.judge(bool(cause))
    kind, attributes = ("head_stalled", {"cause": cause}) if cause else ("head_serves", {})
    return [LogEvent(kind, node.node_id, pipeline.pipeline_id, attributes)]


def _missed(
    state: State, settings: ClusterSettings, node: Node, missed: frozenset[str], now_s: float
) -> list[Action]:
    """A member that misses another one ends its formation."""
    pipeline = state.pipeline_of(node)
    if pipeline is None or pipeline.formation is None:
        return []
    if missed.isdisjoint(member.node_id for member in pipeline.formation.members):
        return []
    return dissolve(state, settings, pipeline, "member_left", now_s)


def _astray(
    state: State, settings: ClusterSettings, node: Node, formation_id: str, now_s: float
) -> list[Action]:
    """A member that is not in its formation ends it; who is in a formation that is no more is told
    so."""
    pipeline = state.pipeline_of(node)
    if pipeline is not None:
        return dissolve(state, settings, pipeline, "member_left", now_s)
    if node.facts is None:
        return []
    facts = node.facts
    member = Member(node.node_id, facts.incarnation, facts.address, LayerRange(0, 0))
    return [DissolveFormation(formation_id, (member,))]
