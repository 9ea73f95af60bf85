"""One generation as its head holds it: its choices, its reader, and what the journal has of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.common.errors import InvalidArgument
from services.common.exchange import (
    Accepted,
    Checkpoint,
    CheckpointResult,
    Closed,
    CloseReason,
    Frame,
    GenerateCall,
    Lengths,
    Phase,
    Progress,
    Tokens,
)
from services.common.generation import FinishReason, GenerationRequest, TokenSpan, finish_of
from services.common.token_run import TokenRun
from services.engine.actions import SequenceKey


class Life(StrEnum):
    """Where a generation stands."""

    LIVE = "live"
    """Queued or running."""
    SEALING = "sealing"
    """Waits for the last step in flight."""
    SEALED = "sealed"
    FINISHED = "finished"
    FENCED = "fenced"
    """Refused by the journal, replaced or cancelled: nothing of it counts any more."""


@dataclass(slots=True)
class Choice:
    """One choice: its ids, its end, its sequence."""

    run: TokenRun = field(default_factory=TokenRun)
    finish: FinishReason | None = None
    phase: Phase = Phase.QUEUED
    in_batch: bool = False
    """The scheduler has it, or a step with it may be in flight."""


@dataclass(slots=True)
class Reader:
    """One attached stream and what it has had."""

    reader_id: int
    held: Held
    sent: list[int]
    last_frame_s: float
    told: set[int] = field(default_factory=set)
    """Choices whose end it knows."""
    accepted: bool = False
    closing: CloseReason | None = None
    """Set when it ends apart from its generation."""

    def next_frame(self, step: int, interval_s: float, now_s: float) -> Frame | None:
        """What to send next; None when nothing is due."""
        frame = self._due(step)
        if frame is None and now_s - self.last_frame_s >= interval_s:
            frame = Progress(step, self.held.phase)
        if frame is not None:
            self.last_frame_s = now_s
        return frame

    def _due(self, step: int) -> Frame | None:
        held = self.held
        if self.closing is not None:
            return Closed(self.closing, held.lengths)
        if not self.accepted:
            self.accepted = True
            return Accepted(held.formation_id, held.incarnation, held.numerics_class, held.lengths)
        if held.life is not Life.FENCED and (spans := self._unsent()):
            return Tokens(spans, step)
        if held.closing is not None:
            return Closed(held.closing, held.lengths)
        return None

    def _unsent(self) -> tuple[TokenSpan, ...]:
        spans = []
        for index, choice in enumerate(self.held.choices):
            ends = choice.finish is not None and index not in self.told
            if len(choice.run) > self.sent[index] or ends:
                spans.append(choice.run.span(index, self.sent[index], None, choice.finish))
                self.sent[index] = len(choice.run)
                if ends:
                    self.told.add(index)
        return tuple(spans)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a checkpoint said, and in which message."""

    message: int
    lengths: Lengths
    ends: frozenset[int]
    unread: bool


