"""The bodies of /v1/chat/completions and /v1/completions as asks.

What is not supported is refused by name, and so is what nobody knows: a parameter that is silently
ignored changes an answer without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.router.ask import MAX_PROMPT_IDS, Ask
from services.router.json_body import shown

T = TypeVar("T")

COMPLETION_TOKENS = 16
"""What /v1/completions makes when max_tokens is absent."""
_IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class OpenAiRequest:
    """An ask, and the form in which the answer is wanted."""

    ask: Ask
    stream: bool


def parse_chat(body: dict[str, Any]) -> OpenAiRequest:
    """Raises InvalidArgument and names the parameter."""
    fields = _Fields(body)
    logprobs = fields.boolean("logprobs") or False
    top_logprobs = fields.integer("top_logprobs")
    if top_logprobs is not None and not logprobs:
        raise InvalidArgument("top_logprobs needs logprobs", field="top_logprobs")
    longest = fields.integer("max_completion_tokens")
    older = fields.integer("max_tokens")
    if longest is not None and older is not None and longest != older:
        raise InvalidArgument("max_tokens and max_completion_tokens differ", field="max_tokens")
    form = fields.take("response_format")
    if form is not None and form != {"type": "text"}:
        raise InvalidArgument("only the response_format text is supported", field="response_format")
    for name in ("tools", "functions"):
        if fields.take(name):
            raise InvalidArgument(f"{name} are not supported", field=name)
    if fields.take("tool_choice") not in (None, "none", "auto"):
        raise InvalidArgument("tools are not supported", field="tool_choice")
    fields.boolean("parallel_tool_calls")
    if fields.take("modalities") not in (None, ["text"]):
        raise InvalidArgument("only the modality text is supported", field="modalities")
    return _finish(
        fields,
        GenerationKind.CHAT,
        prompt=_messages(fields.take("messages")),
        top_logprobs=(top_logprobs or 0) if logprobs else None,
        max_tokens=longest if longest is not None else older,
        most_tokens=None,
    )


def parse_completion(body: dict[str, Any]) -> OpenAiRequest:
    """Raises InvalidArgument and names the parameter."""
    fields = _Fields(body)
    if fields.boolean("echo"):
        raise InvalidArgument("echo is not supported", field="echo")
    if fields.string("suffix"):
        raise InvalidArgument("suffix is not supported", field="suffix")
    best_of = fields.integer("best_of")
    if best_of is not None and best_of != (body.get("n") or 1):
        raise InvalidArgument("best_of must equal n", field="best_of")
    return _finish(
        fields,
        GenerationKind.COMPLETION,
        prompt=_prompt(fields.take("prompt")),
        top_logprobs=fields.integer("logprobs"),
        max_tokens=fields.integer("max_tokens"),
        most_tokens=COMPLETION_TOKENS,
    )


def _finish(fields: _Fields, kind: GenerationKind, **special: Any) -> OpenAiRequest:
    stream = fields.boolean("stream") or False
    choices = fields.integer("n")
    min_tokens = fields.integer("min_tokens")
    ask = Ask(
        model=fields.string("model") or "",
        kind=kind,
        choices=1 if choices is None else choices,
        temperature=fields.number("temperature"),
        top_k=fields.integer("top_k"),
        top_p=fields.number("top_p"),
        min_p=fields.number("min_p"),
        presence_penalty=fields.number("presence_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        repetition_penalty=fields.number("repetition_penalty"),
        logit_bias=_logit_bias(fields.take("logit_bias")),
        min_tokens=0 if min_tokens is None else min_tokens,
        stop_strings=_stop(fields.take("stop")),
        stop_token_ids=_ids(fields.take("stop_token_ids"), "stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos") or False,
        seed=fields.integer("seed"),
        include_usage=_include_usage(fields.take("stream_options"), stream),
        **special,
    )
    fields.end()
    return OpenAiRequest(ask, stream)


class _Fields:
    """Takes typed values out of a body; null is absent."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._left = _present(body)

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def integer(self, name: str) -> int | None:
        return self._typed(name, "an integer", int)

    def number(self, name: str) -> float | None:
        return self._typed(name, "a number", float, int)

    def boolean(self, name: str) -> bool | None:
        return self._typed(name, "true or false", bool)

    def string(self, name: str) -> str | None:
        return self._typed(name, "a string", str)

    def _typed(self, name: str, what: str, *kinds: type[T]) -> T | None:
        value: T | None = self._left.pop(name, None)
        if value is not None and type(value) not in kinds:
            raise InvalidArgument(f"{name} must be {what}, not {shown(value)}", field=name)
        return value

    def end(self) -> None:
        for name in self._left:
            if name not in _IGNORED:
                name = name[:64]
                raise InvalidArgument(f"the parameter {shown(name)} is not supported", field=name)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InvalidArgument("messages must be a list", field="messages")
    return tuple(_message(entry, f"messages[{index}]") for index, entry in enumerate(value))


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where} must be an object", field=where)
    entry = _present(entry)
    unknown = entry.keys() - {"role", "content", "name", "refusal"}
    if unknown:
        raise InvalidArgument(f"{where}: {shown(min(unknown))} is not supported", field=where)
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidArgument(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
            field=f"{where}.role",
        )
    return Message(_ROLES[role], _content(entry.get("content"), f"{where}.content"))


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise InvalidArgument(f"{where} must be a string or parts of text", field=where)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidArgument(f"{where}: only parts of type text are supported", field=where)
        if not isinstance(part.get("text"), str) or _present(part).keys() != {"type", "text"}:
            raise InvalidArgument(f"{where}: a part of text has type and text", field=where)
        texts.append(part["text"])
    return "".join(texts)


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidArgument("prompt must be a string or a list of ids", field="prompt")
    if len(value) > MAX_PROMPT_IDS:
        raise InvalidArgument(f"the prompt has over {MAX_PROMPT_IDS} ids", field="prompt")
    if any(isinstance(entry, (str, list)) for entry in value):
        raise InvalidArgument("one prompt a request: a string or a list of ids", field="prompt")
    return _ids(value, "prompt")


def _ids(value: Any, name: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or any(type(entry) is not int for entry in value):
        raise InvalidArgument(f"{name} must be a list of integers", field=name)
    return tuple(value)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return ()
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        raise InvalidArgument("stop must be a string or a list of strings", field="stop")
    return tuple(texts)


def _logit_bias(value: Any) -> MappingProxyType[int, float]:
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, dict):
        raise InvalidArgument("logit_bias must be an object", field="logit_bias")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidArgument(f"logit_bias: {shown(key)} is no id", field="logit_bias")
        if type(bias) not in (int, float):
            raise InvalidArgument("logit_bias: a bias must be a number", field="logit_bias")
        biases[int(key)] = float(bias)
    return MappingProxyType(biases)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    known = {"include_usage", "include_obfuscation"}
    if not isinstance(value, dict) or _present(value).keys() - known:
        raise InvalidArgument("stream_options knows include_usage only", field="stream_options")
    if not stream:
        raise InvalidArgument("stream_options needs stream", field="stream_options")
    include = value.get("include_usage")
    if include is not None and type(include) is not bool:
        raise InvalidArgument("include_usage must be true or false", field="stream_options")
    return bool(include)
