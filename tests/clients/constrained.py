"""Heads that follow grammars: they say what they would say for as long as the grammar lets them,
and else what brings the text to an end soonest.

A real model writes JSON at length; here the same masks choose what is short, so that a client's
first page takes a moment. Who is offered tools calls one, and answers once it has a result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shuntserve.controller.v1 import controller_pb2

from services.common.generation import GenerationRequest
from services.model.grammar import Grammars, Guide
from tests.fake_mesh import FakeMesh

TEMPLATE = Path(__file__).parents[1] / "chat_templates" / "tools_hermes.jinja"
ENDS = ('"', "}", "]", "0", "{", "[", "a")
"""What begins or ends a value soonest, where it may come: tried in this order."""
CALL, RESULT = "<tool_call>", "<tool_response>"
MAX_POSITIONS = 16_384
"""The tokenizer is one of characters nearly, and frameworks say much."""


@dataclass
class _Speech:
    """What was said of one choice, and what may follow."""

    guide: Guide
    wish: list[int]
    ids: list[int] = field(default_factory=list)


class ConstrainedMesh(FakeMesh):
    """Its ids are a function of request and position, within the request's grammar."""

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        config = json.loads(self.files["tokenizer_config.json"])
        config["chat_template"] = TEMPLATE.read_text()
        self.files["tokenizer_config.json"] = json.dumps(config).encode()
        self._size = self.tokenizer.get_vocab_size()
        self._grammars = Grammars(self.tokenizer.to_str(), self._size, [self.eos])
        self._liked = np.zeros(self._size, np.float32)
        for rank, text in enumerate(ENDS):
            self._liked[self.ids_of(text)[0]] = len(ENDS) - rank
        self._liked[self.eos] = len(ENDS) + 1
        self._speeches: dict[tuple[str, int], _Speech] = {}

    def token(self, request: GenerationRequest, choice: int, position: int) -> int:
        grammar = request.sampling.grammar
        if grammar is None:
            return super().token(request, choice, position)
        key = (request.generation_id, choice)
        if key not in self._speeches:
            self._speeches[key] = _Speech(self._grammars.begin(grammar.text), self._wish(request))
        speech = self._speeches[key]
        while len(speech.ids) <= position:
            token = self._next(speech)
            speech.guide.take([token])
            speech.ids.append(token)
        return speech.ids[position]

    def _wish(self, request: GenerationRequest) -> list[int]:
        asked = self.tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
        calls = bool(request.parts.tools) and RESULT not in asked
        return [*self.ids_of(CALL if calls else self.replies[0]), self.eos]

    def _next(self, speech: _Speech) -> int:
        liked: NDArray[np.float32] = self._liked
        said = len(speech.ids)
        if said < len(speech.wish) and speech.ids == speech.wish[:said]:
            liked = self._liked.copy()
            liked[speech.wish[said]] = len(ENDS) + 2
        return int(np.argmax(speech.guide.allowed(liked)))

    def route(self, head: int) -> controller_pb2.Route:
        route: Any = super().route(head)
        route.max_positions = MAX_POSITIONS
        return route
