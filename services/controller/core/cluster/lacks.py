"""What of the plan cannot be carried out as things are, and whether something else still is."""

from __future__ import annotations

from services.controller.core.cluster.market import OVER_BUDGET
from services.controller.core.cluster.pipeline import Pipeline, Seat
from services.controller.core.cluster.replanning import Lack
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def lacks_of(state: State, settings: ClusterSettings) -> frozenset[Lack]:
    """Seats of the plan that nobody is to be had for: the launch of a node came to nothing, or
    nodes come by themselves. One that waits for money is none where something goes."""
    found = (
        _lack(state, settings, pipeline, index, seat)
        for pipeline in state.lacking()
        for index, seat in enumerate(pipeline.seats)
    )
    return frozenset(lack for lack in found if lack is not None)


def _lack(
    state: State, settings: ClusterSettings, pipeline: Pipeline, index: int, seat: Seat
) -> Lack | None:
    node, successor = state.nodes.get(seat.node_id), state.nodes.get(seat.successor_id)
    goes = node is not None and node.present and node.deadline_s is not None
    comes = successor if goes else node
    if comes is not None and (comes.present or not seat.refused):
        return None  # it is there, or will be
    if (settings.can_launch and not seat.refused) or pipeline.drains:
        return None
    if waits_for_money(seat) and _money_comes(state):
        return None
    return Lack(pipeline.pipeline_id, index, seat.node_id if goes else "", seat.refused)


def _money_comes(state: State) -> bool:
    """Something that is paid for is about to go."""
    idle = (node for node in state.indexes.seatless() if not node.lost)
    going = (node for node in state.indexes.restless_nodes() if not node.lost and not node.stays)
    return bool(state.retiring()) or any(node.launched for node in (*idle, *going))


def waits_for_money(seat: Seat) -> bool:
    """A node for it would cost more than is left of the budget as long as others run."""
    return seat.launches.cause == OVER_BUDGET


def is_busy(state: State, settings: ClusterSettings) -> bool:
    """A change is being carried out, and goes on by itself. Where all that is to follow fails, what
    serves may do so for long."""
    stuck = {lack.pipeline_id for lack in lacks_of(state, settings)}
    waiting = [p for p in state.lacking() if not p.is_ready and p.pipeline_id not in stuck]
    if waiting:
        return not all(_fails(state, pipeline) for pipeline in waiting)
    return bool(state.retiring())


def _fails(state: State, pipeline: Pipeline) -> bool:
    """Something of it has failed, and may fail for long."""
    if pipeline.unlike or pipeline.forms.failures:
        return True
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        refuses = node is not None and node.refused == seat.stage and node.loads.failures > 0
        if refuses or (seat.launches.failures > 1 and (node is None or not node.present)):
            return True
    return False
