"""One generation in the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import InvalidArgument
from services.common.exchange import Lengths, MovedBy
from services.common.generation import FinishReason, GenerationRequest, TokenSpan, finish_of
from services.common.token_run import TokenRun
from services.controller.core.ledger.records import Granted, HeadBound


@dataclass(slots=True)
class JournalChoice:
    """The ids of one choice, and where it ends."""

    run: TokenRun = field(default_factory=TokenRun)
    finish: FinishReason | None = None
    stop_length: int | None = None
    """A router found a stop string within this many ids."""

    def reason(self, length: int) -> FinishReason | None:
        """Why the choice ends, if no more than `length` ids are needed."""
        if self.finish is None and self.stop_length is not None and length >= self.stop_length:
            return FinishReason.STOP
        return self.finish


class JournalEntry:
    """One generation: its request, its ids, and who may add to them."""

    def __init__(self, request: GenerationRequest, epoch: int, now_s: float) -> None:
        self.request = request
        self.epoch = epoch
        self.incarnation = ""
        """The head process that holds the epoch; empty when nothing is to run."""
        self.formation_id = ""
        self.left_formation_id = ""
        """Where it was before that; empty when nowhere."""
        self.pipeline_id = ""
        self.classes: tuple[str, ...] = ()
        """Numerics classes of the heads that had it, as far as known, one after another."""
        self.choices = [JournalChoice() for _ in range(request.choices)]
        self.base_lengths: tuple[int, ...] = (0,) * request.choices
        """Ids that this epoch's head was given, by choice."""
        self.computed_again = 0
        """Ids that a head has computed though they were held, as far as checkpoints have told."""
        self._computed_to = [0] * request.choices
        """How far this epoch's head has come, as far as is known, by choice."""
        self.sealed = False
        """The epoch's head has said its last word."""
        self.unread = False
        """Its last reader is known to be gone."""
        self.begun = True
        """The epoch's head has said something of it, or is owed the time to do so."""
        self.moved_by: MovedBy = ""
        """How the epoch's head came to its base, as far as it has said."""
        self.inexact_from: Lengths = ()
        """Where ids begin, by choice, that nobody computes from those before them; empty where each
        of them anybody does."""
        self.handed_on = False
        """The epoch's head handed it on, as its reader said."""
        self.began_at = ""
        """The pipeline that handed it on to the one that has it; empty where none did."""
        self.touched_s = now_s
        """When somebody last had to do with it."""
        self.heard_s = now_s
        """When its head or a reader last had: who merely looks at it takes it nowhere."""

    def hear(self, now_s: float) -> None:
        """Its head or a reader has to do with it."""
        self.touched_s = self.heard_s = now_s

    def give_to(
        self, record: HeadBound | Granted, epoch: int, *, from_the_start: bool = False
    ) -> None:
        """The epoch belongs to this head from now on, with the ids there are as its base, or
        `from_the_start` with those of ended choices alone."""
        self.epoch = epoch
        self.began_at = self.pipeline_id if self.handed_on else ""
        self.incarnation = record.incarnation
        self.left_formation_id = self.formation_id
        self.formation_id = record.formation_id
        self.pipeline_id = record.pipeline_id
        bound = isinstance(record, HeadBound)
        said = record.request if isinstance(record, HeadBound) else record
        numerics = said.numerics_class
        if numerics and self.classes[-1:] != (numerics,):
            self.classes += (numerics,)
        self.base_lengths = self.ended_lengths if from_the_start else self.lengths
        self._computed_to = list(self.base_lengths)
        self.sealed = self.handed_on = False
        self.begun, self.moved_by = bound, ""

    @property
    def numerics_class(self) -> str:
        """Of the head that had it last, as far as known."""
        return self.classes[-1] if self.classes else ""

    @property
    def stored(self) -> bool:
        """It is kept for long behind its end."""
        return self.request.response is not None and self.request.response.store

    @property
    def finished(self) -> bool:
        """Every choice has ended."""
        return self.finished_with(())

    def finished_with(self, held: Sequence[TokenSpan]) -> bool:
        """Every choice has ended, counting what a reader holds beyond the journal."""
        ended = {i for i, c in enumerate(self.choices) if c.reason(len(c.run)) is not None}
        for span in held:
            choice = self.choice(span.choice)
            before = max(0, len(choice.run) - span.start)
            if (
                span.finish_reason is not None
                or choice.reason(span.end) is not None
                or finish_of(self.request, span.ids[before:], span.start + before) is not None
            ):
                ended.add(span.choice)
        return len(ended) == len(self.choices)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ids held, by choice."""
        return tuple(len(choice.run) for choice in self.choices)

    @property
    def ended_lengths(self) -> tuple[int, ...]:
        """Ids of choices that have ended, by choice; of the others none."""
        choices = self.choices
        return tuple(0 if c.reason(len(c.run)) is None else len(c.run) for c in choices)

    def has_begun(self, held: Sequence[TokenSpan]) -> bool:
        """Something was sampled of it, counting what a reader holds beyond the journal."""
        given = len(self.request.sampling.given_ids)
        return any(length > given for length in (*self.lengths, *(span.end for span in held)))

    def in_doubt(self, held: Sequence[TokenSpan]) -> bool:
        """What its head went on from may have been rounded, and it did not come to say so before
        ids of it, counting what a reader holds beyond the journal, or blocks went elsewhere."""
        if not self.request.sampling.kv_int8 or self.epoch <= 1 or self.inexact_from:
            return False
        untold = not self.sealed and self.lengths == self.base_lengths
        return untold or bool(self.fresh(held))

    def told(self, spans: Sequence[TokenSpan]) -> None:
        """The epoch's head says these, before they are appended: counts what was held already."""
        for span in spans:
            held, before = min(span.end, self.lengths[span.choice]), self._computed_to[span.choice]
            if held > before:
                self.computed_again += held - before
                self._computed_to[span.choice] = held

    def choice(self, index: int) -> JournalChoice:
        """Raises InvalidArgument for a choice that was not asked for."""
        if not 0 <= index < len(self.choices):
            raise InvalidArgument(
                f"choice {index} of a request for {len(self.choices)}", field="choice"
            )
        return self.choices[index]

    def compare(self, spans: Sequence[TokenSpan]) -> None:
        """Raises Diverged where ids differ from those held; changes nothing."""
        for span in spans:
            self.choice(span.choice).run.check(span.start, span.ids)

    def fresh(self, spans: Sequence[TokenSpan]) -> tuple[TokenSpan, ...]:
        """What spans that were compared would add; a span behind a gap adds nothing."""
        fresh = (self._fresh(span) for span in spans)
        return tuple(span for span in fresh if span is not None)

    def _fresh(self, span: TokenSpan) -> TokenSpan | None:
        choice = self.choice(span.choice)
        length = len(choice.run)
        if span.start > length:
            return None
        ids, logprobs = span.ids[length - span.start :], span.logprobs[length - span.start :]
        finish = None
        if choice.finish is None:
            end = finish_of(self.request, ids, length)
            finish = end[1] if end is not None else None
            if finish is None and span.end >= length:
                finish = span.finish_reason
        if not ids and finish is None:
            return None
        cached_tokens = 0 if length else span.cached_tokens
        return TokenSpan(span.choice, length, ids, logprobs, finish, cached_tokens)

    def append(self, spans: Sequence[TokenSpan]) -> None:
        """Adds what `fresh` gave."""
        for span in spans:
            choice = self.choice(span.choice)
            choice.run.append(span.start, span.ids, span.logprobs, span.cached_tokens)
            self._computed_to[span.choice] = len(choice.run)
            choice.finish = choice.finish or span.finish_reason

    def spans(self, lengths: Sequence[int] | None = None) -> tuple[TokenSpan, ...]:
        """All ids (up to `lengths`): a span from position 0 for each choice that has any, or that
        has ended."""
        spans = []
        for index, choice in enumerate(self.choices):
            length = len(choice.run) if lengths is None else lengths[index]
            reason = choice.reason(length) if length == len(choice.run) else None
            if length or reason is not None:
                spans.append(choice.run.span(index, 0, length, reason))
        return tuple(spans)

    def is_for(self, request: GenerationRequest | None) -> bool:
        """The request, if given, is this one, whatever arithmetic it began under."""
        if request is None:
            return True
        return replace(request, numerics_class=self.request.numerics_class) == self.request
