"""What the follower asks of its edge, to be performed in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.common.errors import ShuntError
from services.common.exchange import GenerateCall, ResumeQuestion, Route
from services.common.generation import CancelReason


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Call Generate at this head; frames go to `frame`, its break or status to `broken`."""

    stream: int
    route: Route
    call: GenerateCall


@dataclass(frozen=True, slots=True)
class CloseStream:
    """Cancel the call; nothing more of it is wanted."""

    stream: int


@dataclass(frozen=True, slots=True)
class AskResume:
    """Call Resume at the controller; answer with `granted` or `not_granted`."""

    number: int
    question: ResumeQuestion
    timeout_s: float


class Gain(NamedTuple):
    """Positions [start, end) of one choice; empty when only its end became known."""

    choice: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """The runs have new ids for the reader, each position once and in order within its choice."""

    gains: tuple[Gain, ...]


@dataclass(frozen=True, slots=True)
class ArithmeticChanged:
    """The generation goes on under other arithmetic: its next ids may not be those that would have
    come."""

    before: str
    now: str


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Call Cancel at the controller until it is taken, and once at the head if there is one."""

    generation_id: str
    choice: int | None
    reason: CancelReason
    length: int | None
    head: Route | None


@dataclass(frozen=True, slots=True)
class SendDetach:
    """Call Detach once at this head: what it misses, time brings about."""

    generation_id: str
    epoch: int
    head: Route
    resumable: bool
    """The client can come back by an event."""
    reader: str
    """Whose client is gone, as its call named it."""


@dataclass(frozen=True, slots=True)
class End:
    """The last action. No error: every choice has ended. Otherwise the error to tell the reader:
    Superseded, Cancelled, Diverged, Unavailable (resumable), or what a head refused for good."""

    error: ShuntError | None = None


Action = (
    OpenStream
    | CloseStream
    | AskResume
    | Deliver
    | ArithmeticChanged
    | SendCancel
    | SendDetach
    | End
)
