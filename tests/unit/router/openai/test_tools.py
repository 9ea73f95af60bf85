from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.model.chat import Message
from services.model.tools import NO_PARAMETERS, Tool, ToolCall, ToolChoice, ToolUse
from services.router.ask import Ask
from services.router.openai.requests import parse_chat

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds", "strict": True}}
TOOLS = (Tool("look", "", SCHEMA), Tool("add", "Adds", None, True))
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
USER = {"role": "user", "content": "hi"}
MADE = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "fine"}


def allowed(*functions: Any, mode: Any = "auto", **more: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": function} for function in functions]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}, **more}


def ask(*messages: dict[str, Any], **fields: Any) -> Ask:
    made = parse_chat({"model": "tiny", "messages": list(messages or [USER]), **fields}).ask
    made.check(max_choices=1)
    return made


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, None),
        ({"tools": []}, None),
        ({"tools": [LOOK, ADD]}, ToolUse(TOOLS)),
        ({"tools": [LOOK, ADD], "tool_choice": "auto"}, ToolUse(TOOLS)),
        ({"tools": [LOOK, ADD], "tool_choice": "none"}, None),
        ({"tool_choice": "none"}, None),
        (
            {"tools": [LOOK, ADD], "tool_choice": "required", "parallel_tool_calls": False},
            ToolUse(TOOLS, ToolChoice.REQUIRED, parallel=False),
        ),
        (
            {
                "tools": [LOOK, ADD],
                "tool_choice": {"type": "function", "function": {"name": "add"}},
            },
            ToolUse(TOOLS, ToolChoice.REQUIRED, "add"),
        ),
        (
            {"tools": [LOOK, ADD], "tool_choice": allowed({"name": "add"})},
            ToolUse(TOOLS, allowed=("add",)),
        ),
        (
            {
                "tools": [LOOK, ADD],
                "tool_choice": allowed(ADD["function"], {"name": "look"}, mode="required"),
                "parallel_tool_calls": False,
            },
            ToolUse(TOOLS, ToolChoice.REQUIRED, "", ("add", "look"), parallel=False),
        ),
    ],
)
def test_tools_and_what_is_asked_of_them_are_read(
    fields: dict[str, Any], use: ToolUse | None
) -> None:
    assert ask(**fields).tools == use


def test_a_tool_without_parameters_takes_none() -> None:
    assert TOOLS[1].schema == NO_PARAMETERS


def test_calls_and_their_answers_are_turns() -> None:
    turns = ask(USER, MADE, ANSWER).prompt
    assert turns == (
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("c1", "look", '{"at": 1}'),)),
        Message("tool", "fine", call_id="c1"),
    )


def test_what_an_assistant_thought_goes_back_to_it() -> None:
    turns = ask({"role": "assistant", "content": "yes", "reasoning_content": "so"}, USER).prompt
    assert turns[0] == Message("assistant", "yes", reasoning="so")


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "look", **function}}]}


def call(**more: Any) -> dict[str, Any]:
    return {**MADE, "tool_calls": [{**CALL, **more}]}


WRONG_TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [1]}, "tools[0]"),
    ({"tools": [{"type": "custom", "function": {"name": "a"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{**LOOK, "cached": True}]}, "tools[0].cached"),
    ({"tools": [LOOK, LOOK]}, "tools[1].function.name"),
    ({"tools": [LOOK] * 129}, "tools"),
    (tool(name="no space"), "tools[0].function.name"),
    (tool(name="a" * 65), "tools[0].function.name"),
    (tool(name=7), "tools[0].function.name"),
    (tool(name=None), "tools[0].function.name"),
    (tool(description=1), "tools[0].function.description"),
    (tool(parameters=[]), "tools[0].function.parameters"),
    (tool(parameters={"type": "array"}), "tools[0].function.parameters.type"),
    (tool(strict="yes"), "tools[0].function.strict"),
    (tool(returns={}), "tools[0].function.returns"),
    (
        tool(parameters={"properties": {f"p{n}": {} for n in range(401)}}),
        "tools[0].function.parameters",
    ),
    ({"tools": [LOOK], "tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [LOOK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (
        {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        "tool_choice.function.name",
    ),
    ({"tools": [LOOK], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tools": [LOOK], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
    (
        {"tools": [LOOK], "tool_choice": allowed(*[LOOK["function"]] * 129)},
        "tool_choice.allowed_tools.tools",
    ),
    (
        {"tools": [LOOK], "tool_choice": allowed(LOOK["function"], mode="none")},
        "tool_choice.allowed_tools.mode",
    ),
    (
        {"tools": [LOOK], "tool_choice": allowed(LOOK["function"], mode=None)},
        "tool_choice.allowed_tools.mode",
    ),
    (
        {"tools": [LOOK], "tool_choice": allowed(LOOK["function"], {"name": "add"})},
        "tool_choice.allowed_tools.tools",
    ),
    ({"tool_choice": allowed({"name": "add"})}, "tool_choice"),
    (
        {"tools": [LOOK], "tool_choice": allowed({"names": "look"})},
        "tool_choice.allowed_tools.tools[0].function.names",
    ),
    (
        {"tools": [LOOK], "tool_choice": allowed({})},
        "tool_choice.allowed_tools.tools[0].function.name",
    ),
    (
        {"tools": [LOOK], "tool_choice": allowed(LOOK["function"], function={"name": "look"})},
        "tool_choice.function",
    ),
    ({"tools": [LOOK], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"tools": [LOOK], "min_tokens": 3}, "min_tokens"),
    ({"tools": [LOOK], "ignore_eos": True}, "ignore_eos"),
    ({"reasoning_effort": "most"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG_TOOLS)
def test_what_cannot_be_asked_of_tools_is_refused_by_field(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ask(**fields)
    assert refused.value.field == field


WRONG_TURNS: list[tuple[list[dict[str, Any]], str]] = [
    ([ANSWER], "messages[0].tool_call_id"),
    ([MADE, {**ANSWER, "tool_call_id": "c2"}], "messages[1].tool_call_id"),
    ([MADE, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
    ([MADE, ANSWER, ANSWER], "messages[2].tool_call_id"),
    ([MADE, USER, ANSWER], "messages[2].tool_call_id"),
    ([{**USER, "tool_call_id": "c1"}], "messages[0].tool_call_id"),
    ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls"),
    ([{**USER, "reasoning_content": "so"}], "messages[0].reasoning_content"),
    ([{**MADE, "tool_calls": [CALL, CALL]}], "messages[0].tool_calls[1].id"),
    ([{**MADE, "tool_calls": [CALL] * 129}], "messages[0].tool_calls"),
    ([call(id="")], "messages[0].tool_calls[0].id"),
    ([call(id="c" * 257)], "messages[0].tool_calls[0].id"),
    ([call(type="custom")], "messages[0].tool_calls[0].type"),
    ([call(function={"arguments": "{}"})], "messages[0].tool_calls[0].function.name"),
    (
        [call(function={"name": "a", "arguments": {}})],
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        [call(function={"name": "a", "arguments": "[]"})],
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        [call(function={"name": "a", "arguments": "{"})],
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("turns", "field"), WRONG_TURNS)
def test_turns_of_tools_that_cannot_be_are_refused_by_field(
    turns: list[dict[str, Any]], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ask(*turns)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
    ],
)
def test_what_is_said_of_thinking_goes_to_the_template(
    fields: dict[str, Any], options: dict[str, Any]
) -> None:
    assert dict(ask(**fields).template_options) == options
