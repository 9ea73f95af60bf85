"""The bodies of /v1/chat/completions and /v1/completions as asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING, GenerationKind
from services.common.sampling_fields import Kind
from services.model.chat import Message
from services.router.ask import MAX_PROMPT_IDS, Ask
from services.router.http.json_body import kind_of, shown
from services.router.openai.fields import (
    CHAT,
    COMPLETION,
    MESSAGE,
    PART,
    STREAM_OPTIONS,
    given,
)
from services.router.openai.structure import structure_of
from services.router.openai.tools import (
    call_id_of,
    calls_of,
    check_answers,
    check_owner,
    tools_of,
)

COMPLETION_TOKENS = 16
"""What /v1/completions makes when max_tokens is absent."""
MAX_PROMPTS = 128
"""Of one request."""
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_THINKS = "enable_thinking"
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True, slots=True)
class OpenAiRequest:
    """An ask, and the form in which the answer is wanted."""

    ask: Ask
    stream: bool
    further: tuple[Ask, ...] = ()
    """Of a completion's other prompts, in order; each is a generation of its own."""


def parse_chat(body: dict[str, Any]) -> OpenAiRequest:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, CHAT)
    logprobs, top_logprobs = fields.get("logprobs", False), fields.get("top_logprobs", 0)
    if top_logprobs and not logprobs:
        raise InvalidArgument("top_logprobs needs logprobs: true", field="top_logprobs")
    longest, older = fields.get("max_completion_tokens"), fields.get("max_tokens")
    if longest is not None and older is not None and longest != older:
        raise InvalidArgument(
            f"max_tokens is {older} and max_completion_tokens {longest}; send one of them",
            field="max_tokens",
        )
    prompt, names = _messages(fields.get("messages"))
    fields.pop("top_logprobs", None)
    if logprobs:
        fields["top_logprobs"] = top_logprobs
    if longest is not None:
        fields["max_tokens"] = longest
    return _finish(
        fields,
        GenerationKind.CHAT,
        prompt=prompt,
        template_names={**names, **_template_names(fields)},
        template_options=template_options_of(fields),
        tools=tools_of(fields),
        most_tokens=None,
    )


def parse_completion(body: dict[str, Any]) -> OpenAiRequest:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, COMPLETION)
    if fields.get("logprobs") is True:
        raise InvalidArgument("logprobs must be an integer, not true", field="logprobs")
    if "logprobs" in fields:
        fields["top_logprobs"] = fields["logprobs"]
    first, *others = _prompts(fields.get("prompt"))
    request = _finish(
        fields,
        GenerationKind.COMPLETION,
        prompt=first,
        echo=fields.get("echo", False),
        most_tokens=COMPLETION_TOKENS,
    )
    return replace(request, further=tuple(replace(request.ask, prompt=each) for each in others))


def _finish(fields: dict[str, Any], kind: GenerationKind, **special: Any) -> OpenAiRequest:
    stream, choices = fields.get("stream", False), fields.get("n", 1)
    grammar, grammar_parameter = structure_of(fields)
    if (best_of := fields.get("best_of", choices)) != choices:
        raise InvalidArgument(
            f"best_of must equal n, which is {choices}, not {best_of}", field="best_of"
        )
    ask = Ask(
        model=fields.get("model", ""),
        kind=kind,
        choices=choices,
        options=options_of(fields),
        stop_strings=_stop(fields.get("stop", [])),
        cache_salt=fields.get("cache_salt", ""),
        grammar=grammar,
        grammar_parameter=grammar_parameter,
        include_usage=_include_usage(fields.get("stream_options", {}), stream),
        **special,
    )
    return OpenAiRequest(ask, stream)


def options_of(fields: dict[str, Any]) -> dict[str, Any]:
    """What a body says of the sampling fields, by name. Raises InvalidArgument."""
    rows = (row for row in SAMPLING.values() if row.asked and row.name in fields)
    return {row.name: _READ.get(row.kind, _as_it_is)(fields[row.name], row.name) for row in rows}


def _as_it_is(value: Any, _name: str) -> Any:
    return value


def _template_names(fields: dict[str, Any]) -> dict[str, str]:
    """What only some templates read and none is given, and the parameter it came in."""
    options = fields.get("chat_template_kwargs", {})
    told = (name for name, value in options.items() if value is not None and name != _THINKS)
    return {name: f"chat_template_kwargs.{name[:64]}" for name in told}


