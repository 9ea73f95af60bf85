"""Tools, what is asked of them, and calls of earlier turns, as the fields of OpenAI's chats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.common.wire import MAX_TOOL_NAME_CHARS, MAX_TOOLS
from services.model.chat import Message
from services.model.grammar import check_breadth
from services.model.tools import Tool, ToolCall, ToolChoice, ToolUse
from services.router.http.json_body import shown
from services.router.openai.fields import (
    ALLOWED,
    ALLOWED_TOOL,
    ALLOWED_TOOLS,
    CALL,
    CALLED,
    CHOICE,
    CHOSEN,
    FUNCTION,
    TOOL,
    RequestField,
    given,
)

MAX_CALLS = 128
"""Of one message."""
MAX_CALL_ID_CHARS = 256
_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}")
_MODES = ("none", "auto", "required")
_ALLOWED_MODES = ("auto", "required")


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked of the tools that are offered."""

    mode: str
    """none, auto or required."""
    named: str = ""
    """The one that is to be called; the mode is required then."""
    allowed: tuple[str, ...] = ()
    """Those that may be called; empty: all."""


def tools_of(fields: Mapping[str, Any]) -> ToolUse | None:
    """What may be called; None where nothing may. Raises InvalidArgument and names the
    parameter."""
    tools = tuple(_tool(entry, f"tools[{i}]") for i, entry in enumerate(fields.get("tools", ())))
    parallel = fields.get("parallel_tool_calls", True)
    return use_of(tools, _choice(fields.get("tool_choice", "auto")), parallel=parallel)


