"""What services say to each other about a generation, as values; the edges put them on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Literal

from services.common.generation import GenerationRequest, LayerRange, ModelRef, TokenSpan

MovedBy = Literal["", "replay", "kv"]
"""How a head came to what a generation goes on from: it computed that, or blocks were brought to
it. Empty for a generation that began there."""
Lengths = tuple[int, ...]
"""Ids held, by choice."""


class Phase(StrEnum):
    """Where a generation stands at its head."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class CloseReason(StrEnum):
    """Why a head closes a stream."""

    FINISHED = "finished"
    MOVED = "moved"
    """Sealed at an exact position: resume elsewhere."""
    HANDED_ON = "handed_on"
    """The same, behind its first token, as the call said; its blocks are kept."""
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    DIVERGED = "diverged"
    DISSOLVED = "dissolved"
    """The formation lost a member: resume elsewhere."""
    FENCED = "fenced"
    """The controller refused this head's epoch: resume elsewhere."""


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """A model that is to be served, whether or not a pipeline is ready."""

    model: ModelRef
    unusable: str = ""
    """Why none ever will be as things are; empty while one is or may be."""
    asleep: bool = False
    """It has none because nobody asks for it: it gets one when somebody does."""


@dataclass(frozen=True, slots=True)
class KvMember:
    """A process that keeps blocks of the layers that it had."""

    address: str
    incarnation: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class KvSource:
    """Who keeps what a formation had computed of its generations, for some seconds."""

    formation_id: str
    members: tuple[KvMember, ...]
    fetch_s: float = 0.0
    """What has not come behind so long is computed; 0: as whoever fetches has it."""


@dataclass(frozen=True, slots=True)
class PrefixHolder:
    """Another pipeline that has a prompt's beginning in its prefix cache."""

    address: str
    """Of its head."""
    formation_id: str
    positions: int
    """Of the prompt, from the first on."""


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """Everything a head needs to begin, to go on, or to attach a reader."""

    request: GenerationRequest
    epoch: int
    formation_id: str
    held: tuple[TokenSpan, ...] = ()
    """The ids so far: a span from position 0 for each choice that has any."""
    from_lengths: Lengths = ()
    """Where the reader goes on, by choice; choices left out from 0."""
    kv_source: KvSource | None = None
    """Where blocks of the ids so far may be had; None: they are computed."""
    reader: str = ""
    """Names the stream's reader; no two streams have one name."""
    hand_on: bool = False
    """Where nothing was sampled of it yet: it is sealed behind its first token, to go on
    elsewhere."""
    for_nobody: bool = False
    """Its reader has no client: it takes the place of no reader that has one."""
    prefix_holder: PrefixHolder | None = None
    """At epoch 1, who has more of the prompt computed than this pipeline, if anybody is known."""


@dataclass(frozen=True, slots=True)
class Left:
    """A reader whose client is gone."""

    generation_id: str
    epoch: int
    reader: str
    """As its call named it."""
    resumable: bool
    """The client can come back by an event."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """First frame of every stream."""

    formation_id: str
    incarnation: str
    numerics_class: str
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Tokens:
    """New ids; each span goes on where the choice's last one ended."""

    spans: tuple[TokenSpan, ...]
    step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing new, but alive; a rising step means that real steps are made."""

    step: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Closed:
    """Last frame of every stream that was not broken."""

    reason: CloseReason
    lengths: Lengths


Frame = Accepted | Tokens | Progress | Closed


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """New ids of one generation on their way to the journal."""

    generation_id: str
    epoch: int
    incarnation: str
    formation_id: str
    request: GenerationRequest | None
    """Set until the journal has answered once in this epoch."""
    spans: tuple[TokenSpan, ...]
    sealed: bool = False
    """The last one of this epoch."""
    unread: bool = False
    """Its last reader is gone, and nobody came back."""
    moved_by: MovedBy = ""
    """How this epoch came to what it goes on from."""
    inexact: bool = False
    """Some of that was rounded: ids of this epoch are what nobody else computes."""


class CheckpointRefusal(StrEnum):
    """Why a checkpoint was refused."""

    STALE_EPOCH = "stale_epoch"
    DIVERGED = "diverged"
    ENDED = "ended"
    """The generation was cancelled."""
    UNKNOWN_FORMATION = "unknown_formation"


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """What became of one checkpoint; `lengths` are durable."""

    generation_id: str
    epoch: int
    lengths: Lengths
    refusal: CheckpointRefusal | None = None


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What a head has of one tenant in one lane (`services.common.fair_queue`)."""

    tenant: str
    lane: int
    weight: int
    running: int
    queued: int
    rows: int
    """Positions that are still to be read before they answer."""


