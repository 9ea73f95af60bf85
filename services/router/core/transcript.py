"""What a reader is told of a generation: events, named by the ids they end at.

An event's text is E(k) minus E(the last event's k), so that any router tells any reader the same,
however tokens were coalesced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidArgument, OutOfRange
from services.common.generation import FinishReason, GenerationRequest, TokenLogprob, TokenSpan
from services.common.token_run import TokenRun, event_id, matches_event_id, parse_event_id
from services.model.vocabulary import Vocabulary
from services.router.core.parts import Called, Part, Said, Thought, joined
from services.router.core.speech import ChoiceSpeech

_END_MARK = ".end"


@dataclass(frozen=True, slots=True)
class Position:
    """A point of a stream that a reader has reached."""

    lengths: tuple[int, ...]
    checksum: int
    ended: bool = False
    """The reader has had usage, too."""

    @classmethod
    def parse(cls, text: str, choices: int | None = None) -> Position:
        """Raises InvalidArgument for what no router has sent."""
        ended = text.endswith(_END_MARK)
        lengths, checksum = parse_event_id(text.removesuffix(_END_MARK))
        if choices is not None and len(lengths) != choices:
            raise InvalidArgument(
                f"the event id names {len(lengths)} choices of {choices}", field="last_event_id"
            )
        return cls(lengths, checksum, ended)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to one choice."""

    choice: int
    start: int
    """Output position of the first id."""
    ids: tuple[int, ...]
    parts: tuple[Part, ...]
    """In order, neighbours of one kind as one."""
    logprobs: tuple[TokenLogprob, ...]
    offsets: tuple[int, ...]
    """Characters known before each id; there when logprobs are."""
    finish: FinishReason | None
    """Set in the event that ends the choice."""
    made_calls: bool
    """It ends for its calls of tools to be made."""
    event_id: str
    """Names how far the reader was told once it has this delta and those before it."""

    @property
    def text(self) -> str:
        """What is said."""
        return "".join(part.text for part in self.parts if isinstance(part, Said))

    @property
    def reasoning(self) -> str:
        """What is thought."""
        return "".join(part.text for part in self.parts if isinstance(part, Thought))

    @property
    def calls(self) -> tuple[Called, ...]:
        """What is called, at most one piece a call."""
        return tuple(part for part in self.parts if isinstance(part, Called))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt: those that were not computed when it was first read."""

    def __add__(self, other: Usage) -> Usage:
        """Of both together."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


class Transcript:
    """The texts of all choices, and how much of them the reader was told.

    `runs` belong to the follower and grow under this class; call `advance` when they have.
    """

    def __init__(
        self,
        request: GenerationRequest,
        runs: Sequence[TokenRun],
        vocabulary: Vocabulary,
        after: Position | None = None,
    ) -> None:
        self.request = request
        self.vocabulary = vocabulary
        self._runs = runs
        self._speeches = [ChoiceSpeech(request, vocabulary, index) for index in range(len(runs))]
        self._texts = [speech.text for speech in self._speeches]
        self._pending: list[list[Part]] = [[] for _ in runs]
        self._after = after
        self._sent = list(after.lengths) if after else [0] * len(runs)
        self._told_finish = [False] * len(runs)
        self.caught_up = after is None
        """The reader's position is reached, and its ids are the ones held."""

    def advance(self) -> list[tuple[int, int]]:
        """Reads what the runs have gained; returns (choice, length) for each choice that a stop
        string has just ended.

        Raises OutOfRange when the reader's position lies behind the end, FailedPrecondition when
        it was told other ids.
        """
        stopped = []
        for choice, (run, text) in enumerate(zip(self._runs, self._texts, strict=True)):
            if text.finish is not None or text.count == len(run):
                continue
            if text.count < self._sent[choice]:
                self._speeches[choice].feed(run.ids[text.count : self._sent[choice]])
            if text.finish is None and text.count >= self._sent[choice]:
                self._pending[choice] += self._speeches[choice].feed(run.ids[text.count :])
            if text.stopped_by_text:
                stopped.append((choice, text.count))
        if not self.caught_up:
            self._catch_up()
        return stopped

    def _catch_up(self) -> None:
        after = self._after
        assert after is not None
        for text, length in zip(self._texts, after.lengths, strict=True):
            if text.count < length:
                if text.finish is not None:
                    raise OutOfRange("the event lies behind the end", field="last_event_id")
                return
        if not matches_event_id(self._runs, after.lengths, after.checksum):
            raise FailedPrecondition("the event names other ids", field="last_event_id")
        if after.ended and not self.finished:
            raise FailedPrecondition("the event lies behind the end", field="last_event_id")
        self._told_finish = [
            text.finish is not None and text.count == length
            for text, length in zip(self._texts, after.lengths, strict=True)
        ]
        self.caught_up = True

    def had(self, choice: int) -> TokenSpan:
        """What the reader had of a choice when it came; known once it is caught up."""
        length = self._after.lengths[choice] if self._after is not None else 0
        return self._runs[choice].span(choice, 0, length)

    def take(self) -> tuple[Delta, ...]:
        """Everything that came to light since the last call, at most one delta a choice."""
        if not self.caught_up:
            return ()
        return tuple(d for d in map(self._delta, range(len(self._texts))) if d is not None)

    def _delta(self, choice: int) -> Delta | None:
        text, start = self._texts[choice], self._sent[choice]
        shown = joined(self._pending[choice])
        ends = text.finish is not None and not self._told_finish[choice]
        if not shown and not ends:
            return None
        self._pending[choice].clear()
        self._sent[choice] = text.count
        self._told_finish[choice] |= ends
        span = self._runs[choice].span(choice, start, text.count)
        offsets = tuple(text.offsets[start : text.count]) if span.logprobs else ()
        finish = text.finish if ends else None
        return Delta(
            choice,
            start,
            span.ids,
            shown,
            span.logprobs,
            offsets,
            finish,
            ends and self._speeches[choice].made_calls,
            self.event_id(),
        )

    def event_id(self) -> str:
        """Names how far the reader was told."""
        return event_id(self._runs, self._sent)

    def end_id(self) -> str:
        """Names the point behind usage."""
        return self.event_id() + _END_MARK

    @property
    def finished(self) -> bool:
        """Every choice has ended."""
        return all(text.finish is not None for text in self._texts)

    @property
    def told_end(self) -> bool:
        """The reader had usage before."""
        return self._after is not None and self._after.ended

    @property
    def waiting_bytes(self) -> int:
        """About what is kept, rendered, for a reader that does not read."""
        top = self.request.sampling.top_logprobs
        a_token = 16 if top is None else 16 + 128 * (1 + top)
        waiting = sum(text.count - sent for text, sent in zip(self._texts, self._sent, strict=True))
        return waiting * a_token

    @property
    def usage(self) -> Usage:
        """Tokens that count, as far as is known."""
        produced = sum(self.request.answered(text.count) for text in self._texts)
        return Usage(self.request.prompt_tokens, produced, self._runs[0].cached_tokens)
