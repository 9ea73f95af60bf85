"""Conversations and tools as they come over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.router.v1 import router_pb2

from services.common.errors import InvalidArgument
from services.model import grammar
from services.model.chat import Message
from services.model.tools import Tool, ToolUse
from services.router.ask import ROLES
from services.router.openai.tools import (
    Choice,
    call_id_of,
    calls_of,
    check_answers,
    check_owner,
    tool_of,
    use_of,
)

_MODES = {
    router_pb2.TOOL_MODE_UNSPECIFIED: "auto",
    router_pb2.TOOL_MODE_NONE: "none",
    router_pb2.TOOL_MODE_REQUIRED: "required",
}


def turns_from(messages: Sequence[router_pb2.ChatMessage]) -> tuple[Message, ...]:
    """Raises InvalidArgument and names the field."""
    turns = tuple(_turn(message, f"messages[{index}]") for index, message in enumerate(messages))
    check_answers(turns)
    return turns


def tools_from(message: router_pb2.Tools) -> ToolUse | None:
    """None where nothing may be called. Raises InvalidArgument and names the field."""
    mode = _MODES.get(message.mode)
    if mode is None:
        raise InvalidArgument("tools.mode has no known value", field="tools.mode")
    tools = [_tool(tool, f"tools[{index}].function") for index, tool in enumerate(message.tools)]
    if message.named and message.allowed:
        raise InvalidArgument("tools has named and allowed, and takes one", field="tools.allowed")
    mode = "required" if message.named else mode
    choice = Choice(mode, message.named, tuple(message.allowed))
    return use_of(tools, choice, parallel=not message.one_at_most)


def text_from(text: str, field: str) -> str:
    """Raises InvalidArgument for a text that no tokenizer takes."""
    if "\0" in text:
        raise InvalidArgument(f"{field} holds a NUL character", field=field)
    return text


def _turn(message: router_pb2.ChatMessage, where: str) -> Message:
    if message.role not in ROLES:
        raise InvalidArgument(f"a role is one of {', '.join(ROLES)}", field="chat.messages.role")
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    check_owner(message.role, "tool_calls", bool(calls), where)
    check_owner(message.role, "tool_call_id", bool(message.tool_call_id), where)
    check_owner(message.role, "reasoning", bool(message.reasoning), where)
    return Message(
        message.role,
        text_from(message.content, "chat.messages.content"),
        calls_of(calls, f"{where}.tool_calls"),
        call_id_of(message.tool_call_id, f"{where}.tool_call_id") if message.role == "tool" else "",
        message.reasoning,
    )


def _tool(message: router_pb2.Tool, where: str) -> Tool:
    fields = {"name": message.name, "description": message.description, "strict": message.strict}
    if message.parameters:
        parameters = grammar.schema_from(message.parameters, f"{where}.parameters")
        fields["parameters"] = parameters
    return tool_of(fields, where)
