"""What the controller keeps, and the seam to where it keeps it."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.common.exchange import GenerationView
from services.controller.core.ledger.records import Record


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An entry of the event log."""

    number: int
    """Rises by one."""
    time_unix_s: float
    kind: str
    node_id: str = ""
    pipeline_id: str = ""
    generation_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    plan: int = 0
    """Number of the plan that was carried out when it happened; 0 while there was none."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The newest value of one of the controller's own notes; None deletes it."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Outlived:
    """Of what is kept, all that was put there before then is deleted, and the oldest of more than
    so many."""

    before_unix_s: float
    at_most: int


Item = Record | LoggedEvent | Saved | Outlived


@dataclass(frozen=True, slots=True)
class Recovered:
    """Everything the journal holds, as of the last item that was committed."""

    records: tuple[Record, ...] = ()
    events: tuple[LoggedEvent, ...] = ()
    saved: Mapping[str, str] = field(default_factory=dict)
    ages_s: tuple[float, ...] = ()
    """How long ago each record was written; empty: just now."""


class JournalRoom(enum.StrEnum):
    """What the disk has left for the journal, where it can be asked."""

    ENOUGH = "enough"
    RESERVE = "reserve"
    """Only what was set aside, for what must be written: grants, ends, notes."""
    NONE = "none"
    AWAY = "away"
    """The database does not answer."""


class Journal(Protocol):
    """A durable log. After a crash it holds a prefix of the items written, in their order."""

    @property
    def full(self) -> bool:
        """So much waits that a write would raise."""
        ...

    @property
    def room(self) -> JournalRoom:
        """While there is none, or none that answers, writes fail."""
        ...

    def tend(self) -> None:
        """Gives back what is free, and looks whether there is room again; call it every second
        or so."""
        ...

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> Awaitable[None]:
        """Takes the items at once, in order; the result resolves when all are durable. After a
        crash it has all of them or none.

        Without `fsync` they outlive the process at that point, and the machine a little later.
        Raises ResourceExhausted, and takes nothing, while `full`. Fails with ResourceExhausted
        (disk full), DataLoss or Unavailable; behind such a failure every write fails until
        `recover`.
        """
        ...

    async def kept(self, generation_id: str) -> GenerationView | None:
        """What is kept of a generation that has left the records, as of all that was written
        before. Raises DataLoss where it is damaged, and Unavailable."""
        ...

    async def settled(self) -> None:
        """Waits until all that was written before is durable, and it is sure that nobody else
        writes since this was asked; raises like a write."""
        ...

    async def confirmed(self) -> None:
        """Returns once it is sure that nobody else writes since this was asked. Raises Superseded
        when somebody does, and like a write."""
        ...

    async def recover(self) -> Recovered:
        """Reads everything, and takes writes again; raises DataLoss for a damaged file."""
        ...

    async def close(self) -> None:
        """Makes durable what waits."""
        ...
