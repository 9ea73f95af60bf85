from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.router.openai import fields as openai_fields
from services.router.openai.fields import CHAT, COMPLETION, MESSAGE, RequestField, Use
from services.router.openai.requests import parse_chat, parse_completion


def _chat(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi", **message}], **more}


NEUTRAL: list[dict[str, Any]] = [
    {"tools": None, "anything": None},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    {"functions": [], "function_call": "none"},
    {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None},
    {"best_of": 1, "echo": False, "suffix": ""},
    {"logit_bias": {}, "stop": [], "seed": None, "n": 1},
    {"stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False, "include_obfuscation": True}},
    {"stream": False, "prediction": None},
    {"user": "me", "metadata": {"a": 1}, "store": True, "service_tier": "auto"},
    {"top_logprobs": 0},
    {"prompt_cache_key": "x", "safety_identifier": "y", "web_search_options": None},
    {"skip_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0},
]
CHAT_NEUTRAL: list[dict[str, Any]] = [
    {"logprobs": False, "top_logprobs": 0},
    {"chat_template_kwargs": {}},
    {"chat_template_kwargs": {"x": None}},
]
MESSAGE_NEUTRAL: list[dict[str, Any]] = [
    {"tool_calls": None, "audio": None, "function_call": None, "refusal": None},
    {"tool_calls": [], "annotations": [], "refusal": "", "audio": {}},
    {"id": "msg_1", "name": "me", "annotations": [{"type": "url_citation"}]},
    {"reasoning_content": "", "reasoning_details": [], "anything": {}},
    {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    {"content": [{"type": "text", "text": "hi", "annotations": None}]},
]


@pytest.mark.parametrize("more", NEUTRAL + CHAT_NEUTRAL)
def test_what_changes_nothing_is_taken_by_chats(more: dict[str, Any]) -> None:
    assert parse_chat(_chat({}, **more)) == parse_chat(_chat({}))


@pytest.mark.parametrize("more", [*NEUTRAL, {"logprobs": False}, {"reasoning_effort": "low"}])
def test_what_changes_nothing_is_taken_by_completions(more: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": "hi"}
    assert parse_completion({**body, **more}) == parse_completion(body)


@pytest.mark.parametrize("message", MESSAGE_NEUTRAL)
def test_what_changes_nothing_is_taken_in_messages(message: dict[str, Any]) -> None:
    assert parse_chat(_chat(message)) == parse_chat(_chat({}))


@pytest.mark.parametrize("turn", [{"content": None}, {}, {"content": []}, {"content": ""}])
def test_an_assistant_may_have_said_nothing(turn: dict[str, Any]) -> None:
    asked = _chat({})
    asked["messages"].append({"role": "assistant", "tool_calls": [], **turn})
    assert parse_chat(asked).ask.prompt[1].content == ""


def test_what_only_some_templates_read_is_handed_on_by_name() -> None:
    ask = parse_chat(
        _chat(
            {"thought": "x", "else": ""},
            reasoning_effort="low",
            chat_template_kwargs={"think": False, "y": None},
        )
    ).ask
    assert dict(ask.template_names) == {
        "thought": "messages[0].thought",
        "think": "chat_template_kwargs.think",
    }


UNSUPPORTED = [
    (name, table)
    for table in (CHAT, COMPLETION)
    for name, field in table.items()
    if field.use is Use.NEUTRAL
]
VALUES: dict[str, Any] = {
    "string": "something",
    "integer": 7,
    "number": 0.5,
    "array": [{"a": 1}],
    "object": {"a": 1},
}


@pytest.mark.parametrize(("name", "table"), UNSUPPORTED)
def test_what_would_change_the_answer_is_refused_by_name(
    name: str, table: dict[str, RequestField]
) -> None:
    field = table[name]
    value = VALUES.get(field.kind.split("|")[0], field.neutral[:1] != (True,))
    body = {"model": "tiny", "prompt": "hi"} if table is COMPLETION else _chat({})
    parse = parse_completion if table is COMPLETION else parse_chat
    with pytest.raises(InvalidArgument, match=name) as refused:
        parse({**body, name: value})
    assert refused.value.field == name


def test_true_is_not_one_and_false_is_not_zero() -> None:
    for name, value in (("length_penalty", True), ("priority", False), ("echo", 0)):
        with pytest.raises(InvalidArgument, match=name):
            parse_chat(_chat({}, **{name: value}))


def test_what_is_not_supported_is_blamed_and_not_the_null_beside_it() -> None:
    with pytest.raises(InvalidArgument, match="tool_calls"):
        parse_chat(_chat({"audio": None, "tool_calls": [1]}))


@pytest.mark.parametrize("table", [CHAT, COMPLETION, MESSAGE])
def test_neutral_values_are_of_their_fields_kind(table: dict[str, RequestField]) -> None:
    for field in table.values():
        for value in field.neutral:
            field.check_kind(value, field.name)


@pytest.mark.parametrize("table", [CHAT, COMPLETION, MESSAGE])
def test_the_page_about_the_door_shows_every_field(table: dict[str, RequestField]) -> None:
    page = Path(__file__).parents[4] / "docs" / "http-api.md"
    assert "\n".join(openai_fields.rows(table)) in page.read_text()
