"""Nodes that were given notice: until when they are there, and what becomes of their seats."""

from __future__ import annotations

from math import inf

from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import (
    Action,
    DepartFormation,
    DrainFormation,
    LogEvent,
)
from services.controller.core.cluster.ahead import copy_ahead
from services.controller.core.cluster.losses import withdraw
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.pipeline import Pipeline, Seat
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State

SAME_NOTICE_S = 0.5
"""A deadline is not taken for another one for so little."""


def notice(
    node: Node, deadline_s: float, now_s: float, kind: NoticeKind, *, departs: bool = False
) -> list[Action]:
    """The node will be taken away then; of several deadlines the earliest counts."""
    known_s, taken = node.deadline_s, kind is NoticeKind.SPOT
    if known_s is not None and deadline_s > known_s - SAME_NOTICE_S:
        node.give_notice(known_s, departs=departs, taken=taken and node.taken)
        return []
    node.give_notice(deadline_s, departs=departs, taken=taken)
    attributes = {"notice_s": f"{deadline_s - now_s:g}", "kind": kind.value}
    return [LogEvent("interruption_noticed", node.node_id, "", attributes)]


def advise(settings: ClusterSettings, node: Node) -> list[Action]:
    """The node is likely to be taken away: another one takes its place once it can, and nothing is
    done before. Without somebody who loads meanwhile that would be a loss for no need."""
    if node.advised or not settings.strategy.concurrent_initialisation:
        return []
    node.advise()
    return [LogEvent("replacement_advised", node.node_id)]


def lapse(state: State, node: Node) -> list[Action]:
    """The deadline passed and nothing happened; what is advised is done all the same."""
    seats = [(p, seat) for p, seat in state.seats(node.node_id) if seat.node_id == node.node_id]
    if any(pipeline.drains for pipeline, _ in seats):
        return []
    for pipeline, seat in () if node.advised else seats:
        withdraw(state, pipeline, seat)
    node.lapse()
    return [LogEvent("undrained", node.node_id)]


def hand_over(state: State, pipeline: Pipeline, now_s: float) -> list[Action]:
    """The pipeline is drained."""
    formation = pipeline.formation
    sampled = state.sampled(formation) if formation is not None else 0
    formation, meanwhile = pipeline.drain(sampled, now_s)
    attributes = {
        "formation": formation.formation_id,
        "tokens_while_preparing": str(meanwhile),
    }
    return [
        LogEvent("handover_started", "", pipeline.pipeline_id, attributes),
        DrainFormation(formation.formation_id, formation.members),
    ]


def part(
    state: State, settings: ClusterSettings, pipeline: Pipeline, now_s: float
) -> list[Action] | None:
    """A member is about to end without a replacement, or none will come and others serve: the
    pipeline is drained, in the latter case behind its blocks. None: nothing of the kind."""
    others = False
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        if node is None or not node.departs or node.deadline_s is None:
            continue
        if now_s >= node.deadline_s - settings.seal_s:
            return hand_over(state, pipeline, now_s)
        if not node.taken and _others_take_over(state, settings, pipeline, seat):
            others = True
    if not others:
        return None
    copies = copy_ahead(state, settings, pipeline, (), now_s)
    return hand_over(state, pipeline, now_s) if copies is None else copies


def begin_departure(state: State, settings: ClusterSettings, pipeline: Pipeline) -> list[Action]:
    """A market takes a member, nobody will replace it and others serve: until then the pipeline
    goes on with what it has, and nobody waits for its nodes."""
    formation, last_s = pipeline.formation, inf
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        if node is None or not node.departs or not node.taken or node.deadline_s is None:
            continue
        if _others_take_over(state, settings, pipeline, seat):
            last_s = min(last_s, node.deadline_s - settings.seal_s)
    if formation is None or last_s == inf or last_s > pipeline.departs_s - SAME_NOTICE_S:
        return []
    pipeline.depart(last_s)
    attributes = {"formation": formation.formation_id}
    return [
        LogEvent("departure_begun", "", pipeline.pipeline_id, attributes),
        DepartFormation(formation.formation_id, formation.members, last_s),
    ]


def _others_take_over(
    state: State, settings: ClusterSettings, pipeline: Pipeline, seat: Seat
) -> bool:
    """Whoever sits there will have no successor, and its model is served without the pipeline."""
    hopeless = pipeline.retiring or not (seat.successor_id or settings.can_launch)
    others = (p for p in state.of_model(pipeline.model) if p is not pipeline)
    return hopeless and any(p.is_ready and not p.departing for p in others)
