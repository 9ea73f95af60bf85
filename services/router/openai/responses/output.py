"""The items of a response's output as they come to light, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.router.core.parts import Called, Part, Said, Thought

Json = dict[str, Any]
Emit = Callable[..., bytes]
"""Makes an event of a kind, and of what it says."""


@dataclass(slots=True)
class _Open:
    """The item that grows."""

    of: type[Part]
    index: int
    """Within the output."""
    base: Json
    texts: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def place(self) -> Json:
        """Where events about it are to be put."""
        place = {"item_id": self.base["id"], "output_index": self.index}
        return place if self.of is Called else {**place, "content_index": 0}

    def part(self, text: str, logprobs: Sequence[Json] = ()) -> Json:
        """Its content."""
        if self.of is Thought:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": list(logprobs),
        }

    @property
    def nothing(self) -> Any:
        """What it begins with."""
        return "" if self.of is Called else []

    def whole(self, status: str) -> Json:
        """The item as it stands."""
        if self.of is Called:
            return {**self.base, "status": status, "arguments": self.text}
        content = [self.part(self.text, self.logprobs)]
        return {**self.base, "status": status, "content": content}


class Output:
    """Messages, thoughts and calls in the order of the text."""

    def __init__(self, generation_id: str, emit: Emit) -> None:
        self._generation_id = generation_id
        self._emit = emit
        self._ended: list[Json] = []
        self._open: _Open | None = None

    def take(self, part: Part, logprobs: Sequence[Json]) -> bytes:
        """The events of the next part; `logprobs` are of the ids since the last one."""
        data = b""
        item = self._open
        if item is None or item.of is not type(part) or (isinstance(part, Called) and part.name):
            data, item = self._begun(part)
        said = part.arguments if isinstance(part, Called) else part.text
        if not said:
            return data
        item.texts.append(said)
        if isinstance(part, Said):
            item.logprobs += logprobs
            short = list(map(_without_bytes, logprobs))
            more = self._emit(
                "response.output_text.delta", **item.place, delta=said, logprobs=short
            )
        elif isinstance(part, Thought):
            more = self._emit("response.reasoning_text.delta", **item.place, delta=said)
        else:
            more = self._emit("response.function_call_arguments.delta", **item.place, delta=said)
        return data + more

    def end(self, status: str, logprobs: Sequence[Json]) -> bytes:
        """The last events; an answer without anything is a message that is empty. `logprobs` are of
        the ids behind the last part."""
        data = b""
        if self._open is None:
            data, _ = self._begun(Said(""))
        if self._open is not None and self._open.of is Said:
            self._open.logprobs += logprobs
        return data + self._close(status)

    def items(self, status: str) -> list[Json]:
        """As they stand; `status` is that of the one that grows."""
        return [*self._ended, *([self._open.whole(status)] if self._open is not None else [])]

    def _begun(self, part: Part) -> tuple[bytes, _Open]:
        data = self._close("completed")
        index = len(self._ended)
        name = f"{_PREFIXES[type(part)]}_{self._generation_id}_o{index}"
        base: Json = {"id": name, "type": "message", "role": "assistant"}
        if isinstance(part, Thought):
            base = {"id": name, "type": "reasoning", "summary": []}
        elif isinstance(part, Called):
            called = {"call_id": part.call_id, "name": part.name}
            base = {"id": name, "type": "function_call", **called}
        item = self._open = _Open(type(part), index, base)
        begun: Json = {**base, "status": "in_progress"}
        begun["arguments" if isinstance(part, Called) else "content"] = item.nothing
        data += self._emit("response.output_item.added", output_index=index, item=begun)
        if not isinstance(part, Called):
            data += self._emit("response.content_part.added", **item.place, part=item.part(""))
        return data, item

    def _close(self, status: str) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        whole = item.whole(status)
        self._ended.append(whole)
        if item.of is Called:
            told = {"name": item.base["name"], "arguments": item.text}
            data = self._emit("response.function_call_arguments.done", **item.place, **told)
        else:
            data = self._done(item)
        return data + self._emit("response.output_item.done", output_index=item.index, item=whole)

    def _done(self, item: _Open) -> bytes:
        if item.of is Thought:
            data = self._emit("response.reasoning_text.done", **item.place, text=item.text)
        else:
            short = list(map(_without_bytes, item.logprobs))
            data = self._emit(
                "response.output_text.done", **item.place, text=item.text, logprobs=short
            )
        part = item.part(item.text, item.logprobs)
        return data + self._emit("response.content_part.done", **item.place, part=part)


_PREFIXES = {Said: "msg", Thought: "rs", Called: "fc"}


def _without_bytes(entry: Json) -> Json:
    """As events have it."""
    top = [{"token": t["token"], "logprob": t["logprob"]} for t in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}