class Held:
    """One generation in one epoch."""

    def __init__(
        self, call: GenerateCall, incarnation: str, numerics_class: str, now_s: float
    ) -> None:
        request = call.request
        if not request.numerics_class:
            request = replace(request, numerics_class=numerics_class)
        self.request: GenerationRequest = request
        self.numerics_class = numerics_class
        """Of this head; the request names the one that the generation began with."""
        self.epoch = call.epoch
        self.formation_id = call.formation_id
        self.incarnation = incarnation
        self.choices = [Choice() for _ in range(request.choices)]
        self.life = Life.LIVE
        self.closing: CloseReason | None = None
        self.reader: Reader | None = None
        self.unread_since_s = now_s
        self.unread = False
        """Nobody reads it, and that is no blip: it yields to what is read."""
        self.parks = False
        """Its reader leaves with nothing to come back by: it is parked when the reader is gone."""
        self.ended_s = now_s
        for span in call.held:
            self._go_on_from(span)
        self._journaled = [0 if call.epoch == 1 else len(c.run) for c in self.choices]
        self._journaled_ends: set[int] = set()
        self._answered = False
        """The journal has answered in this epoch: it knows the request."""
        self._seal_answered = False
        self._told_unread = False
        self._in_flight: _Sent | None = None
        """The last checkpoint of it that is unanswered."""
        self._sealed_since: int | None = None
        """The first message with the seal; behind it nothing is added, so all say the same."""
        self._sent_s = float("-inf")

    def _go_on_from(self, span: TokenSpan) -> None:
        choice = self.choice(span.choice)
        if choice.run.append(span.start, span.ids, span.logprobs).gap:
            raise InvalidArgument("spans go on from position 0 without gaps", field="held")
        choice.finish = span.finish_reason
        end = finish_of(self.request, span.ids, span.start)
        if end is not None and end[0] == len(choice.run):
            choice.finish = end[1]

    def choice(self, index: int) -> Choice:
        """Raises InvalidArgument for a choice that was not asked for."""
        if not 0 <= index < len(self.choices):
            raise InvalidArgument(
                f"choice {index} of a request for {len(self.choices)}", field="choice"
            )
        return self.choices[index]

    def key(self, index: int) -> SequenceKey:
        """Names a choice's sequence to the scheduler."""
        return SequenceKey(self.request.generation_id, self.epoch, index)

    @property
    def lengths(self) -> Lengths:
        """Ids held, by choice."""
        return tuple(len(choice.run) for choice in self.choices)

    @property
    def ended(self) -> bool:
        """Every choice has ended."""
        return all(choice.finish is not None for choice in self.choices)

    @property
    def in_batch(self) -> bool:
        """Some sequence of it may be in a step."""
        return any(choice.in_batch for choice in self.choices)

    @property
    def phase(self) -> Phase:
        """The furthest phase among the choices that go on."""
        phases = {choice.phase for choice in self.choices if choice.finish is None}
        for phase in (Phase.DECODE, Phase.PREFILL):
            if phase in phases:
                return phase
        return Phase.QUEUED

    def close(self, life: Life, reason: CloseReason, now_s: float) -> None:
        """Nothing more will be added."""
        self.life, self.closing, self.ended_s = life, reason, now_s

    def compare(self, spans: tuple[TokenSpan, ...]) -> None:
        """Raises Diverged where a caller's ids differ from what is held."""
        for span in spans:
            self.choice(span.choice).run.check(span.start, span.ids)

    def attach(self, reader_id: int, start: Lengths, now_s: float) -> Reader:
        """A new reader that goes on at these positions, or at the length held if that is less:
        so it can compare what it holds beyond."""
        padded = [*start, *([0] * (len(self.choices) - len(start)))]
        sent = [min(s, len(c.run)) for s, c in zip(padded, self.choices, strict=True)]
        self.reader = Reader(reader_id, self, sent, now_s)
        self.unread = self.parks = False
        return self.reader

    @property
    def journal_done(self) -> bool:
        """The journal has all there will ever be, or will have none of it."""
        return self.life is Life.FENCED or self._seal_answered

    @property
    def urgent(self) -> bool:
        """A checkpoint should not wait: the first of the epoch, the last, or one that says
        whether the generation is read."""
        sealed = self.life in (Life.SEALED, Life.FINISHED)
        told = self._answered and self._told_unread is self.unread
        return not told or (sealed and not self._seal_answered)

    def due(self, interval_s: float, timeout_s: float, now_s: float) -> bool:
        """A checkpoint should be sent now."""
        if self.journal_done:
            return False
        if self._in_flight is not None:
            return now_s - self._sent_s >= timeout_s
        return self.urgent or (self._behind() and now_s - self._sent_s >= interval_s)

    def _behind(self) -> bool:
        return any(
            len(choice.run) > journaled
            for choice, journaled in zip(self.choices, self._journaled, strict=True)
        ) or any(
            choice.finish is not None and index not in self._journaled_ends
            for index, choice in enumerate(self.choices)
        )

    def checkpoint(self, message: int, now_s: float) -> Checkpoint:
        """Everything the journal has not answered for."""
        spans = []
        ends = frozenset(i for i, choice in enumerate(self.choices) if choice.finish is not None)
        for index, (choice, start) in enumerate(zip(self.choices, self._journaled, strict=True)):
            if len(choice.run) > start or (index in ends and index not in self._journaled_ends):
                spans.append(choice.run.span(index, start, None, choice.finish))
        sealed = self.life in (Life.SEALED, Life.FINISHED)
        self._in_flight = _Sent(message, self.lengths, ends, self.unread)
        if sealed and self._sealed_since is None:
            self._sealed_since = message
        self._sent_s = now_s
        return Checkpoint(
            self.request.generation_id,
            self.epoch,
            self.incarnation,
            self.formation_id,
            None if self._answered else self.request,
            tuple(spans),
            sealed,
            self.unread,
        )

    def answered(self, message: int, result: CheckpointResult) -> None:
        """The journal holds `result.lengths`; where that is less than was sent, go on from it.
        A late answer to an earlier message says nothing of what was sent since."""
        self._answered = True
        self._journaled = [
            min(length, len(choice.run))
            for length, choice in zip(result.lengths, self.choices, strict=True)
        ]
        if self._sealed_since is not None and message >= self._sealed_since:
            self._seal_answered = tuple(self._journaled) == self.lengths
        sent = self._in_flight
        if sent is None or sent.message != message:
            return
        self._in_flight = None
        self._told_unread = sent.unread
        if all(has >= said for has, said in zip(self._journaled, sent.lengths, strict=True)):
            self._journaled_ends |= sent.ends

    def resend(self) -> None:
        """What is in flight may be lost; messages are counted anew. The other end may be a new
        process, which knows of no unread generation."""
        self._in_flight = self._sealed_since = None
        self._told_unread = False
