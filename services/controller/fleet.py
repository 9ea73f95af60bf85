"""The nodes as their provider has them: offered, launched, given notice, found again, ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShuntError,
    Unavailable,
)
from services.common.nodes import NodeFacts
from services.controller.core.cluster.actions import (
    Action,
    LaunchNode,
    LogEvent,
    NodeState,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    OVER_BUDGET,
    Dropped,
    LaunchFailed,
    NodeGone,
    NodeNotice,
    NoticeKind,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.core.cluster.notices import SAME_NOTICE_S
from services.controller.providers.provider import Provider
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

HANDLE_PREFIX = "handle/"
_NOTICED_WITHIN_S = 5.0
"""A provider that is to give notice does so."""
_OFFERS_NAMED = 8
"""Of those that changed, in one event."""


class Fleet:
    """Asks the provider for what the cluster core wants, and tells the core what it says."""

    def __init__(
        self,
        cluster: Cluster,
        provider: Provider,
        *,
        terminate_grace_s: float,
        shun_offer_s: float,
        submit: Callable[[Sequence[Action]], object],
        stir: Callable[[], object],
        gone: Callable[[str, str], None],
        note: Callable[[str, str | None], None],
        clock: Callable[[], float],
    ) -> None:
        """`submit` has actions carried out, `stir` has the core asked what comes of an event,
        `gone` hears which node has ended and why, `note` makes the newest value of a note durable;
        None deletes it."""
        self.market = cluster.market
        self._cluster = cluster
        self._provider = provider
        self._terminate_grace_s = terminate_grace_s
        self._shun_offer_s = shun_offer_s
        self._dropped: tuple[Dropped, ...] = ()
        """What was wrong with the offers, the last time."""
        self._submit = submit
        self._stir = stir
        self._gone = gone
        self._note = note
        self._clock = clock
        self._told = Signal()
        """The provider said something, and it was heard."""

    # At the start

    def open(self) -> None:
        """The market as it is now."""
        self._submit(self._offers_are(self._provider.offers()))

    async def adopt(self, saved: Mapping[str, str]) -> None:
        """Finds the nodes launched before a restart; those that died meanwhile are gone."""
        for key, handle in saved.items():
            if not key.startswith(HANDLE_PREFIX):
                continue
            node_id = key.removeprefix(HANDLE_PREFIX)
            if await self._provider.adopt(node_id, handle):
                self.market.found(node_id, self._provider.offer_of(node_id))
            else:
                self._gone(node_id, "ended while the controller was away")

    def give_notices_again(self) -> None:
        """Notices that were given before a restart: who gave them has forgotten, too."""
        if not self._provider.capabilities.gives_notice:
            return
        for node_id, deadline_s in self._cluster.deadlines_s().items():
            if self._provider.holds(node_id):
                left_s = max(0.0, deadline_s - self._clock())
                self._provider.give_notice(node_id, left_s, NoticeKind.OPERATOR)

    # What is asked of the provider

    async def recognise(self, node_id: str, pid: int) -> str:
        """The handle of a process that registers as a node; empty when it is not one of ours.
        Raises PermissionDenied."""
        return await self._provider.recognise(node_id, pid)

    def believed(self, facts: NodeFacts, handle: str) -> NodeFacts:
        """What a process that registers says of its node: a provider that declares may have told a
        node of its own what that is, and nobody else may."""
        if handle and self._provider.capabilities.declares:
            return facts
        return replace(facts, machine=facts.machine.found_alone())

    def found(self, node_id: str, handle: str) -> None:
        """A process that registered is the provider's."""
        if handle:
            self._note(HANDLE_PREFIX + node_id, handle)
            self.market.found(node_id, self._provider.offer_of(node_id))

    def forget(self, node_id: str) -> None:
        """Its process is no more."""
        self._note(HANDLE_PREFIX + node_id, None)

    async def launch(self, action: LaunchNode) -> None:
        """Starts a node, from the offer that is named or from what is offered of its shape."""
        node_id = action.node_id
        offer = self.market.named(action.offer_id, action.shape, self._clock())
        if offer is None:
            self._launch_failed(LaunchFailed(node_id, NO_CAPACITY))
            return
        if not self.market.affords(offer.offer_id, self._cluster.settings.budget_per_hour):
            self._launch_failed(LaunchFailed(node_id, OVER_BUDGET))
            return
        self.market.launch(node_id, offer.offer_id)
        if handle := await self._provider.launch(node_id, offer):
            self._note(HANDLE_PREFIX + node_id, handle)

    async def terminate(self, action: TerminateNode) -> None:
        """Ends a node; that it cannot be ended is logged."""
        grace_s = 0.0 if action.kill else self._terminate_grace_s
        try:
            await self._provider.terminate(action.node_id, grace_s)
        except ShuntError as error:
            _log.info("node not ended", extra={"node_id": action.node_id, "why": error.message})
        if action.kill:
            self.market.ended(action.node_id)  # whatever its provider says of it, or does not

    def shun(self, node_id: str) -> None:
        """The offer that a node was launched from did not keep its word."""
        self.market.shun(node_id, self._shun_offer_s, self._clock())

    def compared(self, facts: NodeFacts) -> list[Action]:
        """A node that is not what was offered serves as what it is; its offer is left alone for a
        while."""
        offer = self.market.offer(self.market.offer_id_of(facts.node_id))
        if offer is None:
            return []
        found_type = facts.machine.instance_type or offer.instance_type
        if (offer.shape, offer.instance_type) == (facts.shape, found_type):
            return []
        attributes = {
            "offer": offer.offer_id,
            "offered": f"{offer.instance_type}, {offer.shape}",
            "found": f"{found_type}, {facts.shape}",
        }
        return [LogEvent("node_differs", facts.node_id, "", attributes), ShunOffer(facts.node_id)]

    async def end(self) -> None:
        """Ends every node the provider launched."""
        ends = [self.terminate(TerminateNode(node.node_id)) for node in self._cluster.nodes_view()]
        await asyncio.gather(*ends)

    async def interrupt(self, node_id: str, notice_s: float, kill: bool) -> None:
        """A node will be taken away, or is to be killed now. A provider that can is told to do so,
        and gives the notice itself. Raises NotFound, FailedPrecondition for a node that nobody here
        can kill, and Unavailable when the provider gives no notice."""
        holds = self._provider.holds(node_id)
        if kill and self._lives(node_id) and not holds:
            raise FailedPrecondition(
                "the node was not started by this controller's provider", field="node_id"
            )
        if self._provider.capabilities.gives_notice and holds and not kill:
            deadline_s = self._clock() + notice_s
            self._provider.give_notice(node_id, notice_s, NoticeKind.OPERATOR)
            await self._until_noticed(node_id, deadline_s)
        else:
            self._cluster.interrupt(node_id, notice_s, kill, self._clock())
            self._stir()

    async def _until_noticed(self, node_id: str, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(_NOTICED_WITHIN_S):
                while self._lives(node_id) and not self._goes_by(node_id, deadline_s):
                    await self._told.wait()
        except TimeoutError:
            raise Unavailable("the provider has given no notice yet") from None

    def _goes_by(self, node_id: str, deadline_s: float) -> bool:
        known_s = self._cluster.deadlines_s().get(node_id)
        return known_s is not None and known_s <= deadline_s + SAME_NOTICE_S

    def _lives(self, node_id: str) -> bool:
        node = self._cluster.node_view(node_id)
        return node is not None and node.state is not NodeState.LOST

    # What the provider says

    async def watch(self) -> None:
        """Hears the provider until cancelled."""
        async for event in self._provider.events():
            self._hear(event)
            self._told.fire()

    def _hear(self, event: ProviderEvent) -> None:
        match event:
            case NodeGone(node_id, reason):
                self.market.ended(node_id)
                self._gone(node_id, reason)
                self._cluster.offers_changed(self._clock())
            case NodeNotice():
                self._noticed(event)
            case OffersChanged(offers):
                self._submit(self._offers_are(offers))
                self._cluster.offers_changed(self._clock())
            case LaunchFailed():
                self._launch_failed(event)
        self._stir()

    def _noticed(self, notice: NodeNotice) -> None:
        now_s = self._clock()
        try:
            left_s = notice.left_s(now_s)
            self._cluster.interrupt(notice.node_id, left_s, False, now_s)
        except (InvalidArgument, NotFound) as error:
            told = {"node_id": notice.node_id, "why": error.message}
            _log.warning("a notice counts for nothing", extra=told)

    def _launch_failed(self, failed: LaunchFailed) -> None:
        now_s = self._clock()
        self.market.refused(failed.node_id, failed.retry_after_s, now_s)
        self._cluster.launch_failed(failed.node_id, failed.reason, now_s)
        self._stir()

    def _offers_are(self, offers: Sequence[Offer]) -> list[Action]:
        """Takes the provider's offers; what is wrong with them is logged."""
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
