"""The event log: what happened to nodes, pipelines and generations, with wall times."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from services.common import logs
from services.common.errors import ShuntError
from services.controller import metrics
from services.controller.journal.journal import Journal, LoggedEvent
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

WARNINGS = frozenset(
    (
        "drain_failed",
        "load_failed",
        "node_lost",
        "numerics_differ",
        "offers_dropped",
        "pipeline_lost",
        "plan_failed",
    )
)
"""Kinds of events that somebody should look at."""


class EventLog:
    """Numbered events; the newest `kept` can be read, here and after a restart."""

    def __init__(self, journal: Journal, wall_clock: Callable[[], float], kept: int) -> None:
        self._journal = journal
        self._wall_clock = wall_clock
        self._events: deque[LoggedEvent] = deque(maxlen=kept)
        self.plan = 0
        """Number of the plan that events belong to from now on; 0 while there is none."""
        self._next_number = 1
        self._grown = Signal()
        self._closed = False

    def recover(self, events: Iterable[LoggedEvent]) -> None:
        """Goes on behind what the journal holds."""
        self._events.extend(events)
        if self._events:
            newest = self._events[-1]
            self._next_number, self.plan = newest.number + 1, newest.plan

    def add(
        self,
        kind: str,
        *,
        node_id: str = "",
        pipeline_id: str = "",
        generation_id: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> LoggedEvent:
        """Adds an event. A journal that cannot take it loses the event, not the controller."""
        event = LoggedEvent(
            self._next_number,
            self._wall_clock(),
            kind,
            node_id,
            pipeline_id,
            generation_id,
            dict(attributes or {}),
            self.plan,
        )
        self._next_number += 1
        self._events.append(event)
        self._grown.fire()
        metrics.count_event(event)
        ids = {
            "node_id": node_id,
            "pipeline_id": pipeline_id,
            "generation_id": generation_id,
            "plan": self.plan,
        }
        told = {name: value for name, value in {**ids, **event.attributes}.items() if value}
        log = logs.access if kind == "generation_bound" else _log  # one line a generation
        log.log(logging.WARNING if kind in WARNINGS else logging.INFO, kind, extra=told)
        try:
            written = asyncio.ensure_future(self._journal.write((event,)))
            written.add_done_callback(_tell_failure)
        except ShuntError as error:
            _log.error("event not journaled", extra={"kind": kind, "error": error.message})
        return event

    def newest(self, kind: str, node_id: str) -> LoggedEvent | None:
        """The last event of a kind about a node."""
        events = reversed(self._events)
        return next((e for e in events if e.kind == kind and e.node_id == node_id), None)

    async def follow(self, from_number: int, *, wait: bool) -> AsyncIterator[LoggedEvent]:
        """Events from a number on; without `wait` it ends behind the newest. A reader that falls
        behind what is kept goes on with the oldest there is."""
        number = from_number
        while True:
            for event in [event for event in self._events if event.number >= number]:
                number = event.number + 1
                yield event
            if self._closed or not wait:
                return
            if number >= self._next_number or not self._events:
                await self._grown.wait()

    def close(self) -> None:
        """Ends everyone who follows."""
        self._closed = True
        self._grown.fire()


def _tell_failure(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        _log.error("event not journaled", extra={"error": str(error)})
