"""Has generations leave their formation: each in its time where a market takes a node, all at once
where what follows is ready. What was chosen for each of them stands in the event log and the trace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from services.common import telemetry
from services.common.errors import ShuntError
from services.common.generation import ModelRef
from services.controller.core.cluster.actions import CopyAhead, DepartFormation
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.departure.departure import Departure
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Move, Rates, Stream
from services.controller.core.departure.schedule import at_once, cheapest
from services.controller.core.ledger.outcomes import ServingHead
from services.controller.engines import Engines, Heir
from services.controller.event_log import EventLog
from services.controller.kv_sources import Handover, kv_members, source_of

_log = logging.getLogger(__name__)


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
        handover: Handover,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._engines = engines
        self._journaled = journaled
        self._events = events
        self._handover = handover
        self._clock = clock

    async def leave(self, action: DepartFormation) -> None:
        """Until nothing runs there any more, or the head does not answer; the cluster is told.
        Whoever drains the formation cancels this."""
        formation_id = action.formation_id
        runs_at = self._cluster.view.runs_at(formation_id)
        if runs_at is None:
            return
        departure, running = Departure(action.until_s), None
        with telemetry.span("departure", attributes={"pipeline": runs_at.pipeline_id}) as span:
            while running is None or running:
                streams = self._journaled.streams(formation_id)
                rates = self._journaled.rates(runs_at.model, self._room(formation_id))
                lengths = self._journaled.lengths(runs_at.model)
                look = departure.look(streams, rates, lengths, self._clock())
                self._tell(runs_at.pipeline_id, look.told)
                for move in look.told:
                    generation = {"generation": move.generation_id}
                    span.add_event("handover_chosen", {**generation, **move.attributes})
                if look.running != running:
                    try:
                        await self._engines.drain(formation_id, action.head, running=look.running)
                    except ShuntError as error:
                        _log.warning("a head does not let go", extra={"error": error.message})
                        break
                    running = look.running
                await asyncio.sleep(max(0.0, look.wakes_at_s - self._clock()) if running else 0)
        self._cluster.departed(formation_id, self._clock())

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
        runs_at = view.runs_at(name)
        if runs_at is None:
            return
        heirs: dict[str, list[str]] = {}
        promised = self._journaled.promise(name)
        for move in self._at_once(name, runs_at.model):
            if move.choice is Choice.PUSH:
                head = promised.get(move.generation_id)
                there = head.route.formation_id if head is not None else ""
                heirs.setdefault(there, []).append(move.generation_id)
        if not heirs:
            return
        members = {there: view.members(there) if there else action.followers for there in heirs}
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
        self._events.add(
            "blocks_went_ahead", pipeline_id=runs_at.pipeline_id, attributes=ahead.attributes
        )

    def end(self, formation_id: str) -> frozenset[str]:
        """All that still runs there leaves it now; names of those whose ids are read again, whether
        or not blocks travel."""
        runs_at = self._cluster.view.runs_at(formation_id)
        if runs_at is None:
            return frozenset()
        moves = self._at_once(formation_id, runs_at.model)
        self._tell(runs_at.pipeline_id, moves)
        return frozenset(m.generation_id for m in moves if m.choice is Choice.REPLAY)

    def _at_once(self, formation_id: str, model: ModelRef) -> tuple[Move, ...]:
        """What becomes of each that runs in a formation, if all leave it now."""
        streams, now_s = self._journaled.streams(formation_id), self._clock()
        if self._handover == "auto":
            return cheapest(streams, self._journaled.rates(model, inf), now_s)
        return at_once(streams, now_s, travels=self._handover == "kv")

    def _tell(self, pipeline_id: str, moves: Iterable[Move]) -> None:
        for move in moves:
            self._events.add(
                "handover_chosen",
                pipeline_id=pipeline_id,
                generation_id=move.generation_id,
                attributes=move.attributes,
            )
