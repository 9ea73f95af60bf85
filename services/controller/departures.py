"""Has generations leave their formation: each in its time where a market takes a node, all at once
where what follows is ready. What was chosen for each of them stands in the event log and the trace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from math import inf

from services.common import telemetry
from services.common.errors import ShuntError
from services.common.generation import ModelRef
from services.common.nodes import Member
from services.controller.core.cluster.actions import CopyAhead, DepartFormation
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.departure.departure import Departure
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.links import Links
from services.controller.core.departure.move import Choice, Move, Rates, Stream
from services.controller.core.departure.schedule import PUSH_S, at_once, cheapest
from services.controller.core.ledger.outcomes import RunsAt, ServingHead
from services.controller.engines import Engines, Heir
from services.controller.event_log import EventLog
from services.controller.kv_sources import KvSources, kv_members, source_of
from services.controller.pushes import Pushes

_log = logging.getLogger(__name__)

BEHIND_BLOCKS = 2
"""Behind what went ahead so many travel in the round that every push has, behind its seal."""


@dataclass(frozen=True, slots=True)
class Journaled:
    """What the journal knows of generations that have to leave."""

    streams: Callable[[str], Sequence[Stream]]
    """Those that run in a formation."""
    lengths: Callable[[ModelRef], AnswerLengths]
    rates: Callable[[ModelRef, float], Rates]
    """Of moves, into room for so many positions."""
    promise: Callable[[str], Mapping[str, ServingHead]]
    """Where those that run in a formation will rather go on, by name."""


class Departures:
    """Of all formations."""

    def __init__(
        self,
        cluster: Cluster,
        engines: Engines,
        journaled: Journaled,
        events: EventLog,
        *,
        kv: KvSources,
        block_positions: int,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._engines = engines
        self._journaled = journaled
        self._events = events
        self._kv = kv
        self._block_positions = block_positions
        self._links = Links()
        self._ahead: dict[str, dict[str, int]] = {}
        """Blocks that have gone ahead, by formation that is left and generation."""
        self._clock = clock

    async def leave(self, action: DepartFormation) -> None:
        """Until nothing runs there any more, or the head does not answer; the cluster is told.
        Whoever drains the formation cancels this."""
        formation_id = action.formation_id
        runs_at = await self._measured(formation_id, action.head)
        if runs_at is None:
            return
        self._kv.departs(formation_id, action.members)
        pushes = Pushes(
            self._engines,
            self._links,
            source_of(formation_id, action.members),
            action.head,
            block_bytes=self._block_bytes(runs_at),
            block_positions=self._block_positions,
            over=self._ahead.setdefault(formation_id, {}),
            clock=self._clock,
        )
        going = asyncio.create_task(pushes.run())
        try:
            with telemetry.span("departure", attributes={"pipeline": runs_at.pipeline_id}) as span:
                async with aclosing(self._one_by_one(action, runs_at, pushes)) as chosen:
                    async for move in chosen:
                        generation = {"generation": move.generation_id}
                        span.add_event("handover_chosen", {**generation, **move.attributes})
        except ShuntError as error:
            _log.warning("a head does not let go", extra={"error": error.message})
        finally:
            going.cancel()
        self._cluster.departed(formation_id, self._clock())

    async def _one_by_one(
        self, action: DepartFormation, runs_at: RunsAt, pushes: Pushes
    ) -> AsyncGenerator[Move, None]:
        """Has them leave in their time; each choice, as it is made. Raises ShuntError."""
        name, head = action.formation_id, action.head
        departure = Departure(action.until_s, always=self._kv.handover == "kv")
        ways, running = dict[str, Choice](), None
        while running is None or running:
            pushes.went.clear()
            streams = [pushes.seen(one) for one in self._journaled.streams(name)]
            rates, lengths = self._rates(runs_at, name), self._journaled.lengths(runs_at.model)
            look = departure.look(streams, rates, lengths, self._clock())
            self._tell(runs_at.pipeline_id, look.told)
            for move in look.told:
                ways[move.generation_id] = move.choice
                yield move
            self._begin(name, look.pushes, pushes)
            pushed = {one for one, way in ways.items() if way is Choice.PUSH}
            pushes.keep(pushed & look.running)
            if look.running != running:
                leave, replayed = pushed - look.running, ways.keys() - pushed - look.running
                self._kv.seals(name, leave, replayed)
                await self._engines.drain(
                    name, head, keep_kv=bool(leave), replayed=replayed, running=look.running
                )
                running = look.running
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, look.wakes_at_s - self._clock())):
                    await (pushes.went.wait() if running else asyncio.sleep(0))

    def _begin(self, formation_id: str, moves: Iterable[Move], pushes: Pushes) -> None:
        """Blocks of these go to the heads that were promised."""
        promised = self._journaled.promise(formation_id) if moves else {}
        for move in moves:
            head = promised.get(move.generation_id)
            if head is None:
                pushes.stays(move.generation_id)
                continue
            there = head.route.formation_id
            members = kv_members(self._cluster.view.members(there))
            pushes.begin(move.generation_id, Heir(members, frozenset({move.generation_id}), there))

    def _rates(self, runs_at: RunsAt, formation_id: str) -> Rates:
        """What moves cost now."""
        rates = self._journaled.rates(runs_at.model, self._room(formation_id))
        link_bytes_per_s = self._links.ahead.bytes_per_s(self._clock())
        return replace(rates, link_bytes_per_s=link_bytes_per_s, push_s=rates.push_s or PUSH_S)

    async def _measured(self, formation_id: str, head: Member) -> RunsAt | None:
        """What it serves. Of one that stood before the size of its blocks was noted the head is
        asked; while it does not say so its blocks go nowhere."""
        view = self._cluster.view
        runs_at = view.runs_at(formation_id)
        if runs_at is None or runs_at.kv_block_bytes is not None or not self._kv.travels:
            return runs_at
        try:
            size_bytes = await self._engines.block_bytes(formation_id, head)
        except ShuntError as error:
            _log.warning("a head does not say how large blocks are", extra={"why": error.message})
        else:
            self._cluster.measured(formation_id, size_bytes)
        return view.runs_at(formation_id)

    def _block_bytes(self, runs_at: RunsAt) -> int:
        return (runs_at.kv_block_bytes or 0) if self._kv.travels else 0

    def _room(self, formation_id: str) -> float:
        """Positions that the formations beside it have free."""
        beside = self._cluster.view.beside(formation_id)
        taken = sum(
            stream.positions for other in beside for stream in self._journaled.streams(other)
        )
        return max(0.0, sum(beside.values()) - taken)

    async def copy_ahead(self, action: CopyAhead) -> None:
        """Has blocks of what runs there go ahead to where it will go on: to formations that serve,
        else to who follows its own. Raises ShuntError."""
        name, view = action.formation_id, self._cluster.view
        runs_at = await self._measured(name, action.head)
        if runs_at is None:
            return
        heirs: dict[str, list[str]] = {}
        promised = {} if action.waited_for else self._journaled.promise(name)
        for move in self._at_once(name, runs_at, goes_ahead=True):
            head = promised.get(move.generation_id)
            if move.choice is Choice.PUSH and (head is not None or action.followers):
                there = head.route.formation_id if head is not None else ""
                heirs.setdefault(there, []).append(move.generation_id)
        self.forget(name)  # what went ahead of an earlier hand-over lies elsewhere, or nowhere
        if not heirs:
            return
        members = {there: view.members(there) if there else action.followers for there in heirs}
        began_s = self._clock()
        ahead = await self._engines.copy_ahead(
            source_of(name, action.members),
            action.head,
            [
                Heir(kv_members(members[there]), frozenset(names), there)
                for there, names in heirs.items()
                if members[there]
            ],
            action.limit_s,
        )
        now_s = self._clock()
        if ahead.tells_of_link():
            self._links.carried(ahead.size_bytes, ahead.took_s, now_s - began_s, now_s)
        if view.goes(name):
            self._ahead.setdefault(name, {}).update(ahead.blocks_of)  # pushes note theirs in it
        self._events.add(
            "blocks_went_ahead", pipeline_id=runs_at.pipeline_id, attributes=ahead.attributes
        )

    def end(self, formation_id: str) -> tuple[Move, ...]:
        """All that still runs there leaves it now, each as this says."""
        runs_at = self._cluster.view.runs_at(formation_id)
        if runs_at is None:
            return ()
        moves = self._at_once(formation_id, runs_at)
        self.forget(formation_id)
        self._tell(runs_at.pipeline_id, moves)
        return moves

    def forget(self, formation_id: str) -> None:
        """It is no more, drained or not."""
        self._ahead.pop(formation_id, None)

    def forget_stayed(self) -> None:
        """Of those that are not left after all, what went ahead counts no more: it is kept for some
        seconds, and whoever goes on another time may be another."""
        for formation_id in [name for name in self._ahead if not self._cluster.view.goes(name)]:
            self.forget(formation_id)

    def _at_once(
        self, formation_id: str, runs_at: RunsAt, *, goes_ahead: bool = False
    ) -> tuple[Move, ...]:
        """What becomes of each that runs in a formation, if all leave it now; their blocks travel
        behind the seal, but for those that have gone ahead, unless all of them are to do so."""
        size, positions, now_s = self._block_bytes(runs_at), self._block_positions, self._clock()
        streams = {
            one.generation_id: one.with_blocks(size, positions)
            for one in self._journaled.streams(formation_id)
        }
        rates = self._journaled.rates(runs_at.model, inf)
        if goes_ahead:
            if self._kv.handover != "auto":
                return at_once(streams.values(), now_s, travels=self._kv.travels)
            return cheapest(streams.values(), rates, now_s)
        link_bytes_per_s = max(1.0, self._links.behind.bytes_per_s(now_s))
        left = {
            name: streams[name].with_blocks(size, positions, over + BEHIND_BLOCKS).bytes or 0
            for name, over in self._ahead.get(formation_id, {}).items()
            if over and name in streams
        }
        if self._kv.handover != "auto":
            return at_once(
                streams.values(),
                now_s,
                travels=self._kv.travels,
                link_bytes_per_s=link_bytes_per_s,
                left=left,
            )
        fetch_s = self._kv.longest_s(self._cluster.view.ends_at_s(formation_id))
        rates = replace(rates, link_bytes_per_s=link_bytes_per_s, fetch_s=fetch_s)
        return cheapest(streams.values(), rates, now_s, left)

    def _tell(self, pipeline_id: str, moves: Iterable[Move]) -> None:
        for move in moves:
            self._events.add(
                "handover_chosen",
                pipeline_id=pipeline_id,
                generation_id=move.generation_id,
                attributes=move.attributes,
            )