ENDS = 32
"""Parts of those that run, by which a head tells when they end: where most began in one burst and a
few did not, who reckons between two of few parts is seconds off."""


@dataclass(frozen=True, slots=True)
class HeadLoad:
    """How busy a head is. A step of so many rows takes `step_s` + `row_s` x rows; both are 0 before
    any was made."""

    places: int
    """Sequences that run at a time, at most."""
    running: int
    free_positions: int
    """Of the KV cache."""
    step_rows: int
    """Most rows of a step."""
    step_s: float
    row_s: float
    lag_s: float
    """What a step's way through all stages takes beyond that."""
    answer_tokens: float
    """Of a choice, on the mean of late."""
    tenants: tuple[TenantLoad, ...] = ()
    ends: tuple[int, ...] = ()
    """Tokens of each until the first of those that run has ended, and until each further part of
    equal parts of them has, as far as can be told; empty where none runs."""
    round_steps: int = 1
    """Steps by which each that decodes has a row more."""


@dataclass(frozen=True, slots=True)
class PrefixNews:
    """Which beginnings of sequences a head holds, or how that changed: blocks by the hashes of
    `services.common.prefix`, in 64 bits."""

    block_positions: int
    """Positions of a block."""
    whole: bool
    """`added` is all there is; what was told before counts no more."""
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    load: HeadLoad | None = None
    """How busy the head is; None: as it was."""


@dataclass(frozen=True, slots=True)
class Route:
    """A pipeline that takes requests."""

    pipeline_id: str
    formation_id: str
    incarnation: str
    """The head process."""
    address: str
    throughput_tokens_per_s: float
    model: ModelRef
    max_positions: int
    hands_on: bool = False
    """What begins there goes on elsewhere behind its first token."""


class LeaveReason(StrEnum):
    """Why a reader leaves a head."""

    SILENT = "silent"
    """Neither frames nor steps come over an open stream: for the controller to judge."""
    UNREACHABLE = "unreachable"
    """The stream broke, or brought nothing for long, and another one did as well."""
    REFUSED = "refused"
    """The head said so: it refused the call, or closed the stream."""


@dataclass(frozen=True, slots=True)
class ResumeQuestion:
    """Asks for the next epoch. A head that lives is answered again, with the epoch it has."""

    generation_id: str
    last_epoch: int
    """The last epoch this reader was given; 0 when it has none."""
    request: GenerationRequest | None
    """Lets a generation the journal never saw go on."""
    held: tuple[TokenSpan, ...]
    """The reader's ids: a span from position 0 for each choice that has any."""
    left_formation_id: str = ""
    """The formation it leaves because it does not serve; empty when it leaves none."""
    reason: LeaveReason | None = None
    """Why it leaves that one."""
    unheard_s: float = inf
    """How long nothing has come from it."""
    handed_on: bool = False
    """Its head handed it on, and keeps its blocks."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Where to go on, and from what."""

    epoch: int
    head: Route | None
    """None: every choice has ended, the base is the whole text."""
    base: tuple[TokenSpan, ...]
    """All ids before this epoch: a span from position 0 for each choice that has any."""
    kv_source: KvSource | None = None
    """Where blocks of the base may be had, if anywhere."""

    @property
    def finished(self) -> bool:
        """Nothing is to run."""
        return self.head is None


class GenerationState(StrEnum):
    """Where a generation stands in the journal."""

    OPEN = "open"
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class GenerationView:
    """What the journal holds of one generation."""

    request: GenerationRequest
    spans: tuple[TokenSpan, ...]
    epoch: int
    head: Route | None
    """The head that holds the epoch, while it serves."""
    state: GenerationState
    classes: tuple[str, ...] = ()
    """Numerics classes of the heads that had it, as far as known, one after another."""
