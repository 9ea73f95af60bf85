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
    MovedBy,
    Phase,
    Progress,
    Tokens,
)
from services.common.generation import FinishReason, GenerationRequest, TokenSpan, finish_of
from services.common.message_sizes import token_bytes
from services.common.prefix import owner_of, root_of
from services.common.token_run import TokenRun
from services.engine.core.actions import (
    Action,
    SequenceKey,
    SetUnread,
    StartSequence,
    WakeCheckpoints,
)
from services.engine.core.head_settings import HeadSettings


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
    names: list[bytes] = field(default_factory=list)
    """Of blocks, where it stops to go on elsewhere: from the first on, as far as anybody asked."""


class Cut:
    """What of several choices goes into one message."""

    def __init__(self, room_bytes: int, token_bytes: int) -> None:
        self.spans: list[TokenSpan] = []
        self.whole = True
        """Nothing was left out."""
        self.end = 0
        """Where the span taken last ends."""
        self.ends = False
        """It says that its choice ends there."""
        self._room = max(1, room_bytes // token_bytes)

    def take(self, index: int, choice: Choice, start: int, *, told: bool) -> bool:
        """Takes what there is from `start` on, as far as there is room, and the choice's end if
        that was not told; False: nothing."""
        length = len(choice.run)
        self.end = min(length, start + self._room)
        self.ends = self.end == length and choice.finish is not None and not told
        self.whole = self.whole and self.end == length
        if self.end == start and not self.ends:
            return False
        finish = choice.finish if self.end == length else None
        self.spans.append(choice.run.span(index, start, self.end, finish))
        self._room -= self.end - start
        return True


@dataclass(slots=True)
class StreamReader:
    """One attached stream and what it has had."""

    reader_id: int
    held: HeldGeneration
    sent: list[int]
    last_frame_s: float
    for_nobody: bool = False
    """It has no client."""
    told: set[int] = field(default_factory=set)
    """Choices whose end it knows."""
    accepted: bool = False
    closing: CloseReason | None = None
    """Set when it ends apart from its generation."""

    def is_silent(self, settings: HeadSettings, now_s: float) -> bool:
        """It has had no frame for the interval of its generation: one that runs, or is queued."""
        silent_s = now_s - self.last_frame_s
        if silent_s < settings.frame_interval_s:
            return False
        queued = self.held.phase is Phase.QUEUED
        return not queued or silent_s >= settings.queued_frame_interval_s

    def next_frame(self, step: int, settings: HeadSettings, now_s: float) -> Frame | None:
        """What to send next; None when nothing is due."""
        frame = self._due(step, settings.frame_bytes)
        if frame is None and self.is_silent(settings, now_s):
            frame = Progress(step, self.held.phase)
        if frame is not None:
            self.last_frame_s = now_s
        return frame

    def _due(self, step: int, room_bytes: int) -> Frame | None:
        held = self.held
        if self.closing is not None:
            return Closed(self.closing, held.lengths)
        if not self.accepted:
            self.accepted = True
            return Accepted(held.formation_id, held.incarnation, held.numerics_class, held.lengths)
        if held.life is not Life.FENCED and (spans := self._unsent(room_bytes)):
            return Tokens(spans, step)
        if held.closing is not None:
            return Closed(held.closing, held.lengths)
        return None

    def _unsent(self, room_bytes: int) -> tuple[TokenSpan, ...]:
        cut = Cut(room_bytes, self.held.token_bytes)
        for index, choice in enumerate(self.held.choices):
            if cut.take(index, choice, self.sent[index], told=index in self.told):
                self.sent[index] = cut.end
                if cut.ends:
                    self.told.add(index)
        return tuple(cut.spans)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a checkpoint said, and in which message."""

    message: int
    lengths: Lengths
    ends: frozenset[int]
    unread: bool


class HeldGeneration:
    """One generation in one epoch."""

    def __init__(
        self, call: GenerateCall, incarnation: str, numerics_class: str, now_s: float
    ) -> None:
        request = call.request
        if not request.numerics_class:
            request = replace(request, numerics_class=numerics_class)
        self.request: GenerationRequest = request
        self.token_bytes = token_bytes(request)
        """Of one of its tokens in a message."""
        self.numerics_class = numerics_class
        """Of this head; the request names the one that the generation began with."""
        self.epoch = call.epoch
        self.formation_id = call.formation_id
        self.incarnation = incarnation
        self.choices = [Choice() for _ in range(request.choices)]
        self.life = Life.LIVE
        self.closing: CloseReason | None = None
        self.reader: StreamReader | None = None
        self.read_by = ""
        """The name of the present reader, or of the last."""
        self.unread_since_s = now_s
        self.unread = False
        """Nobody reads it, and that is no blip: it yields to what is read."""
        self.client_gone: bool | None = None
        """The client of the present reader, or of the last, is gone, and whether it can resume."""
        self.ended_s = now_s
        for span in call.held:
            self._go_on_from(span)
        self.goes_on = call.epoch > 1 and any(self.lengths)
        """It has ids that another head sampled."""
        self.hand_on = call.hand_on and not any(map(self._has_begun, self.choices))
        """It is sealed behind its first token."""
        self.moved_by: MovedBy = ""
        """How its sequences came to what they go on from, once that is known."""
        self.owner = owner_of(root_of(request))
        """Names it as the owner of its blocks; empty where these may be anybody's."""
        self.inexact = False
        """Some of what they go on from was rounded."""
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
        if choice.run.append(span.start, span.ids, span.logprobs, span.cached_tokens).gap:
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

    def _has_begun(self, choice: Choice) -> bool:
        return len(choice.run) > len(self.request.sampling.given_ids)

    @property
    def is_handed_on(self) -> bool:
        """It is to go on elsewhere, and could by now: every choice has its first token, or has
        ended."""
        choices = self.choices
        return self.hand_on and all(c.finish or self._has_begun(c) for c in choices)

    def to_go_on(self) -> list[StartSequence]:
        """What others will start of it."""
        return [
            StartSequence(self.key(index), self.request, tuple(choice.run.ids), names=choice.names)
            for index, choice in enumerate(self.choices)
            if choice.finish is None
        ]

    def key(self, index: int) -> SequenceKey:
        """Names a choice's sequence to the scheduler."""
        return SequenceKey(self.request.generation_id, self.epoch, index)

    @property
    def keys_in_batch(self) -> list[SequenceKey]:
        """Of the sequences that the scheduler has, or that a step may carry."""
        return [self.key(index) for index, choice in enumerate(self.choices) if choice.in_batch]

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

    def set_unread(self, unread: bool) -> list[Action]:
        """Lets the scheduler and the journal know whether it is read; said again, or of what runs
        no more, it changes nothing. The scheduler need not know it of what runs unread."""
        if self.unread is unread or self.life is not Life.LIVE:
            return []
        self.unread = unread
        keys = () if self.request.runs_unread else self.keys_in_batch
        return [*(SetUnread(key, unread) for key in keys), WakeCheckpoints()]

    @property
    def has_client(self) -> bool:
        """Somebody waits for what its present reader is sent."""
        there = self.reader is not None and not self.reader.for_nobody
        return there and self.client_gone is None

    def attach(self, reader_id: int, call: GenerateCall, now_s: float) -> StreamReader:
        """A new reader that goes on at these positions, or at the length held if that is less:
        so it can compare what it holds beyond."""
        start, self.read_by = call.from_lengths, call.reader
        padded = [*start, *([0] * (len(self.choices) - len(start)))]
        sent = [min(s, len(c.run)) for s, c in zip(padded, self.choices, strict=True)]
        self.reader = StreamReader(reader_id, self, sent, now_s, call.for_nobody)
        self.unread, self.client_gone = False, None
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

    @property
    def owes(self) -> bool:
        """A checkpoint is due at some time, even if nothing more happens to it."""
        pending = self._in_flight is not None or self.urgent or self._behind()
        return pending and not self.journal_done

    def _behind(self) -> bool:
        return any(
            len(choice.run) > journaled
            for choice, journaled in zip(self.choices, self._journaled, strict=True)
        ) or any(
            choice.finish is not None and index not in self._journaled_ends
            for index, choice in enumerate(self.choices)
        )

    def checkpoint(self, message: int, room_bytes: int, now_s: float) -> Checkpoint:
        """What the journal has not answered for, as far as there is room."""
        cut = Cut(room_bytes, self.token_bytes)
        lengths, ends = list(self._journaled), set(self._journaled_ends)
        for index, choice in enumerate(self.choices):
            told = index in self._journaled_ends
            if cut.take(index, choice, self._journaled[index], told=told):
                lengths[index] = cut.end
                if cut.ends:
                    ends.add(index)
        sealed = cut.whole and self.life in (Life.SEALED, Life.FINISHED)
        self._in_flight = _Sent(message, tuple(lengths), frozenset(ends), self.unread)
        if sealed and self._sealed_since is None:
            self._sealed_since = message
        self._sent_s = now_s
        return Checkpoint(
            self.request.generation_id,
            self.epoch,
            self.incarnation,
            self.formation_id,
            None if self._answered else self.request,
            tuple(cut.spans),
            sealed,
            self.unread,
            self.moved_by,
            self.inexact,
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