def use_of(tools: Sequence[Tool], choice: Choice, *, parallel: bool) -> ToolUse | None:
    """The same of tools that were read, and of a choice. Raises InvalidArgument."""
    if len(tools) > MAX_TOOLS:
        raise InvalidArgument(f"tools has {len(tools)} entries, at most {MAX_TOOLS}", field="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in names:
            field = f"tools[{index}].function.name"
            raise InvalidArgument(f"{field}: another tool is called {tool.name}, too", field=field)
        names.add(tool.name)
    if choice.mode == "none" or (choice.mode == "auto" and not tools and not choice.allowed):
        return None
    if not tools:
        raise InvalidArgument(
            "tool_choice asks for a call, and tools has none", field="tool_choice"
        )
    _check_offered((choice.named,) if choice.named else (), names, "tool_choice.function.name")
    _check_offered(choice.allowed, names, "tool_choice.allowed_tools.tools")
    mode = ToolChoice.AUTO if choice.mode == "auto" else ToolChoice.REQUIRED
    return ToolUse(tuple(tools), mode, choice.named, choice.allowed, parallel)


def tool_of(fields: Mapping[str, Any], where: str) -> Tool:
    """A tool out of fields that were checked against `FUNCTION`. Raises InvalidArgument."""
    parameters = fields.get("parameters")
    if parameters is not None:
        kind = parameters.get("type", "object")
        if kind != "object":
            field = f"{where}.parameters"
            raise InvalidArgument(
                f'{field}.type must be "object", not {shown(kind)}', field=f"{field}.type"
            )
        check_breadth(parameters, f"{where}.parameters")
        parameters = {"type": "object", **parameters}
    name = _name(fields.get("name"), f"{where}.name")
    strict = fields.get("strict", False)
    return Tool(name, fields.get("description", ""), parameters, strict)


def calls_of(entries: Sequence[Any], where: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message. Raises InvalidArgument."""
    if len(entries) > MAX_CALLS:
        raise InvalidArgument(
            f"{where} has {len(entries)} entries, at most {MAX_CALLS}", field=where
        )
    calls = tuple(_call(entry, f"{where}[{index}]") for index, entry in enumerate(entries))
    seen: set[str] = set()
    for index, call in enumerate(calls):
        if call.id in seen:
            field = f"{where}[{index}].id"
            raise InvalidArgument(f"{field}: another call has this id, too", field=field)
        seen.add(call.id)
    return calls


def check_owner(role: str, name: str, is_there: bool, where: str) -> None:
    """Raises InvalidArgument for a field of a message in a role that has none of its kind."""
    owner = "tool" if name == "tool_call_id" else "assistant"
    if is_there and role != owner:
        field = f"{where}.{name}"
        raise InvalidArgument(f"{field} belongs to role {owner}, not {role}", field=field)


def check_answers(messages: Sequence[Message]) -> None:
    """Raises InvalidArgument for what answers no call of the turn before it."""
    open_ids: set[str] = set()
    for index, message in enumerate(messages):
        if message.role != "tool":
            open_ids = {call.id for call in message.calls}
        elif message.call_id not in open_ids:
            field = f"messages[{index}].tool_call_id"
            raise InvalidArgument(
                f"{field} must be the id of a call in the assistant's message before it that is "
                f"not answered yet, not {shown(message.call_id)}",
                field=field,
            )
        else:
            open_ids.discard(message.call_id)


def call_id_of(value: str | None, where: str) -> str:
    """Raises InvalidArgument for what cannot be a call's id."""
    if not value or len(value) > MAX_CALL_ID_CHARS:
        raise InvalidArgument(
            f"{where} must be a string of 1 to {MAX_CALL_ID_CHARS} characters, not {shown(value)}",
            field=where,
        )
    return value


def _tool(entry: Any, where: str) -> Tool:
    fields = _function(entry, TOOL, FUNCTION, where)
    return tool_of(fields, f"{where}.function")


def _check_offered(names: Iterable[str], offered: set[str], field: str) -> None:
    for name in names:
        if name not in offered:
            raise InvalidArgument(f"{field}: no tool is called {shown(name)}", field=field)


def _choice(value: Any) -> Choice:
    if isinstance(value, str):
        if value not in _MODES:
            raise InvalidArgument(
                f"tool_choice must be one of {', '.join(_MODES)}, name a function or those that"
                f" are allowed, not {shown(value)}",
                field="tool_choice",
            )
        return Choice(value)
    kind, held = _typed(value, CHOICE, "tool_choice", ("function", "allowed_tools"))
    if kind == "allowed_tools":
        return _allowed(held)
    name = given(held, CHOSEN, "tool_choice.function.").get("name")
    return Choice("required", _name(name, "tool_choice.function.name"))


def _allowed(value: dict[str, Any]) -> Choice:
    where = "tool_choice.allowed_tools"
    fields = given(value, ALLOWED_TOOLS, f"{where}.")
    mode, entries = fields.get("mode"), fields.get("tools", [])
    if mode not in _ALLOWED_MODES:
        field = f"{where}.mode"
        raise InvalidArgument(
            f"{field} must be one of {', '.join(_ALLOWED_MODES)}, not {shown(mode)}", field=field
        )
    if not 1 <= len(entries) <= MAX_TOOLS:
        field = f"{where}.tools"
        raise InvalidArgument(
            f"{field} must have 1 to {MAX_TOOLS} entries, not {len(entries)}", field=field
        )
    names = []
    for index, entry in enumerate(entries):
        field = f"{where}.tools[{index}]"
        name = _function(entry, ALLOWED_TOOL, ALLOWED, field).get("name")
        names.append(_name(name, f"{field}.function.name"))
    return Choice(mode, allowed=tuple(names))


def _call(entry: Any, where: str) -> ToolCall:
    fields = _function(entry, CALL, CALLED, where)
    field = f"{where}.function.arguments"
    arguments = fields.get("arguments") or "{}"
    try:
        understood = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        understood = False
    if not understood:
        raise InvalidArgument(f"{field} must be the JSON of an object", field=field)
    call_id = call_id_of(entry.get("id"), f"{where}.id")
    return ToolCall(call_id, _name(fields.get("name"), f"{where}.function.name"), arguments)


def _function(
    entry: Any, outer: Mapping[str, RequestField], inner: Mapping[str, RequestField], where: str
) -> dict[str, Any]:
    """What `function` holds of an object whose type is that."""
    _, held = _typed(entry, outer, where, ("function",))
    return given(held, inner, f"{where}.function.")


def _typed(
    entry: Any, table: Mapping[str, RequestField], where: str, types: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """The type of an object, and what it holds under that name."""
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where} must be an object, not {shown(entry)}", field=where)
    fields = given(entry, table, f"{where}.")
    kind = fields.get("type")
    if kind not in types:
        field, wanted = f"{where}.type", " or ".join(f'"{each}"' for each in types)
        raise InvalidArgument(f"{field} must be {wanted}, not {shown(kind)}", field=field)
    if kind not in fields:
        field = f"{where}.{kind}"
        raise InvalidArgument(f"{field} must be an object, and is missing", field=field)
    for other in types:
        if other != kind and other in fields:
            field = f"{where}.{other}"
            raise InvalidArgument(f'{field} does not belong to type "{kind}"', field=field)
    return kind, fields[kind]


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidArgument(
            f"{where} must have 1 to {MAX_TOOL_NAME_CHARS} letters, digits, '_' and '-', not "
            f"{shown(value)}",
            field=where,
        )
    return value
