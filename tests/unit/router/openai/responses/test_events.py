from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from services.common.exchange import GenerationState, GenerationView
from services.common.generation import (
    AnswerParts,
    CallForm,
    FinishReason,
    GenerationRequest,
    ResponseTerms,
    Thinking,
    TokenLogprob,
    TokenSpan,
)
from services.common.token_run import TokenRun, matches_event_id, parse_event_id
from services.model.tokenizer import Tokenizer
from services.router.openai.responses.details import Details, terms_of
from services.router.openai.responses.events import ResponseEvents, told_of, whole_of
from services.router.openai.responses.requests import parse_response
from tests.tiny_model import tiny_tokenizer

ENCODER = tiny_tokenizer()
EOS = ENCODER.token_to_id("<|im_end|>")
VOCABULARY = Tokenizer(ENCODER.to_str().encode()).vocabulary
IDS = (*ENCODER.encode("Über den Wolken. 東京 🚀", add_special_tokens=False).ids, EOS)
LOGPROBS = tuple(TokenLogprob(-0.5, ((token_id, -0.5),)) for token_id in IDS)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
Make = Callable[..., GenerationRequest]


def _request(make: Make, *, background: bool = False, **sampling: Any) -> GenerationRequest:
    ask = parse_response(
        {"model": "tiny", "input": "hi", "background": background, "metadata": {"a": "b"}}
    ).ask()
    return replace(make(**sampling), response=ask.response)


def _told(data: bytes) -> list[dict[str, Any]]:
    frames = data.decode().split("\n\n")
    assert frames.pop() == ""
    events = []
    for frame in frames:
        name, *where, body = frame.split("\n")
        event = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":  # which is no event of the response's
            assert where[0].startswith(f"id: {event['sequence_number']}:")
        events.append(event)
    return events


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("top", [None, 1])
@pytest.mark.parametrize("most", [3, 99])
def test_every_event_has_the_official_type_and_the_next_number(
    make_request: Make, background: bool, top: int | None, most: int
) -> None:
    request = _request(make_request, background=background, top_logprobs=top, max_tokens=most)
    events = _told(ResponseEvents(request, VOCABULARY).feed(IDS, LOGPROBS, 1))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event, strict=True)
    kinds = [event["type"].removeprefix("response.") for event in events]
    first = ["created", *["queued"] * background, "in_progress"]
    assert kinds[: len(first)] == first
    assert kinds[len(first) : len(first) + 2] == ["output_item.added", "content_part.added"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds[len(first) + 2 :] == [
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete" if most == 3 else "completed",
    ]
    done, response = events[-4], Response.model_validate(events[-1]["response"], strict=True)
    assert "".join(event["delta"] for event in deltas) == done["text"] == response.output_text
    told = [entry for event in deltas for entry in event["logprobs"]]
    assert len(told) == (0 if top is None else len(told))
    assert done["logprobs"][: len(told)] == told
    assert len(done["logprobs"]) == (0 if top is None else min(most, len(IDS)))
    assert response.usage is not None
    assert response.usage.output_tokens == min(most, len(IDS))
    assert response.usage.input_tokens_details.cached_tokens == 1
    assert response.metadata == {"a": "b"}


@given(st.data())
def test_events_are_the_same_however_ids_come_and_wherever_a_reader_goes_on(
    make_request: Make, data: st.DataObject
) -> None:
    request = _request(make_request, top_logprobs=1)
    undisturbed = ResponseEvents(request, VOCABULARY)
    whole = _told(undisturbed.feed(IDS, LOGPROBS))
    after = data.draw(st.none() | st.integers(0, undisturbed.number + 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(IDS)), max_size=9)))
    events, told = ResponseEvents(request, VOCABULARY, after), b""
    for start, end in zip([0, *cuts], [*cuts, len(IDS)], strict=True):
        told += events.feed(IDS[start:end], LOGPROBS[start:end])
    assert _told(told) == whole[0 if after is None else after + 1 :]
    assert events.number == undisturbed.number
    assert events.whole() == undisturbed.whole()


SPOKEN = (
    "<think>hm</think>Let me see. "
    '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    '<tool_call>{"name": "weather", "arguments": {"city": "東京"}}</tool_call>'
)
SPOKEN_IDS = (*ENCODER.encode(SPOKEN, add_special_tokens=False).ids, EOS)


