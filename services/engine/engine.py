"""The process as a whole: what it holds, which formation it is in, and whom it has lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import grpc

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    StaleEpoch,
    Unavailable,
)
from services.common.nodes import Member
from services.common.notices import NoticeKind
from services.common.numerics import pipeline_class
from services.engine.backend import Sampled
from services.engine.compute import Compute
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout
from services.engine.core.lead import lead_of
from services.engine.core.prefix_fetching import PrefixFetching, PrefixSettings
from services.engine.core.scheduler import SchedulerSettings
from services.engine.core.throttle import Throttle
from services.engine.counters import FORMATIONS_ENDED, Counters
from services.engine.formation import FormationPart, FormationPlace
from services.engine.head import Head
from services.engine.kv_exchange import KvExchange
from services.engine.peers import Peers
from services.engine.stages import HeldStage, Stages
from services.model.grammar import LIBRARY

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Timings and sizes, from the settings."""

    scheduler: SchedulerSettings
    progress_s: float = 2.0
    form_s: float = 8.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    core_share: float = 1.0
    prefixes: PrefixSettings = field(default_factory=PrefixSettings)


class Engine:
    """One stage worker. `lost_node_ids` are the neighbours that the last formation ended for."""

    def __init__(
        self,
        node_id: str,
        incarnation: str,
        *,
        compute: Compute,
        stages: Stages,
        head: Head,
        kv: KvExchange,
        counters: Counters,
        limits: EngineLimits,
        connect: Callable[[str], grpc.aio.Channel],
        peers: Sequence[Peers],
        silent: Callable[[Sequence[Member]], Awaitable[tuple[str, ...]]],
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.stages = stages
        self.head = head
        self.kv = kv
        self.counters = counters
        self.formation: FormationPart | None = None
        self.lost_node_ids: tuple[str, ...] = ()
        self.changed = asyncio.Event()
        """Set when a heartbeat should not wait."""
        self.departs_at_s: float | None = None
        """Told to stop, the process will have ended by then, on the clock of `depart`."""
        self.notice: NoticeKind | None = None
        """Why it departs; of one that stays, what it is advised."""
        self._free = asyncio.Event()
        self._free.set()
        self._limits = limits
        self._connect = connect
        self._peers = peers
        self._silent = silent
        self._compute = compute
        self._ending: set[asyncio.Future[None]] = set()
        self._probing = False

    @property
    def core_share(self) -> float:
        """What its steps may have of a core."""
        return self._limits.core_share

    @property
    def reported_formation_id(self) -> str:
        """The formation this process is in."""
        return self.formation.id if self.formation else ""

    async def form(self, membership: FormationPlace) -> None:
        """Joins a formation, leaving any other; a head waits until all stages stand."""
        held = self._check(membership)
        formation = self.formation
        if formation is None or formation.id != membership.formation_id:
            if formation is not None:
                formation.end()
            self.lost_node_ids = ()
            stages = [member.stage for member in membership.members]
            numerics_class = pipeline_class(held.backend.facts.numerics_class, stages)
            formation = FormationPart(
                membership,
                held.backend,
                self._compute,
                cache=self.stages.use(held, membership.kv_blocks, numerics_class),
                throttle=Throttle(self._limits.core_share),
                on_step=self.counters.stepped,
                connect=self._connect,
                on_sampled=self._sampled,
                on_end=self._ended,
            )
            self.formation = formation
            self._free.clear()
            formation.start()
            self.changed.set()
        if not membership.is_head:
            return
        try:
            async with asyncio.timeout(self._limits.form_s):
                await formation.stand()
        except TimeoutError:
            formation.end()
            raise Unavailable("the stages did not stand in time", field="members") from None
        if self.head.formation_id != formation.id:
            self._lead(formation, held)

    def dissolve(self, formation_id: str) -> None:
        """Leaves a formation; another one, or none, is no error."""
        if self.formation is not None and self.formation.id == formation_id:
            self.formation.end()

    def member_of(self, formation_id: str) -> FormationPart:
        """Raises FailedPrecondition for a formation this process is not in."""
        if self.formation is None or self.formation.id != formation_id:
            raise FailedPrecondition("not a member of this formation", field="formation_id")
        return self.formation

    def living_layout(self, formation_id: str) -> KvLayout | None:
        """How the blocks of a formation lie that this process is in."""
        formation = self.formation
        if formation is None or not formation.alive or formation.id != formation_id:
            return None
        return formation.kv_layout

    @property
    def is_needed(self) -> bool:
        """A formation needs it, or it keeps what others may fetch."""
        return self.formation is not None or self.kv.keeps_for_s > 0

    async def depart(self, departs_at_s: float, kind: NoticeKind) -> None:
        """Has the controller told that the process will end; returns when nobody needs it."""
        self.departs_at_s, self.notice = departs_at_s, kind
        self.changed.set()
        await self._free.wait()
        await asyncio.sleep(self.kv.keeps_for_s)

    def advise(self, kind: NoticeKind) -> None:
        """Has the controller told; nothing here is different for it."""
        if self.departs_at_s is None and self.notice is not kind:
            self.notice = kind
            self.changed.set()

    async def run(self) -> None:
        """Lets time pass, until cancelled."""
        while True:
            await asyncio.sleep(self.head.tick_s)
            if self.stages.drop_lost() and self.formation is not None:
                self.formation.end()
            if not self.head.tick() and not self._probing and self.formation is not None:
                self._probing = True
                self._keep(self._give_up_stuck(self.formation))
            self.kv.tick()
            self.counters.gauge(self.head.scheduler)

    async def close(self) -> None:
        """Leaves the formation in good order; readers are told, the journal has yet to be."""
        if self.formation is not None:
            await self.formation.closed()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.gather(*(peers.close() for peers in self._peers))
        await self.stages.close()
        self._compute.close()

    async def lay(
        self, layout: KvLayout, layers: range, kv_blocks: int, blocks: Sequence[NamedBlock]
    ) -> None:
        """What is kept here of blocks lies in a cache of so many, too, if a formation to come may
        have that: one of just these layers."""
        cache = self.stages.ahead(layout.name, layers, kv_blocks) if blocks else None
        if cache is None:
            return
        try:
            fit = [block for block in blocks if block[1] < kv_blocks]
            await self.kv.lay(cache, layout, layers, fit)
        except Exception:  # they are copied when their formation has the cache
            _log.exception("blocks do not lie in a cache ahead")

    def _check(self, membership: FormationPlace) -> HeldStage:
        mine = membership.members[membership.stage_index]
        if mine.incarnation != self.incarnation:
            raise StaleEpoch("another process was meant", field="incarnation")
        held = self.stages.find(membership.model, mine.stage)
        if held is None:
            raise FailedPrecondition(
                f"no stage of layers [{mine.layers.start}, {mine.layers.end}) of the model on "
                f"{mine.tp_degree} ranks is held",
                field="layers",
            )
        facts, most = held.backend.facts, self.stages.kv_blocks(held)
        if not 1 <= membership.kv_blocks <= most:
            raise InvalidArgument(f"kv_blocks must lie in [1, {most}]", field="kv_blocks")
        if facts.first != membership.is_head or facts.last != membership.is_last:
            raise InvalidArgument(
                "the first layers belong to the first stage, the last to the last", field="members"
            )
        return held

    def _lead(self, formation: FormationPart, held: HeldStage) -> None:
        membership, facts, limits = formation.membership, held.backend.facts, self._limits
        lead = lead_of(
            formation.id,
            membership.model,
            facts,
            stages=len(membership.members),
            kv_blocks=membership.kv_blocks,
            settings=limits.scheduler,
            progress_s=limits.progress_s,
            limit_bytes=limits.max_message_bytes,
            grammar_library=LIBRARY,
            places=formation.contents.places,
            prefixes=PrefixFetching(limits.prefixes, formation.kv_block_bytes),
        )
        self.counters.formed(membership.model.model_id, membership.pipeline_id)
        self.head.form(formation, lead, formation.cache.numerics_class)

    def _sampled(self, formation: FormationPart, step: int, tokens: Sequence[Sampled]) -> None:
        self.head.sampled(formation, step, tokens)

    def _ended(self, formation: FormationPart, lost_node_ids: tuple[str, ...]) -> None:
        FORMATIONS_ENDED.inc()
        _log.info(
            "formation ended", extra={"formation_id": formation.id, "lost": list(lost_node_ids)}
        )
        self.head.dissolve(formation.id)
        self.counters.dissolved()
        if self.formation is formation:
            self.formation = None
            self._keep(self.stages.unuse())
            self._free.set()
        self.lost_node_ids = lost_node_ids
        self.changed.set()
        self._keep(formation.closed())

    async def _give_up_stuck(self, formation: FormationPart) -> None:
        """A step does not come back: ends the formation, knowing who does not answer."""
        try:
            others = [m for m in formation.membership.members if m.node_id != self.node_id]
            _log.warning("no progress", extra={"formation_id": formation.id})
            formation.end(*await self._silent(others))
        finally:
            self._probing = False

    def _keep(self, work: Coroutine[object, object, None] | asyncio.Future[None]) -> None:
        task = asyncio.ensure_future(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
