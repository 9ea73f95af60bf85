"""Events and whole answers in the shapes of OpenAI's two completion APIs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from services.common.generation import GenerationKind, GenerationRequest, TokenLogprob
from services.model.vocabulary import Vocabulary
from services.router.core.transcript import Delta, Usage

DONE = b"data: [DONE]\n\n"
_OBJECTS = {
    GenerationKind.CHAT: ("chatcmpl-", "chat.completion"),
    GenerationKind.COMPLETION: ("cmpl-", "text_completion"),
}


_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Answers:
    """Renders one generation; what never changes is rendered once."""

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self._request = request
        self._vocabulary = vocabulary
        self._chat = request.kind is GenerationKind.CHAT
        prefix, name = _OBJECTS[request.kind]
        self._envelope = {
            "id": prefix + request.generation_id,
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
        """The last event before [DONE], for those who asked for it."""
        data = f'{self._head},"choices":[],"usage":{_dump(_usage(usage))}}}'
        return f"id: {event_id}\ndata: {data}\n\n".encode()

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> bytes:
        """The whole answer; one delta from position 0 a choice."""
        choices = [self._whole_choice(delta) for delta in sorted(deltas, key=lambda d: d.choice)]
        return _dump({**self._envelope, "choices": choices, "usage": _usage(usage)}).encode()

    def _frame(self, event_id: str, choice: str) -> bytes:
        named = f"id: {event_id}\n" if event_id else ""
        return f'{named}data: {self._head},"choices":[{choice}]{self._tail}\n\n'.encode()

    def _choice(self, delta: Delta) -> str:
        logprobs = _dump(self._logprobs(delta)) if delta.logprobs else "null"
        finish = f'"{delta.finish}"' if delta.finish else "null"
        text = _dump(delta.text)
        if not self._chat:
            shown = f'"text":{text}'
        elif delta.text or not delta.finish:
            shown = f'"delta":{{"content":{text}}}'
        else:
            shown = '"delta":{}'
        return f'{{"index":{delta.choice},{shown},"logprobs":{logprobs},"finish_reason":{finish}}}'

    def _whole_choice(self, delta: Delta) -> dict[str, Any]:
        shown: dict[str, Any] = {"text": delta.text}
        if self._chat:
            message = {"role": "assistant", "content": delta.text, "refusal": None}
            shown = {"message": message}
        return {
            "index": delta.choice,
            **shown,
            "logprobs": self._logprobs(delta) if delta.logprobs else None,
            "finish_reason": delta.finish,
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        pairs = list(zip(delta.ids, delta.logprobs, strict=True))
        if self._chat:
            return {
                "content": [self._token(token_id, entry) for token_id, entry in pairs],
                "refusal": None,
            }
        return {
            "tokens": [self._spelt(token_id) for token_id in delta.ids],
            "token_logprobs": [_finite(entry.logprob) for entry in delta.logprobs],
            "top_logprobs": [self._likeliest(token_id, entry) for token_id, entry in pairs],
            "text_offset": list(delta.offsets),
        }

    def _likeliest(self, token_id: int, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens, and the one that came, should it be none of them."""
        found: dict[str, float] = {}
        for other, logprob in (*entry.top, (token_id, entry.logprob)):
            found.setdefault(self._spelt(other), _finite(logprob))
        return found

    def _token(self, token_id: int, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._named(other, value) for other, value in entry.top]
        return {**self._named(token_id, entry.logprob), "top_logprobs": top}

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._vocabulary.label(token_id).decode("utf-8", "replace"),
            "bytes": list(self._vocabulary.label(token_id)),
            "logprob": _finite(logprob),
        }

    def _spelt(self, token_id: int) -> str:
        """A token's name as a key: a part of a character by its bytes, for all parts of characters
        would look the same."""
        label = self._vocabulary.label(token_id)
        try:
            return label.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in label)


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's own stand-in is -9999."""
    return max(logprob, -9999.0)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
