from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.common.wire import MAX_DETAILS_BYTES
from services.model.chat import Message
from services.model.tools import ToolCall, ToolChoice
from services.router.openai.fields import rows
from services.router.openai.responses import fields as tables
from services.router.openai.responses.items import items_of, messages_of
from services.router.openai.responses.requests import INCLUDABLE, parse_response


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "hi", **more}


def _says(role: str, *texts: str, kind: str = "input_text", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": kind, "text": text} for text in texts], **more}


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [], "tool_choice": "auto", "truncation": "disabled"},
        {"tool_choice": "none", "parallel_tool_calls": True},
        {"conversation": None, "prompt": None, "max_tool_calls": None, "moderation": None},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"service_tier": "auto", "user": "me", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"reasoning": {"summary": "auto", "effort": None}},
        {"include": list(INCLUDABLE[1:])},
        {"top_logprobs": 0, "metadata": {}, "instructions": ""},
    ],
)
def test_what_changes_nothing_is_taken(more: dict[str, Any]) -> None:
    asked, plain = parse_response(_body(**more)).ask(), parse_response(_body()).ask()
    assert (asked.prompt, asked.grammar, asked.template_names) == (plain.prompt, "", {})


@pytest.mark.parametrize(
    ("more", "parameter"),
    [
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [7]}]}, "input[0].content[0]"),
        ({"input": [_says("user", "x", kind="input_image")]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
        ),
        ({"input": [{"role": "user", "content": "x", "tone": "dry"}]}, "input[0].tone"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "name": "f", "x": 1}]}, "tools[0].function.x"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{}]}},
            "tool_choice.allowed_tools.tools[0].type",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 7}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"reasoning": {"effort": "utter"}}, "reasoning_effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"stream_options": {"include_obfuscation": 1, "include_usage": True}}, "stream_options."),
        ({"background": True, "store": False}, "background"),
        ({"include": ["everything"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object", "name": "n"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"reasoning": {"depth": 1}}, "reasoning.depth"),
    ],
)
def test_what_cannot_be_is_refused_by_name(more: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_response(_body(**more))
    assert refused.value.field.startswith(parameter)


def test_items_become_the_conversation_that_a_template_is_given() -> None:
    before = [{"id": "msg_0", **items_of("earlier")[0]}]
    said = [
        _says("developer", "be", " brief"),
        {"type": "reasoning", "id": "rs_1", "summary": []},
        _says("assistant", "yes?", kind="output_text", id="msg_1", status="completed"),
        {"role": "user", "content": "go on"},
    ]
    ask = parse_response(_body(input=said, instructions="in French")).ask(before)
    assert ask.prompt == (
        Message("system", "in French"),
        Message("user", "earlier"),
        Message("system", "be brief"),
        Message("assistant", "yes?"),
        Message("user", "go on"),
    )
    assert ask.response is not None
    items = json.loads(ask.response.details)["items"]
    assert [item.get("id") for item in items] == ["msg_0", None, "msg_1", None]
    assert messages_of(items) == list(ask.prompt[1:])


def test_the_effort_of_reasoning_is_for_the_template_to_know() -> None:
    ask = parse_response(_body(reasoning={"effort": "low"})).ask()
    assert ask.template_options == {"reasoning_effort": "low"}


WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def test_tools_and_what_is_asked_of_them_are_those_of_a_chat() -> None:
    ask = parse_response(_body(tools=[WEATHER], parallel_tool_calls=False)).ask()
    assert ask.tools is not None
    assert [(tool.name, tool.strict) for tool in ask.tools.tools] == [("weather", True)]
    assert not ask.tools.parallel
    named = parse_response(
        _body(tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    ).ask()
    assert named.tools is not None
    assert named.tools.named == "weather"
    assert parse_response(_body(tools=[WEATHER], tool_choice="none")).ask().tools is None
    some = {"type": "allowed_tools", "mode": "required", "tools": [WEATHER]}
    other = {"type": "function", "name": "other"}
    allowed = parse_response(_body(tools=[WEATHER, other], tool_choice=some)).ask().tools
    assert allowed is not None
    assert (allowed.choice, allowed.allowed) == (ToolChoice.REQUIRED, ("weather",))


def test_calls_are_of_the_turn_before_them_and_are_answered_by_it() -> None:
    call = {"type": "function_call", "name": "weather", "arguments": "{}"}
    said = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "let me see"},
        {**call, "call_id": "a", "id": "fc_1"},
        {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "b", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "sun"}],
        },
    ]
    ask = parse_response(_body(input=said)).ask()
    calls = tuple(ToolCall(name, "weather", "{}") for name in "ab")
    assert ask.prompt == (
        Message("user", "?"),
        Message("assistant", "let me see", calls),
        Message("tool", "rain", call_id="b"),
        Message("tool", "sun", call_id="a"),
    )
    with pytest.raises(InvalidArgument) as refused:
        parse_response(_body(input=said[:3] + said[4:])).ask()
    assert refused.value.field == "input"


def test_a_format_becomes_a_grammar() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    strict = parse_response(_body(text={"format": form})).ask()
    any_object = parse_response(_body(text={"format": {"type": "json_object"}})).ask()
    assert strict.grammar not in ("", any_object.grammar)
    assert any_object.grammar
    assert strict.grammar_parameter == "text"


def test_what_is_carried_along_is_bounded() -> None:
    body = parse_response(_body(input="x" * (MAX_DETAILS_BYTES - 500)))
    assert body.ask().response is not None
    with pytest.raises(InvalidArgument) as refused:
        body.ask(items_of("y" * 1000))
    assert refused.value.field == "input"
    assert str(MAX_DETAILS_BYTES) in refused.value.message


def test_the_page_has_the_table_of_fields() -> None:
    page = (Path(__file__).parents[5] / "docs" / "http-api.md").read_text()
    assert "\n".join(rows(tables.RESPONSE)) in page
