"""What falls with a node, and with a formation: seats, hand-overs, other members' places."""

from __future__ import annotations

from services.controller.core.cluster.actions import (
    Action,
    DissolveFormation,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.pipeline import Pipeline, Seat, count_loss
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def lose(
    state: State,
    settings: ClusterSettings,
    node: Node,
    cause: str,
    now_s: float,
    *,
    started: bool = True,
    came: bool = True,
) -> list[Action]:
    """The node is gone: its seats go to their successors or stand empty, its formation dissolves.
    One that has `started` was paid for; one that never `came` was not to be had."""
    silent_s = f"{state.liveness.silent_s(node.incarnation, now_s):.3f}"
    came_to_something = node.came_to_something(settings.stable_s, now_s)
    in_vain = not node.outgoing and not came_to_something
    served = node.served_s is not None
    longest_s = settings.replace_max_s if started else settings.retry_max_s
    fallen = state.pipeline_of(node)
    unseated = _unseated(state, settings, node, now_s) if in_vain else None
    state.lose(node, now_s)
    attributes = {"cause": cause, "silent_s": silent_s}
    actions: list[Action] = [LogEvent("node_lost", node.node_id, "", attributes)]
    if unseated is not None:
        count_loss(
            unseated,
            settings,
            cause,
            node.node_id,
            now_s,
            served=served,
            longest_s=longest_s,
        )
    for pipeline, seat in state.seats(node.node_id):
        if not came:
            seat.refuse(settings, cause, node.node_id, now_s, longest_s=longest_s)
        elif in_vain:
            seat.count_loss(
                settings, cause, node.node_id, now_s, served=served, longest_s=longest_s
            )
        if seat.node_id == node.node_id:
            seat.pass_on()
        else:
            withdraw(state, pipeline, seat)
    if fallen is not None:
        actions += dissolve(state, settings, fallen, cause, now_s)
    return actions


def _unseated(state: State, settings: ClusterSettings, node: Node, now_s: float) -> Backoff | None:
    """What the loss of a node without a place counts for: the first plan's nodes, or the spares;
    one of these that was there for a while came to something."""
    if state.plan is None:
        return state.first_launches
    stood = node.present and now_s - node.since_s >= settings.stable_s
    if not settings.spares or stood or node.leaving or state.pipeline_of(node) is not None:
        return None
    return None if state.is_seated(node) else state.spare_launches


def withdraw(state: State, pipeline: Pipeline, seat: Seat) -> None:
    """The seat has no successor after all."""
    dismiss(state, seat)
    if not pipeline.drains:
        pipeline.stay()


def dismiss(state: State, seat: Seat) -> None:
    """Whoever was to sit there next has no place any more."""
    node = state.nodes.get(seat.successor_id)
    if node is not None:
        node.release()
    seat.promise("")


def give_up(settings: ClusterSettings, seat: Seat, node: Node, now_s: float) -> None:
    """The node could not load the seat's stage."""
    served = node.served_s is not None
    seat.give_up(settings, node.loads.cause, node.node_id, now_s, served=served)


def give_up_spare(state: State, settings: ClusterSettings, node: Node, now_s: float) -> None:
    """The spare could not load what it was to hold, or suits no stage."""
    cause = node.loads.cause or "a node suits no stage of the plan"
    longest_s = settings.replace_max_s
    count_loss(
        state.spare_launches,
        settings,
        cause,
        node.node_id,
        now_s,
        served=False,
        longest_s=longest_s,
    )
    node.leave()


def forgive(state: State, settings: ClusterSettings, seat: Seat, now_s: float) -> None:
    """What came to nothing at the seat before counts no more once a node has come to something;
    behind a notice it is those that are to follow that come to nothing."""
    node = state.nodes.get(seat.node_id)
    settled = node is not None and node.stays and not node.advised
    if node is not None and settled and node.came_to_something(settings.stable_s, now_s):
        seat.forgive()


def dissolve(
    state: State, settings: ClusterSettings, pipeline: Pipeline, cause: str, now_s: float
) -> list[Action]:
    """The pipeline's formation ends, if it has one."""
    if pipeline.formation is None:
        return []
    formation = state.end_formation(pipeline, settings, cause, now_s)
    attributes = {"formation": formation.formation_id, "cause": cause}
    return [
        LogEvent("pipeline_lost", "", pipeline.pipeline_id, attributes),
        DissolveFormation(formation.formation_id, state.living(formation)),
        *follow(state, settings, pipeline),
    ]


def follow(state: State, settings: ClusterSettings, pipeline: Pipeline) -> list[Action]:
    """What becomes of a pipeline behind its formation: one that the plan lacks is over, the seats
    of another go to their successors."""
    if pipeline.retiring:
        end(state, pipeline)
        return []
    return [action for seat in pipeline.seats for action in _hand_seat(state, settings, seat)]


def end(state: State, pipeline: Pipeline) -> None:
    """The pipeline is no more; the plan may have other places for its nodes."""
    state.remove(pipeline)
    for seat in pipeline.seats:
        for node_id in seat.node_ids:
            node = state.nodes.get(node_id)
            if node is not None:
                node.release()


def _hand_seat(state: State, settings: ClusterSettings, seat: Seat) -> list[Action]:
    """Gives the seat to its successor and lets the old node go, if the successor is ready or the
    old node goes anyway."""
    node, successor = state.nodes.get(seat.node_id), state.nodes.get(seat.successor_id)
    ready = successor is not None and successor.may_follow(settings, seat.stage)
    if not ready and (node is None or not node.departs):
        return []
    seat.pass_on()
    if node is None:
        return []
    if node.stays and not node.launched:
        return []  # it was advised, and is not ours to end: it is there for whoever finds no other
    node.leave()
    return [TerminateNode(node.node_id)]
