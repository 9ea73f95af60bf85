"""A reader that follows one generation through frames, silence, hand-overs and kills to its end.

The edge owns at most one open stream to a head and one question to the controller at a time; both
are numbered, and what comes from another number is ignored. Every method returns actions, to be
performed in order. Until `End`, exactly one of them leads on to the next event: the edge needs no
logic of its own but timers (call `tick` at least every 50 ms).
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import ShuntError
from services.common.exchange import (
    Frame,
    GenerateCall,
    GenerationView,
    Grant,
    ResumeQuestion,
    Route,
)
from services.common.generation import CancelReason, FinishReason, GenerationRequest, TokenSpan
from services.common.token_run import TokenRun


@dataclass(frozen=True, slots=True)
class FollowerSettings:
    """Timings in seconds."""

    silence_s: float = 0.5
    """No frame for this long: attach once more."""
    progress_s: float = 2.0
    """No step for this long while not queued: attach once more."""
    recover_s: float = 60.0
    """From the first sign of trouble to an explicit error."""
    resume_timeout_s: float = 10.0
    """Deadline of one question to the controller."""
    retry_s: float = 0.1
    """Pause before a failed question is asked again; doubles up to `max_retry_s`."""
    max_retry_s: float = 1.0


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


@dataclass(frozen=True, slots=True)
class Deliver:
    """New ids for the reader, each position once and in order within its choice."""

    spans: tuple[TokenSpan, ...]


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Call Cancel at the controller until it is taken, and once at the head if there is one."""

    generation_id: str
    choice: int | None
    reason: CancelReason
    length: int | None
    head: Route | None


@dataclass(frozen=True, slots=True)
class End:
    """The last action. No error: every choice has ended. Otherwise the error to tell the reader:
    Superseded, Cancelled, Diverged, Unavailable (resumable), or what a head refused for good."""

    error: ShuntError | None = None


Action = OpenStream | CloseStream | AskResume | Deliver | SendCancel | End


class Follower:
    """One reader of one generation."""

    def __init__(self, request: GenerationRequest, settings: FollowerSettings) -> None:
        self.request = request
        self.runs: list[TokenRun] = []
        self.moves: int = 0
        """Epochs granted since the start."""

    def begin(self, route: Route | None, now_s: float) -> list[Action]:
        """A new generation, at epoch 1 on this head; None: no pipeline is known, so the
        controller is asked for one."""
        raise NotImplementedError

    def rejoin(self, view: GenerationView, now_s: float) -> list[Action]:
        """A generation that another reader began. All ids are delivered from position 0."""
        raise NotImplementedError

    def frame(self, stream: int, frame: Frame, now_s: float) -> list[Action]:
        """A frame came."""
        raise NotImplementedError

    def broken(self, stream: int, error: ShuntError, now_s: float) -> list[Action]:
        """The stream ended without a Closed frame."""
        raise NotImplementedError

    def granted(self, number: int, grant: Grant, now_s: float) -> list[Action]:
        """The controller's answer."""
        raise NotImplementedError

    def not_granted(self, number: int, error: ShuntError, now_s: float) -> list[Action]:
        """The controller refused, was not reached, or did not answer in time."""
        raise NotImplementedError

    def stopped(self, choice: int, length: int, now_s: float) -> list[Action]:
        """The text of a choice contains a stop string; it needs no more than `length` ids."""
        raise NotImplementedError

    def cancel(self, now_s: float) -> list[Action]:
        """The client gives the generation up."""
        raise NotImplementedError

    def detach(self, now_s: float) -> list[Action]:
        """The client is gone but may come back: closes the stream, cancels nothing."""
        raise NotImplementedError

    def tick(self, now_s: float) -> list[Action]:
        """Silence, lack of progress and retries."""
        raise NotImplementedError

    def finish_reason(self, choice: int) -> FinishReason | None:
        """Why a choice ended, as far as ids tell."""
        raise NotImplementedError
