"""Epochs and the journal: who may add to a generation, and what it has so far.

Every method answers with an Outcome: the reply, and the records it rests on. The store writes the
records of all outcomes in order and releases a reply only when everything recorded before and with
it is durable (`fsync` set: on disk; else with the next group commit). So a crash between any two
loses nothing that anybody was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common.exchange import (
    Checkpoint,
    CheckpointResult,
    GenerationView,
    Grant,
    ResumeQuestion,
    Route,
)
from services.common.generation import CancelReason
from services.controller.records import Record

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """An entry for the event log."""

    kind: str
    """generation_bound, generation_granted, generation_sealed, generation_ended, diverged."""
    generation_id: str
    pipeline_id: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Reply]):
    """A reply and what must be durable before it is given."""

    reply: Reply
    records: tuple[Record, ...] = ()
    fsync: bool = False
    events: tuple[LedgerEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """A formation that runs generations now, as the cluster knows it."""

    route: Route
    takes_new: bool
    """False while its generations are being handed over."""
    load: int = 0
    """Generations queued or running."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Limits and timings of the ledger, in seconds."""

    retention_s: float = 600.0
    """An ended generation is kept this long."""
    parked_retention_s: float = 3600.0
    """An open one that nobody touches is kept this long."""
    same_head_after_s: float = 1.0
    """A reader that complains of the only head there is gets it again after this long."""
    max_generations: int = 100_000


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """A line of the status."""

    generation_id: str
    epoch: int
    pipeline_id: str
    journaled_tokens: int
    reader: bool


class Ledger:
    """Epochs and journal of all generations."""

    def __init__(self, settings: LedgerSettings) -> None: ...

    @classmethod
    def recover(cls, settings: LedgerSettings, records: Iterable[Record], now_s: float) -> Ledger:
        """The ledger as it was when the last of the records was written."""
        raise NotImplementedError

    def checkpoint(
        self, checkpoint: Checkpoint, pipeline_id: str, now_s: float
    ) -> Outcome[CheckpointResult]:
        """Binds epoch 1 to its first head, appends, compares, or refuses. `pipeline_id` is the
        pipeline of the checkpoint's formation, for the status ('' when not known)."""
        raise NotImplementedError

    def resume(
        self, question: ResumeQuestion, heads: Sequence[Head], now_s: float
    ) -> Outcome[Grant] | None:
        """Grants the next epoch. None: no head to grant to yet; ask again when the heads change,
        and every 0.1 s, until the caller's deadline.

        Raises Cancelled, Diverged, NotFound (unknown and no request), AlreadyExists,
        ResourceExhausted.
        """
        raise NotImplementedError

    def cancel(
        self,
        generation_id: str,
        choice: int | None,
        reason: CancelReason,
        length: int | None,
        now_s: float,
    ) -> Outcome[None]:
        """Reason client: a tombstone. Reason stop: the choice needs no more than `length` ids."""
        raise NotImplementedError

    def view(
        self, generation_id: str, heads: Sequence[Head], now_s: float
    ) -> Outcome[GenerationView]:
        """What the journal holds. Raises NotFound; a tombstone without a request counts as such."""
        raise NotImplementedError

    def head_of(self, generation_id: str) -> str | None:
        """Incarnation that holds the generation's epoch, to pass a Cancel on to."""
        raise NotImplementedError

    def tick(self, now_s: float) -> Outcome[None]:
        """Forgets what was kept long enough; call it every second or so."""
        raise NotImplementedError

    def open_generations(self) -> list[OpenGeneration]:
        """Generations that have not ended."""
        raise NotImplementedError
