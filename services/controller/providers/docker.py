"""Nodes as containers, which a launcher starts, watches and ends: it holds Docker's socket, and
this process does not.

What runs is what the launcher tells: a controller that was killed between a launch and its note
finds the container by its node's name. One whose node nobody knows is ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from shuntserve.launcher.v1 import launcher_pb2 as pb

from services.common import mesh_token
from services.common.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ShuntError,
    Unavailable,
)
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.common.statuses import from_rpc_error
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    Capabilities,
    LaunchFailed,
    NodeGone,
    Offer,
    ProviderEvent,
)

_log = logging.getLogger(__name__)

NODE_ID_VARIABLE = "SHUNT_ENGINE_NODE_ID"
RETRY_AFTER_S = 5.0
"""An offer that had no capacity is left alone for this long."""
FIRST_WORD_S = 10.0
"""The controller waits so long to hear what runs; then it serves on without."""
CALL_S = 30.0
"""Of one call of the launcher, beside what an end may take."""
PAUSE_S = 0.5
"""Before the launcher is asked again."""
STRANGERS_S = 1.0
"""Between two looks for containers that nobody knows."""


class DockerProvider:
    """One container a node."""

    capabilities = Capabilities(launches=True, ends=True)

    def __init__(
        self,
        launcher: Any,
        *,
        offers: Sequence[Offer],
        environment: Callable[[Offer], Mapping[str, str]],
        known: Callable[[], Set[str] | None],
        launch_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`launcher` is its stub, `environment` gives the variables of an offer's nodes, `known`
        the nodes that the cluster knows, None until it knows them. A launcher that does not answer
        is asked again for `launch_s`."""
        self._launcher = launcher
        self._offers = {offer.offer_id: offer for offer in offers}
        self._environment = environment
        self._known = known
        self._launch_s = launch_s
        self._clock = clock
        self._containers: dict[str, pb.Container] = {}
        """By node: those that run, and those that a controller before this one knew."""
        self._ordered: dict[str, asyncio.Event] = {}
        """Launches that are on their way, and what calls them off."""
        self._early: dict[str, pb.Ended] = {}
        """Ends that were heard of before their launch was answered, by node."""
        self._leaving: set[str] = set()
        """Nodes that are to end, whatever came of their launch."""
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._heard = asyncio.Event()
        """It is known what runs."""
        self._events: asyncio.Queue[ProviderEvent | None] = asyncio.Queue()

    # The seam

    def offers(self) -> tuple[Offer, ...]:
        return tuple(self._offers.values())

    async def launch(self, node_id: str, offer: Offer) -> str:
        if node_id in self._containers:
            return self._containers[node_id].container_id
        if node_id in self._ordered:
            return ""
        if offer.offer_id not in self._offers:
            self._launch_failed(node_id, "no such offer")
            return ""
        called_off = self._ordered[node_id] = asyncio.Event()
        try:
            container = await self._launched(node_id, offer, called_off)
        except ShuntError as error:
            self._early.pop(node_id, None)
            self._refused(node_id, error)
            return ""
        finally:
            del self._ordered[node_id]
        self._containers[node_id] = container
        early = self._early.pop(node_id, None)
        if early is not None and early.container == container:
            self._gone(container, early.reason)
        elif called_off.is_set():
            self._launch_failed(node_id, "called off")
            self._leaving.add(node_id)
            self._end(node_id)
            return ""
        return container.container_id

    async def adopt(self, node_id: str, handle: str) -> bool:
        if node_id in self._containers:
            return True
        if self._heard.is_set():
            return False
        self._containers[node_id] = pb.Container(container_id=handle, node_id=node_id)
        return True

    async def recognise(self, facts: NodeFacts) -> str:
        container, told = self._containers.get(facts.node_id), facts.machine.instance_id
        if container is None:
            return ""
        if told is not None and told != container.container_id:
            raise PermissionDenied("another container has this node's name", field="node_id")
        return container.container_id

    def offer_of(self, node_id: str) -> str:
        container = self._containers.get(node_id)
        return "" if container is None else container.offer_id

    def holds(self, node_id: str) -> bool:
        return node_id in self._containers or node_id in self._ordered

    async def terminate(self, node_id: str, grace_s: float) -> None:
        if node_id in self._ordered:
            self._ordered[node_id].set()
            return
        if node_id not in self._containers:
            raise FailedPrecondition("no container of this mesh", field="node_id")
        request = pb.EndRequest(node_id=node_id, grace_s=grace_s)
        try:
            await self._call(self._launcher.End, request, CALL_S + grace_s)
        except Unavailable:
            self._leaving.add(node_id)
            raise

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        raise FailedPrecondition("Docker takes no node away", field="node_id")

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        for called_off in self._ordered.values():
            called_off.set()
        self._events.put_nowait(None)

    # Launches and ends

    async def _launched(
        self, node_id: str, offer: Offer, called_off: asyncio.Event
    ) -> pb.Container:
        """Asks again while nobody answers: the same launch again is the same container. Raises what
        the launcher refuses with, and Unavailable, behind which something may have been started."""
        variables = {
            **self._environment(offer),
            **mesh_token.narrowed(node_id),
            NODE_ID_VARIABLE: node_id,
        }
        request = pb.LaunchRequest(node_id=node_id, offer_id=offer.offer_id, variables=variables)
        until_s = self._clock() + self._launch_s
        while True:
            try:
                reply = await self._call(self._launcher.Launch, request, CALL_S)
                container: pb.Container = reply.container
                return container
            except Unavailable:
                if self._clock() >= until_s or called_off.is_set():
                    self._leaving.add(node_id)
                    raise
            await asyncio.sleep(PAUSE_S)

    def _refused(self, node_id: str, error: ShuntError) -> None:
        if isinstance(error, ResourceExhausted):
            self._launch_failed(node_id, NO_CAPACITY, RETRY_AFTER_S)
            return
        if isinstance(error, FailedPrecondition):
            extra = {"node_id": node_id, "why": error.message}
            _log.error("the launcher refuses", extra=extra)
        self._launch_failed(node_id, error.message)

    def _launch_failed(self, node_id: str, reason: str, retry_after_s: float = 0.0) -> None:
        self._events.put_nowait(LaunchFailed(node_id, reason, retry_after_s))

    def _end(self, node_id: str) -> None:
        """Ends what nobody waits for; what is not ended now is at the next look."""
        if node_id not in self._ends:
            task = asyncio.create_task(self._ended(node_id))
            self._ends[node_id] = task
            task.add_done_callback(lambda _: self._ends.pop(node_id))

    async def _ended(self, node_id: str) -> None:
        try:
            await self._call(self._launcher.End, pb.EndRequest(node_id=node_id), CALL_S)
        except NotFound:
            self._leaving.discard(node_id)
        except ShuntError as error:
            extra = {"node_id": node_id, "why": error.message}
            _log.warning("container not ended", extra=extra)

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        """Raises what the launcher answered."""
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    # Watching

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens to the launcher inside the block."""
        async with asyncio.TaskGroup() as tasks:
            works = [tasks.create_task(work) for work in self._works()]
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_WORD_S):
                    await self._heard.wait()
            try:
                yield
            finally:
                for work in (*works, *self._ends.values()):
                    work.cancel()

    def _works(self) -> Sequence[Coroutine[None, None, None]]:
        return self._listen(), self._mind_strangers()

    async def _listen(self) -> None:
        told = ""
        while True:
            call = self._launcher.Watch(pb.WatchRequest())
            try:
                async for message in call:
                    told = ""
                    self._hear(message)
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error).message
                if why != told:
                    _log.warning("the launcher is not heard", extra={"why": why})
                told = why
            finally:
                call.cancel()
            await asyncio.sleep(PAUSE_S)

    def _hear(self, message: pb.WatchResponse) -> None:
        match message.WhichOneof("said"):
            case "running":
                self._look(message.running.containers)
            case "started":
                self._runs(message.started)
            case "ended":
                if message.ended.container.node_id in self._ordered:
                    self._early[message.ended.container.node_id] = message.ended
                self._gone(message.ended.container, message.ended.reason)

    def _look(self, running: Sequence[pb.Container]) -> None:
        seen = {one.container_id for one in running}
        for one in list(self._containers.values()):
            if one.container_id not in seen and one.node_id not in self._ordered:
                self._gone(one, "its container is not to be found any more")
        for one in running:
            self._runs(one)
        self._heard.set()

    def _runs(self, container: pb.Container) -> None:
        if container.node_id not in self._ordered:  # its answer is awaited
            self._containers[container.node_id] = container

    def _gone(self, container: pb.Container, reason: str) -> None:
        node_id, known = container.node_id, self._containers.get(container.node_id)
        if known is not None and known.container_id == container.container_id:
            del self._containers[node_id]
            self._leaving.discard(node_id)
            self._events.put_nowait(NodeGone(node_id, reason))

    async def _mind_strangers(self) -> None:
        while True:
            known = self._known()
            for node_id in list(self._containers):
                stranger = known is not None and node_id not in known
                if stranger or node_id in self._leaving:
                    if stranger:
                        _log.warning("nobody knows this container", extra={"node_id": node_id})
                    self._end(node_id)
            await asyncio.sleep(STRANGERS_S)
