"""What one choice says, thinks and calls, a function of (request, ids).

What is told up to any id depends on the ids alone, not on how they came, and what was told never
changes: so a reader that comes back at an event, at any router, is told the same pieces of the same
calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from services.common.generation import PLAIN, CallForm, FinishReason, GenerationRequest
from services.model.vocabulary import Vocabulary
from services.router.core.calls.hermes import HermesCalls
from services.router.core.calls.llama import LlamaCalls
from services.router.core.calls.mistral import MistralCalls
from services.router.core.parts import Numbering, Part, joined, said
from services.router.core.text import ChoiceText
from services.router.core.thoughts import Thoughts


class _Calls(Protocol):
    """Divides a text into what is said and what is called."""

    def feed(self, text: str) -> list[Part]: ...

    def end(self) -> list[Part]: ...


_READERS: Mapping[CallForm, Callable[[Numbering], _Calls]] = {
    CallForm.HERMES: HermesCalls,
    CallForm.LLAMA: LlamaCalls,
    CallForm.MISTRAL: MistralCalls,
    CallForm.MISTRAL_ARGS: MistralCalls,
}


class ChoiceSpeech:
    """One choice as its ids come in."""

    __slots__ = ("_calls", "_named", "_numbering", "_plain", "_thoughts", "text")

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary, choice: int) -> None:
        self.text = ChoiceText(request, vocabulary)
        parts = request.parts
        self._plain = parts == PLAIN
        self._named = parts.named
        self._thoughts = Thoughts(parts.thinking)
        self._numbering = Numbering(request.generation_id, choice, parts.tools)
        self._calls = _READERS[parts.calls](self._numbering) if parts.calls else None

    @property
    def made_calls(self) -> bool:
        """It has stopped for its calls to be made."""
        numbering = self._numbering
        stopped = self.text.finish is FinishReason.STOP and not self._named
        return stopped and numbering.count > 0 and not numbering.open

    def feed(self, ids: Iterable[int]) -> tuple[Part, ...]:
        """Takes the next ids and returns what they bring to light; ids behind the end count for
        nothing."""
        ended = self.text.finish is not None
        text = self.text.feed(ids)
        if self._plain:
            return tuple(said(text))
        ends = not ended and self.text.finish is not None
        return joined([*self._divided(text), *(self._end() if ends else ())])

    def _divided(self, text: str) -> list[Part]:
        thoughts, answer = self._thoughts.feed(text)
        return [*thoughts, *self._answer(answer)]

    def _answer(self, text: str) -> list[Part]:
        return said(text) if self._calls is None else self._calls.feed(text)

    def _end(self) -> list[Part]:
        thoughts, answer = self._thoughts.end()
        parts = [*thoughts, *self._answer(answer)]
        return parts if self._calls is None else [*parts, *self._calls.end()]
