"""What the journal's store keeps, in order; `Ledger.recover` reads it back.

A prefix of the records is a state the ledger has been in, so a store may lose its unsynced tail
and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.exchange import GenerationView, Lengths
from services.common.generation import CancelReason, GenerationRequest, TokenSpan


@dataclass(frozen=True, slots=True)
class HeadBound:
    """Epoch 1 belongs to this head from now on."""

    generation_id: str
    incarnation: str
    formation_id: str
    pipeline_id: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Granted:
    """An epoch was given to a head; `spans` are the ids its base adds to the journal.

    `incarnation` is empty when every choice has ended and nothing is to run.
    """

    generation_id: str
    epoch: int
    incarnation: str
    formation_id: str
    pipeline_id: str
    request: GenerationRequest
    spans: tuple[TokenSpan, ...]
    numerics_class: str = ""
    """Of the head's arithmetic."""


@dataclass(frozen=True, slots=True)
class IdsAppended:
    """New ids of one choice."""

    generation_id: str
    span: TokenSpan


@dataclass(frozen=True, slots=True)
class Inexact:
    """Ids behind the first `lengths` of each choice are, or may be, what nobody computes from those
    before them: what they were sampled from was rounded."""

    generation_id: str
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Sealed:
    """The epoch's head has said its last word."""

    generation_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A tombstone (reason client, for unknown ids too), or a choice that needs no more than
    `length` ids (reason stop)."""

    generation_id: str
    choice: int | None
    reason: CancelReason
    length: int | None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Kept long enough: every record of the generation, this one too, may be deleted."""

    generation_id: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Ended, and asked for by its id for long: it stands by itself from now on, instead of all its
    records, and no recovery reads it."""

    generation_id: str
    view: GenerationView
    """As it stays."""


Record = HeadBound | Granted | IdsAppended | Inexact | Sealed | Ended | Forgotten | Kept
