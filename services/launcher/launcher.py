"""Launches the containers of a mesh's engines, watches them, and ends them.

What runs is what Docker shows, and not what was noted: a launcher that starts anew finds its
containers by their label. A node's container has the node's name, which Docker gives once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from services.common.errors import NotFound, ShuntError, Unavailable
from services.launcher.core.containers import Container
from services.launcher.core.holdings import Holdings
from services.launcher.core.pattern import Order, body_of, device_for, name_of
from services.launcher.hands import Hands
from services.launcher.settings import LauncherSettings

_log = logging.getLogger(__name__)

INSIST_S = 0.5
"""An engine that is ended is asked again after this long."""
KILLED_WITHIN_S = 10.0
LEAVE_GRACE_S = 1.0
"""For engines whose mesh is taken down."""
REMEMBERED = 256
"""Containers that have ended: Docker's events of a moment ago are heard again after a look."""
MAX_UNHEARD = 10_000
"""Messages that a watcher may be behind; then it hears anew what runs."""


@dataclass(frozen=True, slots=True)
class Started:
    container: Container


@dataclass(frozen=True, slots=True)
class Ended:
    container: Container
    reason: str


@dataclass(frozen=True, slots=True)
class Running:
    containers: tuple[Container, ...]


Said = Started | Ended | Running


