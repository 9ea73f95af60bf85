"""The seam to whoever starts and ends nodes: local processes, containers, a cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from services.common.errors import FailedPrecondition
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    Capabilities,
    LaunchFailed,
    Offer,
    ProviderEvent,
)


class Provider(Protocol):
    """A market of nodes: it offers, launches, watches and ends them.

    A handle is whatever finds a node again after the controller restarted; it is journaled.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def offers(self) -> tuple[Offer, ...]:
        """What is to be had now; what comes later is told by events."""
        ...

    async def launch(self, node_id: str, offer: Offer) -> str:
        """Starts a node, its id new for every launch, and watches it; returns its handle. Empty
        when there is none, because nodes come by themselves or because nothing came of it:
        LaunchFailed says why, and nothing is raised."""
        ...

    async def adopt(self, node_id: str, handle: str) -> bool:
        """Watches a node launched before a restart; False when it no longer lives."""
        ...

    async def recognise(self, facts: NodeFacts) -> str:
        """The handle of what registered as a node; empty when it is not one of ours.

        It finds nodes whose launch took effect although its handle was never journaled. Raises
        PermissionDenied when the node is another process, or on another machine.
        """
        ...

    def offer_of(self, node_id: str) -> str:
        """The id of the offer that a node it holds was launched from; empty when it has none."""
        ...

    def holds(self, node_id: str) -> bool:
        """Whether `terminate` can end the node."""
        ...

    async def terminate(self, node_id: str, grace_s: float) -> None:
        """Ends a node: asked to stop, then killed after `grace_s`; at once when that is zero.

        An unknown node is none of ours: raises FailedPrecondition.
        """
        ...

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        """Takes a node away in `notice_s`, and says so at once by NodeNotice; of several notices
        the earliest counts, and only such a one is told. Raises FailedPrecondition for a node it
        does not hold, and where `capabilities` says that it gives none."""
        ...

    def events(self) -> AsyncIterator[ProviderEvent]:
        """What happens to nodes and offers, as soon as it is known; one consumer."""
        ...

    async def close(self) -> None:
        """Stops watching; the nodes live on."""
        ...


class ExternalProvider:
    """Nodes come and go by themselves; nobody offers or ends them here."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[ProviderEvent | None] = asyncio.Queue()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def offers(self) -> tuple[Offer, ...]:
        return ()

    async def launch(self, node_id: str, offer: Offer) -> str:
        self._events.put_nowait(LaunchFailed(node_id, "nodes come by themselves"))
        return ""

    async def adopt(self, node_id: str, handle: str) -> bool:
        return True

    async def recognise(self, facts: NodeFacts) -> str:
        return ""

    def offer_of(self, node_id: str) -> str:
        return ""

    def holds(self, node_id: str) -> bool:
        return False

    async def terminate(self, node_id: str, grace_s: float) -> None:
        raise FailedPrecondition("nodes of an external provider cannot be ended", field="node_id")

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        raise FailedPrecondition("an external provider takes no node away", field="node_id")

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        self._events.put_nowait(None)
