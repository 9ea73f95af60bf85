"""E(k): the text of one choice that is shown after k tokens, a function of (request, ids).

Bytes of a character that is not whole yet are held back, and so is any end of the text that a stop
string may begin with. What was shown never changes. Each id is looked at once: the work a token
does not grow with the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from services.common.generation import (
    FinishReason,
    GenerationKind,
    GenerationRequest,
    finish_at,
)
from services.model.vocabulary import Pieces, Vocabulary


class StopString:
    """Follows one stop string through a text (Knuth, Morris, Pratt 1977)."""

    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """Length of the longest end of the text that the stop string begins with."""
        self._fallback = [0] * (len(text) + 1)
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self._fallback[length]
            length += text[index] == text[length]
            self._fallback[index + 1] = length

    def step(self, character: str) -> bool:
        """Takes one character; True when the stop string ends with it."""
        length = self.matched
        if length == len(self.text):
            length = self._fallback[length]
        while length and character != self.text[length]:
            length = self._fallback[length]
        self.matched = length + (character == self.text[length])
        return self.matched == len(self.text)

    @property
    def held(self) -> int:
        """Characters at the text's end that the stop string may still begin with."""
        return self._fallback[-1] if self.matched == len(self.text) else self.matched


class ChoiceText:
    """The text of one choice as its ids come in."""

    __slots__ = (
        "_decoder",
        "_given",
        "_held",
        "_pieces",
        "_request",
        "_stops",
        "count",
        "finish",
        "offsets",
        "stopped_by_text",
    )

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self.count = 0
        """Ids that count: up to the end and no further."""
        self.finish: FinishReason | None = None
        self.stopped_by_text = False
        """A stop string ended it: ids alone do not tell."""
        self.offsets: list[int] = [0]
        """Characters known before each id, kept when log probabilities were asked for."""
        self._request = request
        self._given = len(request.sampling.given_ids)
        # What a model continues reads on; what it answers is a text of its own, and so is one that
        # is shown from its beginning.
        continues = request.kind is GenerationKind.COMPLETION and not request.sampling.echo
        self._pieces = Pieces(vocabulary, request.prompt_ids if continues else ())
        self._decoder = codecs.getincrementaldecoder("utf-8")(vocabulary.errors)
        self._stops = [StopString(text) for text in request.stop_strings]
        self._held = ""

    def feed(self, ids: Iterable[int]) -> str:
        """Takes the next ids and returns the text they bring to light; ids behind the end count
        for nothing."""
        shown: list[str] = []
        for token_id in ids:
            if self.finish is not None:
                break
            shown.append(self._one(token_id))
        return "".join(shown)

    def _one(self, token_id: int) -> str:
        reason = finish_at(self._request, self.count, token_id)
        first = self._first() if self._request.sampling.echo and not self.count else ""
        self.count += 1
        piece = b"" if reason is FinishReason.STOP else self._pieces.take(token_id)
        text = self._decoder.decode(piece, final=reason is not None)
        if self._request.sampling.top_logprobs is not None:
            self.offsets.append(self.offsets[-1] + len(text))
        self.finish = reason
        if self._stops and self.count > self._given:  # a prompt holds what it likes
            text = self._release(text)
        return first + text

    def _first(self) -> str:
        """The text of what is read before the ids that are given."""
        pieces = map(self._pieces.take, self._request.prompt_ids)
        text = self._decoder.decode(b"".join(pieces))
        self.offsets[0] = len(text)
        return text

    def _release(self, text: str) -> str:
        may_stop = self.count > self._request.sampling.min_tokens
        for index, character in enumerate(text):
            ended = [stop for stop in self._stops if stop.step(character)]
            if ended and may_stop:
                known = self._held + text[: index + 1]
                self._held = ""
                self.finish, self.stopped_by_text = FinishReason.STOP, True
                return known[: -max(len(stop.text) for stop in ended)]
        known = self._held + text
        keep = 0 if self.finish else max(stop.held for stop in self._stops)
        self._held = known[len(known) - keep :]
        return known[: len(known) - keep]