class Launcher:
    """Of one compose project."""

    def __init__(self, settings: LauncherSettings, hands: Hands) -> None:
        self._settings = settings
        self._hands = hands
        self._holdings = Holdings(settings.max_containers)
        self._launches: dict[str, asyncio.Task[Container]] = {}
        self._burials: dict[str, asyncio.Task[None]] = {}
        self._over: deque[str] = deque(maxlen=REMEMBERED)
        self._ends: dict[str, asyncio.Event] = {}
        """What waits for a container's end."""
        self._watchers: set[asyncio.Queue[Said]] = set()
        self.looked = asyncio.Event()
        """It is known what runs."""

    # What callers ask for

    async def launch(self, node_id: str, offer_id: str, variables: Mapping[str, str]) -> Container:
        """Starts a node's container; goes on where its caller does not wait. Raises
        InvalidArgument, FailedPrecondition, ResourceExhausted beyond the bound, and Unavailable."""
        order = Order(node_id, offer_id, variables)
        order.check()
        self._check_known()
        running = self._holdings.of_node(node_id)
        if running is not None:
            return running
        if node_id not in self._launches:
            task = asyncio.create_task(self._launch(order))
            self._launches[node_id] = task
            task.add_done_callback(lambda _: self._launches.pop(node_id))
        return await asyncio.shield(self._launches[node_id])

    async def end(self, node_id: str, grace_s: float) -> None:
        """Returns when the node's container has ended. Raises NotFound where it has none, and
        Unavailable."""
        self._check_known()
        if node_id in self._launches:
            with suppress(ShuntError):
                await asyncio.shield(self._launches[node_id])
        container = self._holdings.of_node(node_id)
        if container is None:
            raise NotFound("no container of this mesh", field="node_id")
        await self._end(container, grace_s)

    async def watch(self) -> AsyncIterator[Said]:
        """What runs, then what happens."""
        self._check_known()
        heard: asyncio.Queue[Said] = asyncio.Queue(MAX_UNHEARD)
        self._watchers.add(heard)
        try:
            yield Running(self._holdings.running)
            while True:
                yield await heard.get()
        finally:
            self._watchers.discard(heard)

    # Its life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watches Docker inside the block. Where the mesh is taken down, its engines end with it:
        their pattern is gone by then, for it needs the launcher."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch_docker())
            try:
                yield
                await self._leave()
            finally:
                watching.cancel()

    async def _leave(self) -> None:
        await asyncio.gather(*self._launches.values(), return_exceptions=True)
        try:
            await self._hands.pattern(self._settings.pattern)
        except NotFound:
            left = self._holdings.running
            _log.info("the mesh is taken down", extra={"containers": len(left)})
            ends = [self._end(one, LEAVE_GRACE_S) for one in left]
            await asyncio.gather(*ends, return_exceptions=True)
            await asyncio.gather(*self._burials.values(), return_exceptions=True)
        except ShuntError as error:
            _log.warning("engines are left alone", extra={"why": error.message})

    def _check_known(self) -> None:
        if not self.looked.is_set():
            raise Unavailable("what runs is not known yet")

    # Launches and ends

    async def _launch(self, order: Order) -> Container:
        pattern = await self._hands.pattern(self._settings.pattern)
        device = device_for(pattern, self._holdings.devices)
        self._holdings.order(order.node_id, device)
        try:
            mesh = self._settings.project
            body = body_of(pattern, order, mesh=mesh, device=device)
            container = await self._hands.start(name_of(mesh, order.node_id), body)
        finally:
            self._holdings.settled(order.node_id)
        self._started(container)
        return container

    async def _end(self, container: Container, grace_s: float) -> None:
        ended = self._ends.setdefault(container.container_id, asyncio.Event())
        steps = [("SIGKILL", KILLED_WITHIN_S)]
        if grace_s > 0:  # the second ends who would serve on
            first_s = min(INSIST_S, grace_s)
            steps = [("SIGTERM", first_s), ("SIGTERM", grace_s - first_s), *steps]
        for signal, wait_s in steps:
            if not await self._hands.signal(container, signal):
                self._bury(container)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), wait_s)
                return
        raise Unavailable("the container has not ended yet")

    # What Docker says

    async def _watch_docker(self) -> None:
        told = ""
        while True:
            try:
                async with aclosing(self._hands.events()) as events:
                    await self._look()
                    told = ""
                    async for action, container in events:
                        self._hear(action, container)
            except ShuntError as error:
                if error.message != told:
                    _log.error("Docker is not to be watched", extra={"why": error.message})
                told = error.message
            await asyncio.sleep(self._settings.retry_s)

    def _hear(self, action: str, container: Container) -> None:
        if action == "die":
            self._bury(container)
        else:
            self._started(container)

    async def _look(self) -> None:
        known = self._holdings.running
        live, over = await self._hands.look()
        for one in self._holdings.looked(live, known):
            self._gone(one, "its container is not to be found any more")
        for one in over:
            if not self._holdings.is_ordered(one.node_id):
                self._bury(one)
        self.looked.set()
        self._tell(Running(self._holdings.running))

    def _started(self, container: Container) -> None:
        if container.container_id in self._over:
            return  # it ended before that was heard of
        if self._holdings.started(container):
            _log.info("container started", extra={"node_id": container.node_id})
            self._tell(Started(container))

    def _bury(self, container: Container) -> None:
        """Once, however often its end is heard of."""
        container_id = container.container_id
        if container_id not in self._burials:
            task = asyncio.create_task(self._buried(container))
            self._burials[container_id] = task
            task.add_done_callback(lambda _: self._burials.pop(container_id))

    async def _buried(self, container: Container) -> None:
        try:
            reason = await self._hands.bury(container)
        except ShuntError as error:
            reason = f"it ended, and nobody knows why: {error.message}"
        self._gone(container, reason)

    def _gone(self, container: Container, reason: str) -> None:
        self._over.append(container.container_id)
        if self._holdings.ended(container.container_id) is not None:
            extra = {"node_id": container.node_id, "reason": reason}
            _log.info("container ended", extra=extra)
            self._tell(Ended(container, reason))
        if ended := self._ends.pop(container.container_id, None):
            ended.set()

    def _tell(self, said: Said) -> None:
        for heard in self._watchers:
            if heard.full():
                while not heard.empty():
                    heard.get_nowait()
                said = Running(self._holdings.running)
            heard.put_nowait(said)