def test_thoughts_and_calls_are_items_of_their_own_however_they_come(make_request: Make) -> None:
    parts = AnswerParts(CallForm.HERMES, ("weather",), False, Thinking.MAY)
    request = replace(_request(make_request), parts=parts)
    undisturbed = ResponseEvents(request, VOCABULARY)
    whole = _told(undisturbed.feed(SPOKEN_IDS))
    for event in whole:
        EVENT.validate_python(event, strict=True)
    response = Response.model_validate(whole[-1]["response"], strict=True)
    kinds = [item.type for item in response.output]
    assert kinds[:2] == ["reasoning", "message"]
    assert kinds[-2:] == ["function_call", "function_call"]
    assert len({item.id for item in response.output}) == len(kinds)
    calls = [item for item in response.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Paris", "東京"]
    for call in calls:
        told = [e for e in whole if e.get("item_id") == call.id]
        deltas = [e["delta"] for e in told if e["type"].endswith("arguments.delta")]
        assert "".join(deltas) == told[-1]["arguments"] == call.arguments
    assert response.output_text.startswith("Let me see.")
    assert response.usage is not None
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < len(SPOKEN_IDS)
    for cut in range(len(SPOKEN_IDS)):
        events = ResponseEvents(request, VOCABULARY)
        first = _told(events.feed(SPOKEN_IDS[:cut]))
        assert first == whole[: len(first)]
        after = ResponseEvents(request, VOCABULARY, events.number)
        assert _told(after.feed(SPOKEN_IDS)) == whole[len(first) :]


def test_a_reader_goes_on_behind_every_event(make_request: Make) -> None:
    request = _request(make_request)
    whole = _told(ResponseEvents(request, VOCABULARY).feed(IDS))
    for after in range(len(whole)):
        assert _told(ResponseEvents(request, VOCABULARY, after).feed(IDS)) == whole[after + 1 :]


def test_an_events_id_names_the_ids_it_tells_of(make_request: Make) -> None:
    request = _request(make_request)
    places = [
        re.findall(r"^id: \d+:(.*)$", ResponseEvents(request, VOCABULARY).feed(ids).decode(), re.M)
        for ids in (IDS, (IDS[0] + 1, *IDS[1:]))
    ]
    run = TokenRun(IDS)
    counts = [parse_event_id(place)[0] for place in places[0]]
    assert counts[0] == (0,)
    assert counts[-1] == (len(IDS),)
    assert counts == sorted(counts)
    for place in places[0]:
        assert matches_event_id((run,), *parse_event_id(place))
    assert places[1][-1] != places[0][-1]


def test_an_error_takes_no_number_of_an_event(make_request: Make) -> None:
    events = ResponseEvents(_request(make_request), VOCABULARY)
    last = _told(events.feed(IDS[:3]))[-1]["sequence_number"]
    (error,) = _told(events.error({"code": "unavailable", "message": "m", "param": None}))
    EVENT.validate_python(error, strict=True)
    assert error["sequence_number"] == last
    assert _told(events.feed(IDS[3:4]))[0]["sequence_number"] == last + 1


def test_a_grammar_that_allows_nothing_more_fails_the_response(make_request: Make) -> None:
    request = _request(make_request)
    span = TokenSpan(0, 0, IDS[:3], finish_reason=FinishReason.GRAMMAR)
    view = GenerationView(request, (span,), 1, None, GenerationState.FINISHED)
    _, data = told_of(view, VOCABULARY)
    assert EVENT.validate_python(_told(data)[-1], strict=True).type == "response.failed"
    response = Response.model_validate(whole_of(view, VOCABULARY), strict=True)
    assert response.status == "failed"
    assert response.error is not None
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("state", "count", "background", "status"),
    [
        (GenerationState.OPEN, 0, True, "queued"),
        (GenerationState.OPEN, 0, False, "in_progress"),
        (GenerationState.OPEN, 3, True, "in_progress"),
        (GenerationState.CANCELLED, 3, True, "cancelled"),
        (GenerationState.CANCELLED, len(IDS), True, "completed"),
        (GenerationState.FINISHED, len(IDS), False, "completed"),
    ],
)
def test_the_journal_tells_where_a_response_stands(
    make_request: Make, state: GenerationState, count: int, background: bool, status: str
) -> None:
    request = _request(make_request, background=background)
    spans = (TokenSpan(0, 0, IDS[:count]),) if count else ()
    whole = whole_of(GenerationView(request, spans, 1, None, state), VOCABULARY)
    response = Response.model_validate(whole, strict=True)
    assert response.status == status
    assert len(response.output) == (count > 0)
    assert (response.usage is not None) == (status in ("cancelled", "completed"))


def test_what_was_asked_for_comes_back(make_request: Make) -> None:
    asked = {
        "model": "tiny",
        "input": "hi",
        "instructions": "be brief",
        "max_output_tokens": 7,
        "user": "me",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "parallel_tool_calls": False,
        "top_logprobs": 3,
        "include": ["message.output_text.logprobs"],
    }
    terms = parse_response(asked).ask().response
    request = replace(make_request(temperature=0.7, top_p=0.1), response=terms)
    whole = ResponseEvents(request, VOCABULARY).whole()
    Response.model_validate(whole)
    for name in ("instructions", "max_output_tokens", "user", "top_logprobs"):
        assert whole[name] == asked[name]
    assert whole["text"]["format"]["schema"] == {"type": "object"}
    assert (whole["temperature"], whole["top_p"]) == (0.7, 0.1)
    assert (whole["parallel_tool_calls"], whole["store"], whole["background"]) == (
        False,
        True,
        False,
    )


def test_details_travel_as_one_value() -> None:
    terms = terms_of(Details({"a": "ü"}, []), store=False, background=True)
    assert terms == ResponseTerms(False, True, '{"told":{"a":"ü"},"items":[]}')
