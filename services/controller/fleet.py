"""The nodes as their provider has them: offered, launched, given notice, found again, ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from services.common.errors import FailedPrecondition, ShuntError, Unavailable
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import (
    Action,
    LaunchNode,
    NodeState,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.dealer import Dealer
from services.controller.core.cluster.market import Market, NodeGone, ProviderEvent
from services.controller.core.cluster.notices import SAME_NOTICE_S
from services.controller.providers.provider import Provider
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

HANDLE_PREFIX = "handle/"
_NOTICED_WITHIN_S = 5.0
"""A provider that is to give notice does so."""


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
        self._dealer = Dealer(cluster, shun_offer_s=shun_offer_s)
        self._cluster = cluster
        self._provider = provider
        self._terminate_grace_s = terminate_grace_s
        self._submit = submit
        self._stir = stir
        self._gone = gone
        self._note = note
        self._clock = clock
        self._told = Signal()
        """The provider said something, and it was heard."""

    @property
    def market(self) -> Market:
        """What is offered, and who runs on it."""
        return self._dealer.market

    # At the start

    def open(self) -> None:
        """The market as it is now."""
        self._submit(self._dealer.offered(self._provider.offers()))

    async def adopt(self, saved: Mapping[str, str]) -> None:
        """Finds the nodes launched before a restart; those that died meanwhile are gone."""
        for key, handle in saved.items():
            if not key.startswith(HANDLE_PREFIX):
                continue
            node_id = key.removeprefix(HANDLE_PREFIX)
            if await self._provider.adopt(node_id, handle):
                self._dealer.lives(node_id, self._provider.offer_of(node_id))
            else:
                self._gone(node_id, "ended while the controller was away")

    def give_notices_again(self) -> None:
        """Notices that were given before a restart: who gave them has forgotten, too."""
        if not self._provider.capabilities.gives_notice:
            return
        for node_id, deadline_s in self._cluster.view.deadlines_s().items():
            if self._provider.holds(node_id):
                left_s = max(0.0, deadline_s - self._clock())
                self._provider.give_notice(node_id, left_s, NoticeKind.OPERATOR)

    # What is asked of the provider

    async def recognise(self, facts: NodeFacts) -> str:
        """The handle of what registers as a node; empty when it is not one of ours. Raises
        PermissionDenied."""
        return await self._provider.recognise(facts)

    def believed(self, facts: NodeFacts, handle: str) -> NodeFacts:
        """What a process that registers says of its node: a provider that declares may have told a
        node of its own what that is, and nobody else may."""
        if handle and self._provider.capabilities.declares:
            return facts
        return replace(facts, machine=facts.machine.found_alone())

    def found(self, facts: NodeFacts, handle: str) -> list[Action]:
        """A process that registered is the provider's, if it has a handle."""
        if not handle:
            return []
        self._note(HANDLE_PREFIX + facts.node_id, handle)
        return self._dealer.found(facts, self._provider.offer_of(facts.node_id))

    def forget(self, node_id: str) -> None:
        """Its process is no more."""
        self._note(HANDLE_PREFIX + node_id, None)

    async def launch(self, action: LaunchNode) -> None:
        """Starts a node, from the offer that is named or from what is offered of its shape."""
        node_id = action.node_id
        offer = self._dealer.order(action, self._clock())
        if offer is None:
            self._stir()
        elif handle := await self._provider.launch(node_id, offer):
            self._note(HANDLE_PREFIX + node_id, handle)

    async def terminate(self, action: TerminateNode) -> None:
        """Ends a node; that it cannot be ended is logged."""
        grace_s = 0.0 if action.kill else self._terminate_grace_s
        try:
            await self._provider.terminate(action.node_id, grace_s)
        except ShuntError as error:
            _log.info("node not ended", extra={"node_id": action.node_id, "why": error.message})
            if isinstance(error, FailedPrecondition):
                self._dealer.over(action.node_id)
        if action.kill:
            self._dealer.over(action.node_id)

    def shun(self, node_id: str) -> None:
        """The offer that a node was launched from did not keep its word."""
        self._dealer.shun(node_id, self._clock())

    async def end(self) -> None:
        """Ends every node the provider launched."""
        ends = [self.terminate(TerminateNode(node.node_id)) for node in self._cluster.view.nodes()]
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
        known_s = self._cluster.view.deadlines_s().get(node_id)
        return known_s is not None and known_s <= deadline_s + SAME_NOTICE_S

    def _lives(self, node_id: str) -> bool:
        node = self._cluster.view.node(node_id)
        return node is not None and node.state is not NodeState.LOST

    # What the provider says

    async def watch(self) -> None:
        """Hears the provider until cancelled."""
        async for event in self._provider.events():
            self._hear(event)
            self._told.fire()

    def _hear(self, event: ProviderEvent) -> None:
        if isinstance(event, NodeGone):
            self._gone(event.node_id, event.reason)
        try:
            self._submit(self._dealer.hear(event, self._clock()))
        except ShuntError as error:
            told = {"event": type(event).__name__, "why": error.message}
            _log.warning("what the provider said counts for nothing", extra=told)
        self._stir()
