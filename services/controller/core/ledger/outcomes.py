"""What goes into the ledger and what comes out of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common.exchange import Checkpoint, CheckpointRefusal, CheckpointResult, Route
from services.common.generation import ModelRef
from services.common.phases import PipelinePhase
from services.controller.core.ledger.records import Record
from services.controller.core.strategy import FULL, Strategy

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """An entry for the event log."""

    kind: str
    """generation_bound, _granted, _sealed, _finished, _cancelled, or checkpoint_refused."""
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
class RunsAt:
    """What a formation serves."""

    pipeline_id: str
    model: ModelRef
    kv_block_bytes: int | None = 0
    """Of a full block of its KV cache, all layers together; 0: its blocks go nowhere. None: its
    head was never asked."""


@dataclass(frozen=True, slots=True)
class ServingHead:
    """A formation that runs generations now, as the cluster knows it."""

    route: Route
    takes_new: bool
    """False while it hands over or stalls, and while its members have not been heard from."""
    numerics_class: str = ""
    """Class of its arithmetic."""
    hands_over: bool = False
    """Its generations are being sealed."""
    stalled: bool = False
    """It does not serve at present: its readers may leave it."""
    departs: bool = False
    """It takes nothing new: its generations end there, or leave it one by one."""
    switching: bool = False
    """What follows a formation that was drained is about to serve: who was moved waits for it."""
    phase: PipelinePhase = PipelinePhase.BOTH
    onward: Mapping[str, float] = field(default_factory=dict)
    """Pipelines that what began here goes on at, and in which proportion, where the plan says."""


Coming = Collection[tuple[ModelRef, str]]
"""Models, each with a numerics class of which a head is about to serve."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Limits and timings of the ledger, in seconds."""

    retention_s: float = 600.0
    """An ended generation is kept this long."""
    parked_retention_s: float = 3600.0
    """An open one that nobody touches is kept this long."""
    same_head_after_s: float = 1.0
    """A formation that a reader left because it does not serve is granted again only after this
    long: by then the cluster knows better."""
    doubt_s: float = 1.0
    """Who does not reach a head that serves waits this long for what the cluster learns of it."""
    unheard_s: float = 5.0
    """And leaves it only when nothing has come from there for this long: a busy machine breaks
    connections, and does not let new ones stand."""
    kept_after_s: float = 120.0
    """An ended generation that is stored leaves memory so long behind its end."""
    stored_retention_s: float = 2_592_000.0
    """What is stored is kept this long there, and an open one that is to run unread, where nothing
    has run it."""
    max_stored: int = 1_000_000
    """Generations stored there; the oldest makes room."""
    max_generations: int = 100_000
    max_ended: int = 10_000
    """Ended generations kept; the oldest end makes room."""
    max_parked: int = 10_000
    """Parked generations kept that nobody reads; the oldest makes room."""
    retry_window_s: float = 60.0
    """A client's retry joins what it asked first when that was left no longer ago."""
    unbegun_s: float = 10.0
    """A head that was granted a generation and says nothing of it for this long never had the
    call: its reader was gone by then."""
    own_arithmetic_s: float = 20.0
    """While a head of the arithmetic that a generation had is about to serve, it waits this long
    for that one before it goes on under another."""
    max_ended_bytes: int = 256 << 20
    """Of the details of ended generations that are stored; more leave memory at once."""
    claim_s: float = 5.0
    """What somebody was given to read is not given to another one for this long; by then it is
    read."""
    strategy: Strategy = FULL


def refused(
    checkpoint: Checkpoint, refusal: CheckpointRefusal, lengths: tuple[int, ...] = ()
) -> Outcome[CheckpointResult]:
    """The answer to a checkpoint that was not taken; `lengths` are the ids held, by choice."""
    name = checkpoint.generation_id
    result = CheckpointResult(name, checkpoint.epoch, lengths, refusal)
    attributes = {"epoch": str(checkpoint.epoch), "refusal": refusal.value}
    return Outcome(result, events=(LedgerEvent("checkpoint_refused", name, "", attributes),))
