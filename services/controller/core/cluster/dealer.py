"""What is ordered from the provider, and what its word counts for: told to market and cluster."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.nodes import NodeFacts
from services.controller.core.cluster.actions import Action, LaunchNode, LogEvent, ShunOffer
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    OVER_BUDGET,
    Dropped,
    LaunchFailed,
    Market,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)

_OFFERS_NAMED = 8
"""Of those that changed, in one event."""


_TOLD_AT = 2
"""Refusals in a row behind which it is said that an offer is left alone for ever longer."""


class Dealer:
    """The provider's counterpart: orders and words in, events of the cluster and of the log out."""

    def __init__(self, cluster: Cluster, *, shun_offer_s: float) -> None:
        """For so long an offer that did not keep its word is left alone."""
        self._cluster = cluster
        self._shun_offer_s = shun_offer_s
        self._dropped: tuple[Dropped, ...] = ()
        """What was wrong with the offers, the last time."""

    @property
    def market(self) -> Market:
        """The cluster's own: it chooses its spares from it."""
        return self._cluster.market

    # Orders

    def order(self, launch: LaunchNode, now_s: float) -> Offer | None:
        """The offer to launch the node from: the one that is named, or what is offered of its
        shape. Where there is none, or no money for it, the cluster is told so."""
        offer = self.market.named(launch.offer_id, launch.shape, now_s)
        if offer is None:
            self._failed(LaunchFailed(launch.node_id, NO_CAPACITY), now_s)
            return None
        if not self.market.affords(offer.offer_id, self._cluster.settings.budget_per_hour):
            self._failed(LaunchFailed(launch.node_id, OVER_BUDGET), now_s)
            return None
        self.market.launch(launch.node_id, offer.offer_id)
        self._cluster.bought(launch.node_id, offer.offer_id)
        return offer

    def over(self, node_id: str) -> None:
        """It was killed, or its provider knows no such node: it takes up no offer any more,
        whatever its provider says of it, or does not."""
        self.market.ended(node_id)

    # What is there

    def lives(self, node_id: str, offer_id: str) -> None:
        """A node of this offer, launched before a restart, is there."""
        self.market.found(node_id, offer_id)
        self._cluster.bought(node_id, offer_id)

    def found(self, facts: NodeFacts, offer_id: str) -> list[Action]:
        """A process that the provider launched from this offer registered. One that is not what was
        offered serves as what it is."""
        self.lives(facts.node_id, offer_id)
        self.market.came(offer_id)
        offer = self.market.offer(offer_id)
        if offer is None:
            return []
        found_type = facts.machine.instance_type or offer.instance_type
        if (offer.shape, offer.instance_type) == (facts.shape, found_type):
            return []
        attributes = {
            "offer": offer_id,
            "offered": f"{offer.instance_type}, {offer.shape}",
            "found": f"{found_type}, {facts.shape}",
        }
        return [LogEvent("node_differs", facts.node_id, "", attributes), ShunOffer(facts.node_id)]

    def shun(self, node_id: str, now_s: float) -> None:
        """The offer that a node was launched from did not keep its word."""
        self.market.shun(node_id, self._shun_offer_s, now_s)

    # What the provider says

    def offered(self, offers: Sequence[Offer]) -> list[Action]:
        """These are all offers now; what is wrong with them is logged."""
        change = self.market.update(offers)
        actions: list[Action] = []
        if change.changed:
            named = ", ".join(change.changed[:_OFFERS_NAMED])
            attributes = {"offers": str(len(self.market.offers())), "changed": named}
            actions.append(LogEvent("offers_changed", attributes=attributes))
        if change.dropped and change.dropped != self._dropped:
            first = change.dropped[0]
            attributes = {
                "count": str(len(change.dropped)),
                "offer": first.offer_id,
                "field": first.field,
                "reason": first.reason,
            }
            actions.append(LogEvent("offers_dropped", attributes=attributes))
        self._dropped = change.dropped
        return actions

    def hear(self, event: ProviderEvent, now_s: float) -> list[Action]:
        """What is to be logged; the cluster is told. Raises InvalidArgument and NotFound for a
        notice that counts for nothing."""
        said: list[Action] = []
        match event:
            case NodeGone(node_id, reason):
                self.market.ended(node_id)
                incarnation = self._cluster.view.incarnation_of(node_id)
                self._cluster.node_gone(node_id, incarnation, reason, now_s)
                self._cluster.offers_changed(now_s)
            case NodeNotice(node_id, _, kind) if kind.is_advice:
                self._cluster.advise(node_id)
            case NodeNotice(node_id, _, kind):
                self._cluster.interrupt(node_id, event.left_s(now_s), False, now_s, kind)
            case OffersChanged(offers):
                said = self.offered(offers)
                self._cluster.offers_changed(now_s)
            case LaunchFailed():
                said = self._failed(event, now_s)
        return said

    def _failed(self, failed: LaunchFailed, now_s: float) -> list[Action]:
        """That an offer refuses again and again is told once, behind the second time in a row."""
        offer_id = self.market.offer_id_of(failed.node_id)
        refusals = self.market.refused(failed.node_id, failed.retry_after_s, now_s)
        self._cluster.launch_failed(failed.node_id, failed.reason, now_s)
        if refusals != _TOLD_AT:
            return []
        pause_s = self.market.shut()[offer_id] - now_s
        attributes = {"offer": offer_id, "reason": failed.reason, "pause_s": f"{pause_s:.0f}"}
        return [LogEvent("offer_refuses", failed.node_id, attributes=attributes)]