def template_options_of(fields: dict[str, Any]) -> dict[str, Any]:
    """What a template that reads it is told of thinking."""
    effort = fields.get("reasoning_effort")
    if effort is not None and effort not in _EFFORTS:
        raise InvalidArgument(
            f"reasoning_effort must be one of {', '.join(_EFFORTS)}, not {shown(effort)}",
            field="reasoning_effort",
        )
    thinks = fields.get("chat_template_kwargs", {}).get(_THINKS)
    if thinks is not None and not isinstance(thinks, bool):
        field = f"chat_template_kwargs.{_THINKS}"
        raise InvalidArgument(f"{field} must be true or false, not {shown(thinks)}", field=field)
    if thinks is None and effort == "none":
        thinks = False
    options = {"reasoning_effort": effort, _THINKS: thinks}
    return {name: value for name, value in options.items() if value is not None}


def _messages(value: Any) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The conversation, and what beside it only some templates read."""
    if value is None:
        raise InvalidArgument("messages must be an array, and is missing", field="messages")
    messages: list[Message] = []
    names: dict[str, str] = {}
    for index, entry in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{where} must be an object, not {shown(entry)}", field=where)
        fields = given(entry, MESSAGE, f"{where}.", others=True)
        names |= {name: f"{where}.{name[:64]}" for name in fields if name not in MESSAGE}
        messages.append(_message(fields, where))
    check_answers(messages)
    return tuple(messages), names


def _message(fields: dict[str, Any], where: str) -> Message:
    role = fields.get("role")
    if role not in _ROLES:
        raise InvalidArgument(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
            field=f"{where}.role",
        )
    for name in ("tool_calls", "tool_call_id", "reasoning_content"):
        check_owner(role, name, bool(fields.get(name)), where)
    content = fields.get("content")
    if content in (None, []) and role == "assistant":
        content = ""  # what is left of a turn that was all calls of tools
    call_id = fields.get("tool_call_id", "")
    return Message(
        _ROLES[role],
        _content(content, f"{where}.content"),
        calls_of(fields.get("tool_calls", ()), f"{where}.tool_calls"),
        call_id_of(call_id, f"{where}.tool_call_id") if role == "tool" else "",
        fields.get("reasoning_content", ""),
    )


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
    if part.get("type") != "text":
        raise InvalidArgument(
            f'{where}.type must be "text", not {shown(part.get("type"))}', field=where
        )
    text: str | None = given(part, PART, f"{where}.").get("text")
    if text is None:
        raise InvalidArgument(f"{where}.text must be a string, and is missing", field=where)
    return text


def _prompts(value: Any) -> list[str | tuple[int, ...]]:
    """One at least."""
    several = isinstance(value, list) and any(isinstance(entry, (str, list)) for entry in value)
    if not several:
        return [_prompt(value, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise InvalidArgument(
            f"prompt has {len(value)} prompts, at most {MAX_PROMPTS}", field="prompt"
        )
    where = ["prompt"] if len(value) == 1 else [f"prompt[{index}]" for index in range(len(value))]
    return [_prompt(entry, name) for entry, name in zip(value, where, strict=True)]


def _prompt(value: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        missing = "missing" if value is None else shown(value)
        raise InvalidArgument(
            f"{where} must be a string or an array of ids, and is {missing}", field="prompt"
        )
    if len(value) > MAX_PROMPT_IDS:
        raise InvalidArgument(
            f"{where} has {len(value)} ids, over {MAX_PROMPT_IDS}", field="prompt"
        )
    return ids_of(value, "prompt")


def ids_of(value: list[Any], name: str) -> tuple[int, ...]:
    """Raises InvalidArgument for what is no integer."""
    for entry in value:
        if kind_of(entry) != "integer":
            raise InvalidArgument(
                f"{name} must be an array of integers, and holds {shown(entry)}", field=name
            )
    return tuple(value)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    for text in texts:
        if not isinstance(text, str):
            raise InvalidArgument(
                f"stop must be a string or an array of strings, and holds {shown(text)}",
                field="stop",
            )
    return tuple(texts)


def _biases(value: dict[str, Any], name: str) -> MappingProxyType[int, float]:
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidArgument(
                f"{name}: a key must be a token's id, not {shown(key)}", field=name
            )
        if kind_of(bias) not in ("integer", "number"):
            raise InvalidArgument(f"{name}: a bias must be a number, not {shown(bias)}", field=name)
        biases[int(key)] = float(bias)
    return MappingProxyType(biases)


_READ: dict[Kind, Callable[[Any, str], Any]] = {Kind.IDS: ids_of, Kind.BIASES: _biases}


def _include_usage(value: dict[str, Any], stream: bool) -> bool:
    options = given(value, STREAM_OPTIONS, "stream_options.")
    if options and not stream:
        raise InvalidArgument("stream_options needs stream: true", field="stream_options")
    return bool(options.get("include_usage", False))
