"""What falls due in the cluster by time alone, and when the next of it does.

Silence is judged by `Liveness`, which has deadlines of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from services.controller.core.cluster.actions import Action, ShunOffer, TerminateNode
from services.controller.core.cluster.losses import forgive, lose
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notices import begin_departure, lapse, part
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def carry_out_due(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    """What has fallen due: nodes that never came, were lost long ago or were not taken after all,
    and what must be sealed before a node ends."""
    actions: list[Action] = []
    for node in state.indexes.restless_nodes():
        if node.lost:
            if now_s >= node.since_s + settings.lost_kept_s:
                # one that was lost by its silence may live on
                actions.append(TerminateNode(node.node_id, kill=True))
                state.forget(node)
        elif node.facts is None:
            if now_s >= node.since_s + settings.launch_timeout_s:
                actions += lose(state, settings, node, "launch timed out", now_s, came=False)
                actions += [ShunOffer(node.node_id), TerminateNode(node.node_id, kill=True)]
        elif _lapses(settings, node, now_s):
            actions += lapse(state, node)
    for pipeline in state.restless():
        if not pipeline.is_ready:
            continue
        parts = part(state, settings, pipeline, now_s)
        actions += begin_departure(state, settings, pipeline) if parts is None else parts
    for _, seat in state.lacking_seats():
        forgive(state, settings, seat, now_s)
    return actions


def _lapses(settings: ClusterSettings, node: Node, now_s: float) -> bool:
    """Its time is over, it is there, and nobody is about to end it: whoever takes it away does so
    at the deadline, which is when this would be looked at first. One that was launched and let go
    is being ended, however late its seat was handed over."""
    if node.deadline_s is None or node.departs or (node.launched and node.leaving):
        return False
    return now_s >= node.deadline_s + settings.lapse_s


def next_due_s(state: State, settings: ClusterSettings, market: Market, now_s: float) -> float:
    """When something falls due next or may be tried again, if all was done that could be by now;
    infinite when nothing is."""
    due_s = min((due_s for due_s in _times(state, settings, market) if due_s > now_s), default=inf)
    if any(not state.goals.have(pipeline.model) for pipeline in state.retiring()):
        due_s = min(due_s, now_s + settings.heartbeat_interval_s)  # it may have come to rest
    return due_s


def _times(state: State, settings: ClusterSettings, market: Market) -> Iterator[float]:
    for node in state.indexes.restless_nodes():
        if node.lost:
            yield node.since_s + settings.lost_kept_s
        elif node.facts is None:
            yield node.since_s + settings.launch_timeout_s
        elif node.deadline_s is not None:
            yield node.deadline_s + settings.lapse_s
            yield node.deadline_s - settings.seal_s
        if node.refused is not None:
            yield node.loads.retry_at_s
    for pipeline in state.lacking():
        yield pipeline.forms.retry_at_s
    for _, seat in state.lacking_seats():
        if seat.launches.failures:
            yield seat.launches.retry_at_s
            sitting = state.nodes.get(seat.node_id)
            if sitting is not None and sitting.served_s is not None:
                yield sitting.served_s + settings.stable_s
    if settings.spares:
        yield state.spare_launches.retry_at_s
        yield from market.shut().values()
        for node in state.indexes.seatless():
            yield node.since_s + settings.stable_s
    if state.falls_short:
        yield state.asking.plans.retry_at_s
    if state.plan is None:
        yield state.first_launches.retry_at_s
        since_s = min((node.since_s for node in state.nodes.values() if node.usable), default=inf)
        yield since_s + settings.settle_s
