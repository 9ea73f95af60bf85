"""Invariants of responses of the background: 33 to 37, of the list in oracles.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

from oracle_generations import reference
from oracles import Oracle

from services.common.errors import NotFound, ShuntError, Superseded
from services.common.exchange import GenerationState, GenerationView
from services.common.generation import GenerationRequest
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.records import Kept, Record
from services.router.openai.responses.events import told_of
from simulator.processes.journaling import stored
from simulator.processes.stages import VOCABULARY

ENDS = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")
"""Whichever is the last event of a response that ends by itself."""


class Asked(Protocol):
    """What is known of a response by who asked for it."""

    request: GenerationRequest
    named: bool
    cancelled: bool
    deleting: bool
    """It was asked to be deleted, and may be."""
    deleted: bool
    """And that was answered."""
    log: bytes
    """Events that were read."""
    whole: bool
    """All of them, in one piece or behind numbers."""


class ResponseOracle(Oracle):
    """What is told of responses by any router, and what the journal has of them."""

    def __init__(self, *, exact: bool) -> None:
        super().__init__(exact=exact)
        self.happened: Counter[str] = Counter()
        self._logs: defaultdict[str, bytes] = defaultdict(bytes)
        """The longest that was read of each response."""
        self._views: dict[str, GenerationView] = {}
        """The last that was found of each."""

    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None:
        """Records reached the store."""
        super().durable(ledger, records)
        self.happened["stored"] += sum(isinstance(record, Kept) for record in records)

    def read(self, asked: Asked) -> None:
        """Somebody was told more of a response's events."""
        self._compare(asked.request.generation_id, asked.log)
        if asked.whole and not _ends_once(asked.log):
            self.fail(34, f"{asked.request.generation_id} was read to its end: {asked.log!r}")

    def _compare(self, name: str, log: bytes) -> None:
        """One is the beginning of the other. Inexact heads say something else where both who held
        an id are gone."""
        longest = self._logs[name]
        if self.exact and not (longest.startswith(log) or log.startswith(longest)):
            self.fail(34, f"{name}: {log!r} and {longest!r}")
        self._logs[name] = max(longest, log, key=len)

    def stream_ended(self, asked: Asked, error: ShuntError | None) -> None:
        """The stream of a client that is there has ended; it has no other."""
        if isinstance(error, Superseded):
            self.fail(37, f"who reads {asked.request.generation_id} lost it to nobody")

    def found(self, asked: Asked, view: GenerationView | ShuntError) -> None:
        """A response was asked for by its id."""
        name = asked.request.generation_id
        if isinstance(view, NotFound) and asked.named and not asked.deleting:
            self.fail(33, f"{name} is not found")
        if isinstance(view, ShuntError):
            return
        if asked.deleted:
            self.fail(35, f"{name} was deleted, and is found")
        before, self._views[name] = self._views.get(name, view), view
        had, has = _ids(before), _ids(view)
        if has[: len(had)] != had:
            self.fail(34, f"{name}: {had} was found, and then {has}")
        if before.state is not GenerationState.OPEN and (before.state, had) != (view.state, has):
            self.fail(34, f"{name} was {before.state}, and is {view.state}")
        _, log = told_of(view, VOCABULARY)
        self._compare(name, log)
        if view.state is GenerationState.FINISHED and not _ends_once(log):
            self.fail(34, f"{name} is finished: {log!r}")
        if self.exact and view.state is GenerationState.FINISHED:
            right = reference(view.request, 0).ids
            if has != right:
                self.fail(34, f"{name}: {has}, not {right}")

    # At rest

    def open(self, asked: Asked) -> bool:
        """It has not ended, as far as the controller knows."""
        view = self._held(asked.request.generation_id)
        return view is not None and view.state is GenerationState.OPEN

    def check_responses(self, all_asked: Sequence[Asked]) -> None:
        """Each that somebody was told of has ended and is found, and none runs on."""
        for asked in all_asked:
            name = asked.request.generation_id
            view = self._held(name)
            if view is not None and view.state is GenerationState.OPEN:
                self.fail(36, f"{name} has not ended")
            cancelled = view is not None and view.state is GenerationState.CANCELLED
            if cancelled and asked.named and not (asked.cancelled or asked.deleting):
                self.fail(33, f"{name} was ended by nobody who knew it")
            if asked.named and not asked.deleting and view is None:
                self.fail(33, f"{name} is not found")
            if view is not None:
                self.found(asked, view)
                self._check_read(asked, view)

    def _check_read(self, asked: Asked, view: GenerationView) -> None:
        """Who was told an end was told of what there is, whatever was lost of it meanwhile."""
        if asked.whole and not asked.deleting and asked.log != told_of(view, VOCABULARY)[1]:
            self.fail(34, f"{view.request.generation_id} is {view.state} after {asked.log!r}")

    def _held(self, name: str) -> GenerationView | None:
        if self.world is None:
            return None
        controller = self.world.controller
        try:
            return controller.ledger.view(name, (), self._now_s).reply
        except NotFound:
            under_way = [record for records, _ in controller.pending for record in records]
            return stored([*controller.records, *under_way], name)


def _ids(view: GenerationView) -> tuple[int, ...]:
    return tuple(token for span in view.spans for token in span.ids)


def _ends_once(log: bytes) -> bool:
    events = log.split(b"\n\n")[:-1]
    ends = [number for number, event in enumerate(events) if event.startswith(ENDS)]
    return ends == [len(events) - 1]
