"""What is told of a generation without its text."""

from __future__ import annotations

from services.common.exchange import GenerationState, GenerationView, Route
from services.common.generation import (
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.router.http.views import state_of

MODEL = ModelRef("m", "d")
REQUEST = GenerationRequest("g", MODEL, (1, 2), Sampling(max_tokens=9), choices=2)


def test_choices_are_told_by_their_lengths_and_ends() -> None:
    spans = (TokenSpan(1, 0, (7, 8), (), FinishReason.LENGTH),)
    route = Route("p", "f", "i", "a:1", 1.0, MODEL, 100)
    told = state_of(GenerationView(REQUEST, spans, 3, route, GenerationState.OPEN, ("a", "b")))
    assert told["choices"] == [
        {"index": 0, "tokens": 0, "finish_reason": None},
        {"index": 1, "tokens": 2, "finish_reason": "length"},
    ]
    assert (told["state"], told["epoch"], told["pipeline"]) == ("open", 3, "p")
    assert told["numerics_classes"] == ["a", "b"]
    assert "prompt" not in str(told)
