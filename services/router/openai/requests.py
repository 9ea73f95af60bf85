"""The bodies of /v1/chat/completions and /v1/completions as asks."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.router.ask import MAX_PROMPT_IDS, Ask
from services.router.http.json_body import kind_of, shown
from services.router.openai.fields import (
    CHAT,
    COMPLETION,
    MESSAGE,
    PART,
    STREAM_OPTIONS,
    Use,
    given,
)

COMPLETION_TOKENS = 16
"""What /v1/completions makes when max_tokens is absent."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class OpenAiRequest:
    """An ask, and the form in which the answer is wanted."""

    ask: Ask
    stream: bool


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
    return _finish(
        fields,
        GenerationKind.CHAT,
        prompt=prompt,
        template_names={**names, **_template_names(fields)},
        top_logprobs=top_logprobs if logprobs else None,
        max_tokens=longest if longest is not None else older,
        most_tokens=None,
    )


def parse_completion(body: dict[str, Any]) -> OpenAiRequest:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, COMPLETION)
    if fields.get("logprobs") is True:
        raise InvalidArgument("logprobs must be an integer, not true", field="logprobs")
    return _finish(
        fields,
        GenerationKind.COMPLETION,
        prompt=_prompt(fields.get("prompt")),
        top_logprobs=fields.get("logprobs"),
        max_tokens=fields.get("max_tokens"),
        most_tokens=COMPLETION_TOKENS,
    )


def _finish(fields: dict[str, Any], kind: GenerationKind, **special: Any) -> OpenAiRequest:
    stream, choices = fields.get("stream", False), fields.get("n", 1)
    if (best_of := fields.get("best_of", choices)) != choices:
        raise InvalidArgument(
            f"best_of must equal n, which is {choices}, not {best_of}", field="best_of"
        )
    ask = Ask(
        model=fields.get("model", ""),
        kind=kind,
        choices=choices,
        temperature=fields.get("temperature"),
        top_k=fields.get("top_k"),
        top_p=fields.get("top_p"),
        min_p=fields.get("min_p"),
        presence_penalty=fields.get("presence_penalty"),
        frequency_penalty=fields.get("frequency_penalty"),
        repetition_penalty=fields.get("repetition_penalty"),
        logit_bias=_logit_bias(fields.get("logit_bias", {})),
        min_tokens=fields.get("min_tokens", 0),
        stop_strings=_stop(fields.get("stop", [])),
        stop_token_ids=_ids(fields.get("stop_token_ids", []), "stop_token_ids"),
        ignore_eos=fields.get("ignore_eos", False),
        seed=fields.get("seed"),
        include_usage=_include_usage(fields.get("stream_options", {}), stream),
        **special,
    )
    return OpenAiRequest(ask, stream)


def _template_names(fields: dict[str, Any]) -> dict[str, str]:
    """What only some templates read, and the parameter it came in."""
    names = {name: name for name in fields if CHAT[name].use is Use.TEMPLATE}
    if names.pop("chat_template_kwargs", None) is not None:
        options = fields["chat_template_kwargs"]
        told = (name for name, value in options.items() if value is not None)
        names.update((name, f"chat_template_kwargs.{name[:64]}") for name in told)
    return names


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
    return tuple(messages), names


def _message(fields: dict[str, Any], where: str) -> Message:
    role = fields.get("role")
    if role not in _ROLES:
        raise InvalidArgument(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
            field=f"{where}.role",
        )
    content = fields.get("content")
    if content in (None, []) and role == "assistant":
        content = ""  # what is left of a turn that was all calls of tools
    return Message(_ROLES[role], _content(content, f"{where}.content"))


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


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if value is None:
        raise InvalidArgument(
            "prompt must be a string or an array of ids, and is missing", field="prompt"
        )
    if len(value) > MAX_PROMPT_IDS:
        raise InvalidArgument(
            f"the prompt has {len(value)} ids, over {MAX_PROMPT_IDS}", field="prompt"
        )
    if any(isinstance(entry, (str, list)) for entry in value):
        raise InvalidArgument(
            f"prompt has {len(value)} entries; send one prompt a request: a string or an array of "
            "ids",
            field="prompt",
        )
    return _ids(value, "prompt")


def _ids(value: list[Any], name: str) -> tuple[int, ...]:
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


def _logit_bias(value: dict[str, Any]) -> MappingProxyType[int, float]:
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidArgument(
                f"logit_bias: a key must be a token's id, not {shown(key)}", field="logit_bias"
            )
        if kind_of(bias) not in ("integer", "number"):
            raise InvalidArgument(
                f"logit_bias: a bias must be a number, not {shown(bias)}", field="logit_bias"
            )
        biases[int(key)] = float(bias)
    return MappingProxyType(biases)


def _include_usage(value: dict[str, Any], stream: bool) -> bool:
    options = given(value, STREAM_OPTIONS, "stream_options.")
    if options and not stream:
        raise InvalidArgument("stream_options needs stream: true", field="stream_options")
    return bool(options.get("include_usage", False))
