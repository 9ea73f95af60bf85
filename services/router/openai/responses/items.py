"""Items: what a response was asked with, and what of it a chat template is given.

An item is kept as it will be told: whoever asks for a response's input gets these, and whoever goes
on behind a response has them as the beginning of its conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from services.common.errors import InvalidArgument
from services.model.chat import Message
from services.model.tools import ToolCall
from services.router.http.json_body import shown
from services.router.openai.fields import given
from services.router.openai.responses.fields import (
    CALL_ITEM,
    MESSAGE_ITEM,
    OUTPUT_ITEM,
    TEXT_PART,
)
from services.router.openai.tools import call_id_of, calls_of

Item = dict[str, Any]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SAID = {"assistant": "output_text"}
"""Type of the parts of what each role says; of the others `input_text`."""
_IDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_KINDS = (*_IDS, "reasoning")
_PARTS = ("input_text", "output_text", "text")


def items_of(value: Any) -> list[Item]:
    """The items of an `input`, each in its full form; what has no id yet gets none here. Raises
    InvalidArgument and names the item."""
    if value is None:
        raise InvalidArgument("input must be a string or an array, and is missing", field="input")
    if isinstance(value, str):
        return [_message("user", value)]
    items = (_item(entry, f"input[{index}]") for index, entry in enumerate(value))
    return [item for item in items if item is not None]


def messages_of(items: Iterable[Item]) -> list[Message]:
    """The conversation that items are."""
    messages: list[Message] = []
    for item in items:
        kind = item["type"]
        if kind == "message":
            messages.append(Message(_ROLES[item["role"]], text_of(item)))
        elif kind == "function_call_output":
            messages.append(Message("tool", item["output"], call_id=item["call_id"]))
        elif kind == "function_call":
            call = ToolCall(item["call_id"], item["name"], item["arguments"])
            if not messages or messages[-1].role != "assistant":
                messages.append(Message("assistant", ""))
            messages[-1] = replace(messages[-1], calls=(*messages[-1].calls, call))
    return messages


def text_of(item: Item) -> str:
    """All that a message says."""
    return "".join(part["text"] for part in item["content"])


def named(items: Iterable[Item], generation_id: str) -> list[Item]:
    """The items, each with an id: its own, or one that follows from its place."""
    return [
        item if "id" in item else {"id": f"{_IDS[item['type']]}_{generation_id}_{index}", **item}
        for index, item in enumerate(items)
    ]


def _message(role: str, text: str) -> Item:
    part: Item = {"type": _SAID.get(role, "input_text"), "text": text}
    if role in _SAID:
        part["annotations"] = []
    return {"type": "message", "status": "completed", "role": role, "content": [part]}


def _item(entry: Any, where: str) -> Item | None:
    """None for one that says nothing to a model."""
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where} must be an object, not {shown(entry)}", field=where)
    kind = entry.get("type", "message")
    if kind == "reasoning":  # thoughts are not told again
        return None
    if kind == "function_call":
        return _call(given(entry, CALL_ITEM, f"{where}."), where)
    if kind == "function_call_output":
        return _output(given(entry, OUTPUT_ITEM, f"{where}."), where)
    if kind != "message":
        raise InvalidArgument(
            f"{where}.type must be one of {', '.join(_KINDS)}, not {shown(kind)}",
            field=f"{where}.type",
        )
    fields = given(entry, MESSAGE_ITEM, f"{where}.")
    role = fields.get("role")
    if role not in _ROLES:
        raise InvalidArgument(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
            field=f"{where}.role",
        )
    message = _message(role, _content(fields.get("content"), f"{where}.content"))
    return {"id": fields["id"], **message} if fields.get("id") else message


def _call(fields: Item, where: str) -> Item:
    function = {"name": fields.get("name"), "arguments": fields.get("arguments")}
    told = {"id": fields.get("call_id"), "type": "function", "function": function}
    try:
        (call,) = calls_of([told], where)
    except InvalidArgument as error:
        here = error.field.removeprefix(f"{where}[0].").removeprefix("function.")
        name = f"{where}.{'call_id' if here == 'id' else here}"
        raise InvalidArgument(error.message.replace(error.field, name), field=name) from None
    item = {"type": "function_call", "status": "completed", "call_id": call.id}
    item |= {"name": call.name, "arguments": call.arguments}
    return {"id": fields["id"], **item} if fields.get("id") else item


def _output(fields: Item, where: str) -> Item:
    call_id = call_id_of(fields.get("call_id"), f"{where}.call_id")
    output = fields.get("output")
    text = output if output == "" else _content(output, f"{where}.output")
    item = {"type": "function_call_output", "status": "completed", "call_id": call_id}
    item["output"] = text
    return {"id": fields["id"], **item} if fields.get("id") else item


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not value:
        raise InvalidArgument(
            f"{where} must be a string or an array of text parts, not {shown(value)}", field=where
        )
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise InvalidArgument(f"{where} must be an object, not {shown(part)}", field=where)
    if part.get("type") not in _PARTS:
        raise InvalidArgument(
            f"{where}.type must be one of {', '.join(_PARTS)}, not {shown(part.get('type'))}",
            field=f"{where}.type",
        )
    text: str | None = given(part, TEXT_PART, f"{where}.").get("text")
    if text is None:
        raise InvalidArgument(
            f"{where}.text must be a string, and is missing", field=f"{where}.text"
        )
    return text
