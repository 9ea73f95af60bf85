"""The body of POST /v1/responses as an ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.router.ask import Ask
from services.router.http.json_body import kind_of, shown
from services.router.openai.fields import FORMATS, given
from services.router.openai.requests import options_of, template_options_of
from services.router.openai.responses.details import Details, terms_of
from services.router.openai.responses.fields import (
    INCLUDABLE,
    LOGPROBS,
    MAX_METADATA,
    MAX_METADATA_CHARS,
    MAX_METADATA_KEY_CHARS,
    REASONING,
    RESPONSE,
    STREAM_OPTIONS,
    TEXT,
    TEXT_FORMAT,
)
from services.router.openai.responses.items import Item, items_of, messages_of
from services.router.openai.structure import of_any_object, of_described
from services.router.openai.tools import check_answers, tools_of


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """An ask that lacks the conversation it may go on from."""

    stream: bool
    store: bool
    background: bool
    previous_response_id: str
    """Empty: it begins a conversation."""
    _ask: Ask
    _instructions: str
    _details: Details

    def ask(self, before: Sequence[Item] = ()) -> Ask:
        """The ask, behind these items. Raises InvalidArgument where there is too much."""
        items = [*before, *self._details.items]
        messages = messages_of(items)
        try:
            check_answers(messages)
        except InvalidArgument:
            raise InvalidArgument(
                "input: a function_call_output must name, by its call_id, a function_call of the"
                " turn before it that is not answered yet",
                field="input",
            ) from None
        head = (Message("system", self._instructions),) if self._instructions else ()
        details = Details(self._details.told, items)
        return replace(
            self._ask,
            prompt=(*head, *messages),
            response=terms_of(details, store=self.store, background=self.background),
        )


def parse_response(body: dict[str, Any]) -> ResponseBody:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, RESPONSE)
    stream, store = fields.get("stream", False), fields.get("store", True)
    background, previous = fields.get("background", False), fields.get("previous_response_id", "")
    if background and not store:
        raise InvalidArgument(
            "background needs store: true, by which it can be asked for", field="background"
        )
    if given(fields.get("stream_options", {}), STREAM_OPTIONS, "stream_options.") and not stream:
        raise InvalidArgument("stream_options needs stream: true", field="stream_options")
    form, grammar = _form(fields.get("text", {}))
    reasoning = given(fields.get("reasoning", {}), REASONING, "reasoning.")
    ask = Ask(
        model=fields.get("model", ""),
        kind=GenerationKind.CHAT,
        prompt=(),
        options=_options(fields),
        cache_salt=fields.get("cache_salt", ""),
        grammar=grammar,
        grammar_parameter="text" if grammar else "",
        tools=tools_of(_as_of_chats(fields)),
        template_options=template_options_of({"reasoning_effort": reasoning.get("effort")}),
    )
    told = {
        "instructions": fields.get("instructions"),
        "previous_response_id": previous or None,
        "metadata": _metadata(fields.get("metadata", {})),
        "max_output_tokens": fields.get("max_output_tokens"),
        "top_logprobs": fields.get("top_logprobs", 0),
        "text": {"format": form, "verbosity": "medium"},
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "tools": [{"strict": False, "parameters": None, **one} for one in fields.get("tools", [])],
        "tool_choice": fields.get("tool_choice", "auto"),
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "user": _echoed(body.get("user")),
        "safety_identifier": _echoed(body.get("safety_identifier")),
        "prompt_cache_key": _echoed(body.get("prompt_cache_key")),
    }
    details = Details(told, items_of(fields.get("input")))
    instructions = fields.get("instructions", "")
    return ResponseBody(stream, store, background, previous, ask, instructions, details)


def _as_of_chats(fields: dict[str, Any]) -> dict[str, Any]:
    """Tools and what is asked of them, with functions a level deeper."""
    tools = [_nested(tool, f"tools[{i}]") for i, tool in enumerate(fields.get("tools", []))]
    choice = fields.get("tool_choice", "auto")
    return {**fields, "tools": tools, "tool_choice": _choice_of_chats(choice)}


def _choice_of_chats(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if value.get("type") != "allowed_tools":
        return _nested(value, "tool_choice")
    held = {name: entry for name, entry in value.items() if name != "type"}
    if isinstance(held.get("tools"), list):
        where = "tool_choice.allowed_tools.tools"
        held["tools"] = [_nested(each, f"{where}[{i}]") for i, each in enumerate(held["tools"])]
    return {"type": "allowed_tools", "allowed_tools": held}


def _nested(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where} must be an object, not {shown(value)}", field=where)
    kind = value.get("type")
    if kind != "function":
        raise InvalidArgument(
            f'{where}.type must be "function", not {shown(kind)}', field=f"{where}.type"
        )
    return {"type": kind, "function": {n: v for n, v in value.items() if n != "type"}}


def _echoed(value: Any) -> str | None:
    """What changes nothing and is told again."""
    return value[:MAX_METADATA_CHARS] if isinstance(value, str) else None


def _options(fields: dict[str, Any]) -> dict[str, Any]:
    """What is asked of the sampling fields, by name."""
    include, top = fields.get("include", []), fields.get("top_logprobs", 0)
    for entry in include:
        if entry not in INCLUDABLE:
            raise InvalidArgument(
                f"include must be an array of {', '.join(INCLUDABLE)}, and holds {shown(entry)}",
                field="include",
            )
    named = {name: value for name, value in fields.items() if name != "top_logprobs"}
    if LOGPROBS in include:
        named["top_logprobs"] = top
    elif top:
        raise InvalidArgument(f'top_logprobs needs include: ["{LOGPROBS}"]', field="top_logprobs")
    if "max_output_tokens" in fields:
        named["max_tokens"] = fields["max_output_tokens"]
    return options_of(named)


def _metadata(value: dict[str, Any]) -> dict[str, str]:
    if len(value) > MAX_METADATA:
        raise InvalidArgument(
            f"metadata has {len(value)} entries, at most {MAX_METADATA}", field="metadata"
        )
    for key, entry in value.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            raise InvalidArgument(
                f"metadata: a key has {len(key)} characters, at most {MAX_METADATA_KEY_CHARS}",
                field="metadata",
            )
        if kind_of(entry) != "string" or len(entry) > MAX_METADATA_CHARS:
            raise InvalidArgument(
                f"metadata.{key} must be a string of at most {MAX_METADATA_CHARS} characters,"
                f" not {shown(entry)}",
                field=f"metadata.{key}",
            )
    return value


def _form(value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The format of the text, as it is told again, and its grammar; empty for plain text."""
    form = given(value, TEXT, "text.").get("format")
    if form is None:
        return {"type": "text"}, ""
    where = "text.format"
    fields = given(form, TEXT_FORMAT, f"{where}.")
    kind = fields.pop("type", None)
    if kind not in FORMATS:
        raise InvalidArgument(
            f"{where}.type must be one of {', '.join(FORMATS)}, not {shown(kind)}",
            field=f"{where}.type",
        )
    if kind == "json_schema":
        told = {"type": kind, **fields, "strict": fields.get("strict", False)}
        if isinstance(form.get("description"), str):
            told["description"] = form["description"]
        return told, of_described(fields, where)
    for name in fields:
        raise InvalidArgument(
            f'{where}.{name} needs type: "json_schema", not {shown(kind)}', field=f"{where}.{name}"
        )
    return {"type": kind}, "" if kind == "text" else of_any_object()
