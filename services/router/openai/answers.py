"""Events and whole answers in the shapes of OpenAI's two completion APIs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.common.generation import GenerationKind, GenerationRequest, TokenLogprob
from services.model.vocabulary import Vocabulary
from services.router.core.parts import Called
from services.router.core.transcript import Delta, Usage

DONE = b"data: [DONE]\n\n"
_OBJECTS = {
    GenerationKind.CHAT: ("chatcmpl-", "chat.completion"),
    GenerationKind.COMPLETION: ("cmpl-", "text_completion"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A generation's place in an answer that is about several."""

    number: int
    answer_id: str
    """The first generation's: one answer has one name."""


_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Answers:
    """Renders one generation; what never changes is rendered once."""

    def __init__(
        self, request: GenerationRequest, vocabulary: Vocabulary, place: Place | None = None
    ) -> None:
        """`place` is its own among the prompts of a request that has several."""
        self._request = request
        self._first_index = 0 if place is None else place.number * request.choices
        self._id_prefix = "" if place is None else f"{request.generation_id}:"
        self._vocabulary = vocabulary
        self._chat = request.kind is GenerationKind.CHAT
        self._shows_prompt = request.sampling.echo
        prefix, name = _OBJECTS[request.kind]
        self._envelope = {
            "id": prefix + (request.generation_id if place is None else place.answer_id),
            "object": name,
            "created": request.created_unix_s,
            "model": request.model.model_id,
            "system_fingerprint": f"fp_{request.model.digest[:12]}",
        }
        streamed = {**self._envelope, "object": name + ".chunk" if self._chat else name}
        self._head = _dump(streamed)[:-1]
        self._tail = ',"usage":null}' if request.include_usage else "}"

    def roles(self, event_id: str) -> bytes:
        """The first events of a chat: who speaks, a chunk a choice. Only the last has an id, so
        that who missed some of them is told all again."""
        frames = []
        for index in range(self._request.choices):
            choice = {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            last = index == self._request.choices - 1
            frames.append(self._frame(event_id if last else "", _dump(choice)))
        return b"".join(frames)

    def chunks(self, deltas: Sequence[Delta]) -> bytes:
        """Text, and ends; a chunk a choice, for the usual reader looks at `choices[0]` alone."""
        return b"".join(self._frame(delta.event_id, self._choice(delta)) for delta in deltas)

    def usage(self, event_id: str, usage: Usage) -> bytes:
        """The last event before [DONE], for those who asked for it. It has no id where it is about
        several generations."""
        data = f'{self._head},"choices":[],"usage":{_dump(_usage(usage))}}}'
        named = "" if self._id_prefix else f"id: {event_id}\n"
        return f"{named}data: {data}\n\n".encode()

    def choices(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        """What a whole answer has of this generation; one delta from position 0 a choice."""
        return [self._whole_choice(delta) for delta in sorted(deltas, key=lambda d: d.choice)]

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The whole answer."""
        return _dump({**self._envelope, "choices": choices, "usage": _usage(usage)}).encode()

    def _frame(self, event_id: str, choice: str) -> bytes:
        named = f"id: {self._id_prefix}{event_id}\n" if event_id else ""
        return f'{named}data: {self._head},"choices":[{choice}]{self._tail}\n\n'.encode()

    def _choice(self, delta: Delta) -> str:
        logprobs = _dump(self._logprobs(delta)) if delta.logprobs else "null"
        finish = f'"{_finish(delta)}"' if delta.finish else "null"
        shown = f'"delta":{_dump(_told(delta))}' if self._chat else f'"text":{_dump(delta.text)}'
        index = self._first_index + delta.choice
        return f'{{"index":{index},{shown},"logprobs":{logprobs},"finish_reason":{finish}}}'

    def _whole_choice(self, delta: Delta) -> dict[str, Any]:
        shown: dict[str, Any] = {"text": delta.text}
        if self._chat:
            shown = {"message": {"role": "assistant", **_message(delta), "refusal": None}}
        return {
            "index": self._first_index + delta.choice,
            **shown,
            "logprobs": self._logprobs(delta) if delta.logprobs else None,
            "finish_reason": _finish(delta),
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        pairs = list(zip(delta.ids, delta.logprobs, strict=True))
        if self._chat:
            return {
                "content": [
                    named_token(self._vocabulary, token_id, entry) for token_id, entry in pairs
                ],
                "refusal": None,
            }
        # Of a prompt's first token nothing can be said: nothing stands before it.
        first = self._request.prompt_ids if self._shows_prompt and not delta.start else ()
        unsaid = [None] * len(first)
        return {
            "tokens": [self._spelt(token_id) for token_id in (*first, *delta.ids)],
            "token_logprobs": [*unsaid, *(_finite(entry.logprob) for entry in delta.logprobs)],
            "top_logprobs": [*unsaid, *(self._likeliest(i, entry) for i, entry in pairs)],
            "text_offset": [*([0] * len(first)), *delta.offsets],
        }

    def _likeliest(self, token_id: int, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens, and the one that came, should it be none of them."""
        found: dict[str, float] = {}
        for other, logprob in (*entry.top, (token_id, entry.logprob)):
            found.setdefault(self._spelt(other), _finite(logprob))
        return found

    def _spelt(self, token_id: int) -> str:
        """A token's name as a key: a part of a character by its bytes, for all parts of characters
        would look the same."""
        label = self._vocabulary.label(token_id)
        try:
            return label.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in label)


def _finish(delta: Delta) -> str | None:
    return "tool_calls" if delta.made_calls else delta.finish


def _told(delta: Delta) -> dict[str, Any]:
    """What a chunk adds to a message: of thoughts, of text, of calls."""
    told: dict[str, Any] = {}
    if reasoning := delta.reasoning:
        told["reasoning_content"] = reasoning
    if text := delta.text:
        told["content"] = text
    if calls := delta.calls:
        told["tool_calls"] = [_piece(call) for call in calls]
    return told


def _piece(call: Called) -> dict[str, Any]:
    """Only a call's first piece names it."""
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **_whole_call(call)}


def _message(delta: Delta) -> dict[str, Any]:
    """A whole message; content is null where there are calls alone."""
    calls, message = delta.calls, {"content": delta.text or (None if delta.calls else "")}
    if reasoning := delta.reasoning:
        message["reasoning_content"] = reasoning
    return message | ({"tool_calls": [_whole_call(call) for call in calls]} if calls else {})


def _whole_call(call: Called) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def named_token(vocabulary: Vocabulary, token_id: int, entry: TokenLogprob) -> dict[str, Any]:
    """A token with its log probability, and the likeliest ones in its place."""
    top = [_named(vocabulary, other, value) for other, value in entry.top]
    return {**_named(vocabulary, token_id, entry.logprob), "top_logprobs": top}


def _named(vocabulary: Vocabulary, token_id: int, logprob: float) -> dict[str, Any]:
    label = vocabulary.label(token_id)
    return {
        "token": label.decode("utf-8", "replace"),
        "bytes": list(label),
        "logprob": _finite(logprob),
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's own stand-in is -9999."""
    return max(logprob, -9999.0)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
