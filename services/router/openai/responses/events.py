"""What is told of a response: its events and its object, functions of (request, ids) alone.

Each id that shows text is one event, however ids came together, so the event of a number is the
same at every router, whichever heads the response had. A reader names the last number it had, or
the last event's id: that names the ids, too, which heads that are not exact may have lost since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from services.common.exchange import GenerationState, GenerationView
from services.common.generation import FinishReason, GenerationRequest, TokenLogprob
from services.common.token_run import TokenRun, event_id
from services.model.vocabulary import Vocabulary
from services.router.core.parts import Thought
from services.router.core.speech import ChoiceSpeech
from services.router.openai.answers import named_token
from services.router.openai.responses.details import PREFIX, Details, details_of
from services.router.openai.responses.output import Output

_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Status(StrEnum):
    """Where a response stands."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = {
    FinishReason.STOP: Status.COMPLETED,
    FinishReason.LENGTH: Status.INCOMPLETE,
    FinishReason.GRAMMAR: Status.FAILED,
}
_OPEN = (Status.QUEUED, Status.IN_PROGRESS)
_STUCK = {
    "code": "server_error",
    "message": "what the answer had to follow became too much to go on with",
}


class ResponseEvents:
    """Follows one response; hand it every id, in any portions, and take what they tell."""

    def __init__(
        self, request: GenerationRequest, vocabulary: Vocabulary, after: int | None = None
    ) -> None:
        """`after` is the number of the last event that the reader has had."""
        self._request = request
        self._vocabulary = vocabulary
        self._after = -1 if after is None else after
        self._details: Details = details_of(request)
        self._speech = ChoiceSpeech(request, vocabulary, 0)
        self._output = Output(request.generation_id, self._event)
        self._untold: list[tuple[int, TokenLogprob]] = []
        """Ids behind the last part of a message, where logprobs were asked for."""
        self._thought_tokens = 0
        self._cached_tokens = 0
        self._run = TokenRun()
        """All ids so far."""
        self._began = False
        self._finish: FinishReason | None = None
        self.number = -1
        """Of the last event there is so far."""

    def begin(self) -> bytes:
        """The events before any id."""
        data = b""
        if not self._began:
            self._began = True
            data += self._event("response.created", response=self._object(self._first_status()))
            if self._first_status() is Status.QUEUED:
                data += self._event("response.queued", response=self._object(Status.QUEUED))
            data += self._event("response.in_progress", response=self._object(Status.IN_PROGRESS))
        return data

    def feed(
        self, ids: Sequence[int], logprobs: Sequence[TokenLogprob] = (), cached_tokens: int = 0
    ) -> bytes:
        """The events of the next ids; `cached_tokens` come with the first of them."""
        data = [self.begin()]
        self._cached_tokens = cached_tokens or self._cached_tokens
        for index, token_id in enumerate(ids):
            if self._finish is not None:
                break
            self._run.append(len(self._run), (token_id,))
            if self._request.sampling.top_logprobs is not None:
                self._untold.append((token_id, logprobs[index]))
            parts = self._speech.feed((token_id,))
            self._thought_tokens += any(isinstance(part, Thought) for part in parts)
            data += [self._output.take(part, self._logprobs()) for part in parts]
            if self._speech.text.finish is not None:
                data.append(self._end(self._speech.text.finish))
        return b"".join(data)

    def ended(self, finish: FinishReason | None) -> bytes:
        """The events of an end that ids alone do not tell: its grammar allows nothing more."""
        if self._finish is None and finish is FinishReason.GRAMMAR:
            return self._end(finish)
        return b""

    def whole(self, *, cancelled: bool = False) -> dict[str, Any]:
        """The response as it stands; `cancelled`: no more ids come."""
        status = self._first_status()
        if self._finish is not None:
            status = _ENDS[self._finish]
        elif cancelled:
            status = Status.CANCELLED
        elif self._speech.text.count:
            status = Status.IN_PROGRESS
        return self._object(status, self._output.items(_item_status(status)))

    def error(self, body: dict[str, Any]) -> bytes:
        """The event of a reader that ends before the response does. It has the number of the event
        before it: who goes on behind it misses nothing."""
        told = {"code": body["code"], "message": body["message"], "param": body["param"]}
        data = _dump({"type": "error", **told, "sequence_number": max(self.number, 0)})
        return f"event: error\ndata: {data}\n\n".encode()

    def _first_status(self) -> Status:
        return Status.QUEUED if self._request.runs_unread else Status.IN_PROGRESS

    def _logprobs(self) -> list[dict[str, Any]]:
        """Of the ids that nothing has told; they are told now."""
        untold, self._untold = self._untold, []
        return [named_token(self._vocabulary, token_id, entry) for token_id, entry in untold]

    def _end(self, finish: FinishReason) -> bytes:
        self._finish = finish
        status = _ENDS[finish]
        name = status if status in (Status.INCOMPLETE, Status.FAILED) else Status.COMPLETED
        data = self._output.end(_item_status(status), self._logprobs())
        whole = self._object(status, self._output.items(""))
        return data + self._event(f"response.{name}", response=whole)

    def _event(self, kind: str, **said: Any) -> bytes:
        self.number += 1
        if self.number <= self._after:
            return b""
        data = _dump({"type": kind, "sequence_number": self.number, **said})
        where = f"{self.number}:{event_id((self._run,), (len(self._run),))}"
        return f"event: {kind}\nid: {where}\ndata: {data}\n\n".encode()

    def _object(self, status: Status, output: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        request, terms = self._request, self._request.response
        assert terms is not None
        sampling = request.sampling
        ended = status not in _OPEN
        return {
            "id": PREFIX + request.generation_id,
            "object": "response",
            "created_at": request.created_unix_s,
            "status": status.value,
            "background": terms.background,
            "store": terms.store,
            "model": request.model.model_id,
            "error": _STUCK if status is Status.FAILED else None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status is Status.INCOMPLETE else None
            ),
            "output": list(output),
            "temperature": _as_said(sampling.temperature),
            "top_p": _as_said(sampling.top_p),
            "truncation": "disabled",
            "service_tier": "default",
            **self._details.told,
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        given, made = len(self._request.prompt_ids), self._speech.text.count
        return {
            "input_tokens": given,
            "input_tokens_details": {
                "cached_tokens": self._cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self._thought_tokens},
            "total_tokens": given + made,
        }


def told_of(
    view: GenerationView, vocabulary: Vocabulary, after: int | None = None
) -> tuple[ResponseEvents, bytes]:
    """What the journal holds of a response, and its events behind a number."""
    events = ResponseEvents(view.request, vocabulary, after)
    data = [events.begin()]
    for span in view.spans:
        data.append(events.feed(span.ids, span.logprobs, span.cached_tokens))
        data.append(events.ended(span.finish_reason))
    return events, b"".join(data)


def whole_of(view: GenerationView, vocabulary: Vocabulary) -> dict[str, Any]:
    """The response as the journal has it."""
    events, _ = told_of(view, vocabulary, _ALL)
    return events.whole(cancelled=view.state is GenerationState.CANCELLED)


_ALL = 1 << 62
"""Behind every event there will be."""


def _item_status(status: Status) -> str:
    if status is Status.COMPLETED:
        return "completed"
    return "in_progress" if status in _OPEN else "incomplete"


def _as_said(value: float) -> float:
    """Without what 32 bits add to a decimal fraction."""
    return float(f"{value:.7g}")
