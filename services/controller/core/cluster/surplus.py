"""Nodes that the plan has no place for: which of them end, and which are kept as spares."""

from __future__ import annotations

from services.controller.core.cluster.actions import Action, LogEvent, TerminateNode
from services.controller.core.cluster.lacks import waits_for_money
from services.controller.core.cluster.losses import give_up_spare
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.orders import launched, load
from services.controller.core.cluster.pipeline import Seat
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.spares import (
    is_strange,
    loads,
    offer_for_one,
    reserve,
    spares,
    useless,
    wanted,
)
from services.controller.core.cluster.state import State


class Surplus:
    """One look at them, once everybody who was needed has a place."""

    def __init__(
        self, state: State, settings: ClusterSettings, market: Market, now_s: float
    ) -> None:
        self._state = state
        self._settings = settings
        self._market = market
        self._now_s = now_s

    def end(self) -> list[Action]:
        """Nodes that were launched and have no place end once the plan is carried out without
        them; those that an older plan had, as soon as somebody needs their money."""
        state, settings = self._state, self._settings
        if not settings.can_launch:
            return []
        done = all(p.is_ready for p in state.restless())
        if not done and not self._needs_money():
            return []
        kept = {n.node_id for n in reserve(state, settings, self._market)}
        stay = {n.node_id for n in spares(state, settings, self._market)} if done else set()
        ending = [
            node
            for node in state.indexes.seatless()
            if node.launched
            and (done or node.released or node.node_id in kept)
            and not (node.lost or node.leaving or node.node_id in stay)
        ]
        actions = list[Action]()
        for node in ending:
            if not state.is_seated(node) and not state.serves(node):
                if settings.spares and is_strange(state, node):
                    give_up_spare(state, settings, node, self._now_s)
                else:
                    node.leave()
                actions += [LogEvent("node_released", node.node_id), TerminateNode(node.node_id)]
        return actions

    def keep(self) -> list[Action]:
        """Launches the next spare, one at a time, and has those that are there load, once the plan
        lacks nobody: what it lacks comes first."""
        state, settings, market, now_s = self._state, self._settings, self._market, self._now_s
        count = wanted(state, settings, market)
        if not count or not self._is_whole():
            return []
        actions: list[Action] = []
        may_load = settings.strategy.concurrent_initialisation
        for more in loads(state, settings, market, now_s) if may_load else ():
            if len(more.among) > 1:
                state.stock_up(more.node, more.stage, more.among)
            else:
                state.load(more.node, more.stage)
            actions.append(load(more.node, more.stage))
        for node in useless(state, settings, market):
            give_up_spare(state, settings, node, now_s)
            actions.append(TerminateNode(node.node_id))
        kept = spares(state, settings, market)
        stand = [n for n in kept if n.stages and now_s - n.since_s >= settings.stable_s]
        if len(stand) == count:
            state.spare_launches.succeed()
        starts = any(node.facts is None for node in kept)
        if len(kept) >= count or starts or not settings.can_launch:
            return actions
        if now_s < state.spare_launches.retry_at_s or self._needs_money():
            return actions
        offer = offer_for_one(state, settings, market, now_s)
        if offer is None:
            return actions
        node = state.launch(offer.shape, now_s)
        return [
            *actions,
            LogEvent("spare_wanted", node.node_id),
            *launched(node, "", offer.offer_id),
        ]

    def _needs_money(self) -> bool:
        """More than is left."""
        over = bool(self._settings.spares) and self._market.exceeds(self._settings.budget_per_hour)
        return over or any(
            waits_for_money(seat) and self._is_vacant(seat)
            for _, seat in self._state.lacking_seats()
        )

    def _is_vacant(self, seat: Seat) -> bool:
        """Nobody sits there, or is to follow one that will be taken away."""
        nodes = self._state.nodes
        if seat.node_id not in nodes:
            return True
        return self._state.is_taken_away(seat) and seat.successor_id not in nodes

    def _is_whole(self) -> bool:
        """Every pipeline serves, and whoever will be taken away has a successor that is there."""
        nodes = self._state.nodes
        return all(p.is_ready for p in self._state.restless()) and all(
            not self._state.is_taken_away(seat)
            or (seat.successor_id in nodes and nodes[seat.successor_id].present)
            for _, seat in self._state.lacking_seats()
        )
