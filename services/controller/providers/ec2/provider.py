"""Nodes on EC2: bought from its pools, known by their tags, watched by looking and by listening.

What runs is what EC2 describes, and not what was noted: a controller that was killed between an
order and its note finds the instance by its tags. An instance that carries the mesh's tag and is no
node of it is ended; one that does not carry it is nothing to us.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Set
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from services.common import mesh_token
from services.common.errors import (
    FailedPrecondition,
    PermissionDenied,
    ShuntError,
)
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    Capabilities,
    LaunchFailed,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.complaints import Complaints
from services.controller.providers.ec2.failures import Matter, Refusal
from services.controller.providers.ec2.hands import Hands
from services.controller.providers.ec2.holdings import Gone, Holdings
from services.controller.providers.ec2.inventory import MESH_TAG, instances_of
from services.controller.providers.ec2.memory import Memory
from services.controller.providers.ec2.messages import Heard, Message, Said
from services.controller.providers.ec2.offers import as_cheap, offers_of
from services.controller.providers.ec2.orders import client_token, fleet, tags_of, user_data
from services.controller.providers.ec2.queue import Queue
from services.controller.providers.ec2.region import RegionView
from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

NODE_ID_VARIABLE = "SHUNT_NODE_ID"
FIRST_LOOK_S = 10.0
"""The controller waits so long for a first look; then it serves on without."""
LEAST_LOOK_S = 0.5
"""Between two looks, whatever is heard."""
SECONDS_PER_HOUR = 3600.0


class Ec2Provider:
    """One instance a node."""

    capabilities = Capabilities(launches=True, ends=True)

    def __init__(
        self,
        settings: Ec2Settings,
        *,
        ec2: Calls,
        queue: Queue | None,
        region: str,
        memory: Memory,
        environment: Callable[[Offer], Mapping[str, str]],
        plan: Callable[[], int],
        known: Callable[[], Set[str] | None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`environment` gives the variables of an offer's nodes, `plan` the number of the plan that
        is carried out, `known` the nodes that the cluster knows, None until it knows them."""
        self._settings = settings
        self._ec2 = ec2
        self._queue = queue
        self._region_name = region
        self._memory = memory
        self._environment = environment
        self._plan = plan
        self._known = known
        self._clock = clock
        self._wall_clock = wall_clock
        self._table = settings.table
        self._holdings = Holdings(
            self._table, settings.bounds, consistency_s=settings.consistency_s
        )
        self._hands = Hands(ec2, self._holdings, mesh=settings.mesh, clock=clock)
        self._region = RegionView(ec2, list(self._table.types), settings.subnet_ids)
        self._complaints = Complaints(_log)
        self._heard = Heard()
        self._interrupted: set[str] = set()
        """Instances whose notice was counted."""
        self._offers: tuple[Offer, ...] = ()
        self._waiting: dict[str, asyncio.Event] = {}
        """Launches that wait until it is known what runs, and what calls them off."""
        self._looked = Signal()
        self._asked = asyncio.Event()
        """What there is to be had was asked for."""
        self._worth_a_look = asyncio.Event()
        self._looked_s: float | None = None
        self._events: asyncio.Queue[ProviderEvent | None] = asyncio.Queue()

    # The seam

    def offers(self) -> tuple[Offer, ...]:
        return self._offers

    async def launch(self, node_id: str, offer: Offer) -> str:
        if self._holdings.holds(node_id):
            return self._holdings.instance_id_of(node_id)
        if node_id in self._waiting or not await self._may_order(node_id):
            return ""
        try:
            arguments = self._fleet(node_id, offer)
            dollars = self._table.dollars_per_hour(offer.instance_type)
            started = await self._hands.start(node_id, offer.offer_id, dollars, arguments)
        except Refusal as refusal:
            self._refused(node_id, refusal)
            return ""
        except ShuntError as error:
            self._launch_failed(node_id, error.message)
            return ""
        self._complaints.over("launch")
        if self._holdings.is_called_off(node_id):
            self._launch_failed(node_id, "called off")
            await self._end(dict.fromkeys(started, "its order was called off"))
            return ""
        self._worth_a_look.set()
        for instance_id in started:
            self._hear_early(instance_id)
        return started[0]

    async def adopt(self, node_id: str, handle: str) -> bool:
        self._holdings.adopt(node_id, handle, self._clock())
        return True

    async def recognise(self, facts: NodeFacts) -> str:
        node, told = self._holdings.instance_id_of(facts.node_id), facts.machine.instance_id
        if node and told is not None and told != node:
            raise PermissionDenied("another instance has this node's name", field="node_id")
        named = self._holdings.instance_ids_of(facts.node_id)
        return told if told is not None and told in named else node

    def offer_of(self, node_id: str) -> str:
        return self._holdings.offer_of(node_id)

    def holds(self, node_id: str) -> bool:
        return node_id in self._waiting or self._holdings.holds(node_id)

    async def terminate(self, node_id: str, grace_s: float) -> None:
        if node_id in self._waiting:
            self._waiting[node_id].set()
            return
        if not self._holdings.holds(node_id):
            raise FailedPrecondition("no instance of this mesh", field="node_id")
        self._holdings.call_off(node_id)
        if ids := self._holdings.instance_ids_of(node_id):
            await self._hands.end(ids, at_once=grace_s == 0)
            self._worth_a_look.set()

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        raise FailedPrecondition("EC2 takes no node away when it is asked to", field="node_id")

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        for waiting in self._waiting.values():
            waiting.set()
        self._events.put_nowait(None)

    # Orders

    async def _may_order(self, node_id: str) -> bool:
        """Waits until it is known what runs; False where the order is called off meanwhile."""
        called_off = self._waiting[node_id] = asyncio.Event()
        try:
            while not self._holdings.is_open and not called_off.is_set():
                looked = asyncio.ensure_future(self._looked.wait())
                off = asyncio.ensure_future(called_off.wait())
                try:
                    await asyncio.wait((looked, off), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    looked.cancel()
                    off.cancel()
        finally:
            del self._waiting[node_id]
        if called_off.is_set():
            self._launch_failed(node_id, "called off")
        return not called_off.is_set()

    def _fleet(self, node_id: str, offer: Offer) -> dict[str, object]:
        """Raises InvalidArgument."""
        variables = {
            **self._environment(offer),
            **mesh_token.narrowed(node_id),
            NODE_ID_VARIABLE: node_id,
        }
        return fleet(
            as_cheap(offer, self._offers, self._settings.price_slack),
            self._region.seen.subnets,
            self._settings.template,
            token=client_token(self._memory.run, node_id),
            tags=tags_of(self._settings.mesh, node_id, offer.offer_id, self._plan()),
            user_data=user_data(variables, self._settings.node_config),
        )

    def _refused(self, node_id: str, refusal: Refusal) -> None:
        if refusal.matter is not Matter.CAPACITY:
            self._complaints.about("launch", refusal)
        if refusal.in_doubt:
            self._worth_a_look.set()  # something may have been started: looks will show
        elif refusal.matter is Matter.CAPACITY:
            self._launch_failed(node_id, NO_CAPACITY, self._settings.capacity_pause_s)
        elif refusal.matter is Matter.OPERATOR:
            self._launch_failed(node_id, refusal.message, self._settings.operator_pause_s)
        else:
            self._launch_failed(node_id, refusal.message)

    def _launch_failed(self, node_id: str, reason: str, retry_after_s: float = 0.0) -> None:
        self._events.put_nowait(LaunchFailed(node_id, reason, retry_after_s))

    # Watching

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks and listens inside the block."""
        async with asyncio.TaskGroup() as tasks:
            works = [
                tasks.create_task(self._watch_market()),
                tasks.create_task(self._watch_instances()),
            ]
            if self._queue is not None:
                works.append(tasks.create_task(self._queue.listen(self._hear, self._complaints)))
            looked = asyncio.ensure_future(self._looked.wait())
            asked = asyncio.ensure_future(self._asked.wait())
            _, late = await asyncio.wait((looked, asked), timeout=FIRST_LOOK_S)
            for one in late:
                one.cancel()
            try:
                yield
            finally:
                for work in works:
                    work.cancel()

    async def _watch_market(self) -> None:
        asked_s: float | None = None
        region, seldom_s = self._region, self._settings.score_s or SECONDS_PER_HOUR
        while True:
            now_s = self._clock()
            if asked_s is None or now_s >= asked_s + seldom_s:
                zones = await self._try("zones", region.look_at_zones())
                if self._settings.score_s:
                    await self._try("scores", region.look_at_scores(self._region_name))
                asked_s = now_s if zones else None
                self._keep()
            now = datetime.fromtimestamp(self._wall_clock(), UTC)
            await self._try("prices", region.look_at_prices(now))
            self._offer()
            self._asked.set()
            await asyncio.sleep(self._settings.price_s)

    async def _try(self, what: str, work: Coroutine[None, None, None]) -> bool:
        """Whether it went well; where not, it is told once."""
        try:
            await work
        except Refusal as refusal:
            self._complaints.about(what, refusal)
            return False
        self._complaints.over(what)
        return True

    def _offer(self) -> None:
        offers = offers_of(self._table, self._region.seen, self._memory.hazards)
        if offers != self._offers:
            self._offers = offers
            self._events.put_nowait(OffersChanged(offers))

    async def _watch_instances(self) -> None:
        while True:
            self._worth_a_look.clear()
            await self._try("look", self._look())
            await asyncio.sleep(min(LEAST_LOOK_S, self._settings.look_s))
            pause_s = self._settings.look_s
            if not self._holdings.is_open:
                pause_s = min(pause_s, self._settings.consistency_s)
            with suppress(TimeoutError):  # wait_for would lose a cancellation that comes with it
                async with asyncio.timeout(pause_s):
                    await self._worth_a_look.wait()

    async def _look(self) -> None:
        """Raises Refusal."""
        begun_s = self._clock()
        pages = await self._ec2.pages(
            "describe_instances",
            Filters=[{"Name": f"tag:{MESH_TAG}", "Values": [self._settings.mesh]}],
        )
        mesh, zone_ids = self._settings.mesh, self._region.zone_ids
        seen = [one for page in pages for one in instances_of(page, mesh, zone_ids)]
        looked = self._holdings.looked(seen, begun_s, self._known())
        self._remember(begun_s)
        for one in looked.gone:
            self._gone(one)
        for node_id in looked.came_to_nothing:
            self._launch_failed(node_id, "EC2 never answered, and nothing was started")
        self._interrupted.intersection_update(one.instance_id for one in seen)
        for instance in seen:
            self._hear_early(instance.instance_id)
        self._looked.fire()
        if looked.to_end:
            await self._end(looked.to_end)

    def _remember(self, now_s: float) -> None:
        before_s, self._looked_s = self._looked_s, now_s
        if before_s is not None:
            hours = (now_s - before_s) / SECONDS_PER_HOUR
            self._memory.hazards.lived(self._holdings.on_spot(), hours)

    def _gone(self, gone: Gone) -> None:
        if gone.interrupted is not None:
            self._interruption(gone.interrupted.instance_id, gone.interrupted.pool.name)
        self._events.put_nowait(NodeGone(gone.node_id, gone.reason))

    async def _end(self, reasons: Mapping[str, str]) -> None:
        """Ends instances, each for its reason; what is not ended now is at the next look."""
        for instance_id, reason in reasons.items():
            _log.warning("instance is ended", extra={"instance": instance_id, "why": reason})
        try:
            await self._try("end", self._ended(tuple(reasons)))
        except FailedPrecondition as error:
            _log.info("instances not ended", extra={"why": error.message})

    async def _ended(self, instance_ids: tuple[str, ...]) -> None:
        """Raises Refusal and FailedPrecondition."""
        await self._hands.end(instance_ids, at_once=False)

    # Listening

    def _hear(self, message: Message) -> None:
        """A message of the queue."""
        if self._heard.is_new(message):
            self._heed(message)

    def _heed(self, message: Message) -> None:
        node_id = self._holdings.node_of(message.instance_id)
        if not node_id:
            self._heard.keep(message)
            return
        now_s, wall_s = self._clock(), self._wall_clock()
        match message.said:
            case Said.INTERRUPTION:
                instance = self._holdings.instance_of(node_id)
                if instance is not None:
                    self._interruption(instance.instance_id, instance.pool.name)
                deadline_s = now_s + max(0.0, message.at_s - wall_s)
                self._events.put_nowait(NodeNotice(node_id, deadline_s, NoticeKind.SPOT))
            case Said.REBALANCE:
                self._events.put_nowait(NodeNotice(node_id, now_s, NoticeKind.REBALANCE))
            case Said.STATE:
                self._worth_a_look.set()

    def _hear_early(self, instance_id: str) -> None:
        """What was said of it before it was known."""
        if self._holdings.node_of(instance_id) and (message := self._heard.kept(instance_id)):
            self._heed(message)

    def _interruption(self, instance_id: str, pool: str) -> None:
        """Counts once, however it is heard of."""
        if instance_id not in self._interrupted:
            self._interrupted.add(instance_id)
            self._memory.hazards.interrupted(pool)
            self._keep()

    def _keep(self) -> None:
        try:
            self._memory.keep()
        except OSError as error:
            _log.error("what was seen of interruptions is not kept", extra={"why": error.strerror})
