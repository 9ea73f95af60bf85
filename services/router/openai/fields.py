"""The fields of OpenAI's completion APIs, and of what its clients and servers add to them.

What changes nothing is taken; what would change the answer and is not supported is refused by name.
Which is which stands in these tables, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.errors import InvalidArgument
from services.router.http.json_body import kind_of, shown


class Use(StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    NEUTRAL = "only what changes nothing"
    IGNORED = "changes nothing"
    TEMPLATE = "refused if the model's chat template reads it"


@dataclass(frozen=True, slots=True)
class RequestField:
    """A field of an object; null is the same as absent in all of them."""

    name: str
    kind: str
    """In JSON's words; `integer|boolean` is either, `any` is all of them."""
    use: Use = Use.HONOURED
    neutral: tuple[Any, ...] = ()
    """Values that mean what absence means."""

    def means_nothing(self, value: Any) -> bool:
        """The value is as good as none."""
        return self.use is Use.IGNORED or any(_equal(value, other) for other in self.neutral)

    def check_kind(self, value: Any, where: str) -> None:
        """Raises InvalidArgument for a value of another kind."""
        kinds, found = self.kind.split("|"), kind_of(value)
        if (
            self.kind != "any"
            and found not in kinds
            and not (found == "integer" and "number" in kinds)
        ):
            wanted = " or ".join(_ARTICLES[kind] for kind in kinds)
            raise InvalidArgument(f"{where} must be {wanted}, not {shown(value)}", field=where)


_ARTICLES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "an array",
    "object": "an object",
}


def _equal(value: Any, other: Any) -> bool:
    return value == other and (kind_of(value) in ("integer", "number")) == (
        kind_of(other) in ("integer", "number")
    )


def _table(*groups: Iterable[RequestField]) -> Mapping[str, RequestField]:
    return {field.name: field for group in groups for field in group}


_BOTH = (
    RequestField("model", "string"),
    RequestField("max_tokens", "integer"),
    RequestField("temperature", "number"),
    RequestField("top_p", "number"),
    RequestField("n", "integer"),
    RequestField("stop", "string|array", neutral=([],)),
    RequestField("seed", "integer"),
    RequestField("logit_bias", "object", neutral=({},)),
    RequestField("presence_penalty", "number"),
    RequestField("frequency_penalty", "number"),
    RequestField("stream", "boolean"),
    RequestField("stream_options", "object", neutral=({},)),
    RequestField("top_k", "integer"),
    RequestField("min_p", "number"),
    RequestField("repetition_penalty", "number"),
    RequestField("min_tokens", "integer"),
    RequestField("ignore_eos", "boolean"),
    RequestField("stop_token_ids", "array", neutral=([],)),
    RequestField("best_of", "integer"),
    RequestField("user", "any", Use.IGNORED),
    RequestField("metadata", "any", Use.IGNORED),
    RequestField("store", "any", Use.IGNORED),
    RequestField("service_tier", "any", Use.IGNORED),
    RequestField("safety_identifier", "any", Use.IGNORED),
    RequestField("prompt_cache_key", "any", Use.IGNORED),
    RequestField("prompt_cache_retention", "any", Use.IGNORED),
    RequestField("prompt_cache_options", "any", Use.IGNORED),
    RequestField("prediction", "any", Use.IGNORED),
    RequestField("parallel_tool_calls", "any", Use.IGNORED),
    RequestField("include_reasoning", "any", Use.IGNORED),
    RequestField("echo", "boolean", Use.NEUTRAL, (False,)),
    RequestField("suffix", "string", Use.NEUTRAL, ("",)),
    RequestField("tools", "array", Use.NEUTRAL, ([],)),
    RequestField("tool_choice", "string|object", Use.NEUTRAL, ("none", "auto")),
    RequestField("functions", "array", Use.NEUTRAL, ([],)),
    RequestField("function_call", "string|object", Use.NEUTRAL, ("none", "auto")),
    RequestField("response_format", "object", Use.NEUTRAL, ({"type": "text"},)),
    RequestField("modalities", "array", Use.NEUTRAL, (["text"],)),
    RequestField("audio", "object", Use.NEUTRAL),
    RequestField("web_search_options", "object", Use.NEUTRAL),
    RequestField("verbosity", "string", Use.NEUTRAL, ("medium",)),
    RequestField("documents", "array", Use.NEUTRAL, ([],)),
    RequestField("chat_template", "string", Use.NEUTRAL),
    RequestField("add_generation_prompt", "boolean", Use.NEUTRAL, (True,)),
    RequestField("continue_final_message", "boolean", Use.NEUTRAL, (False,)),
    RequestField("use_beam_search", "boolean", Use.NEUTRAL, (False,)),
    RequestField("length_penalty", "number", Use.NEUTRAL, (1,)),
    RequestField("typical_p", "number", Use.NEUTRAL, (1,)),
    RequestField("bad_words", "array", Use.NEUTRAL, ([],)),
    RequestField("logits_processors", "array", Use.NEUTRAL, ([],)),
    RequestField("skip_special_tokens", "boolean", Use.NEUTRAL, (True,)),
    RequestField("spaces_between_special_tokens", "boolean", Use.NEUTRAL, (True,)),
    RequestField("include_stop_str_in_output", "boolean", Use.NEUTRAL, (False,)),
    RequestField("return_token_ids", "boolean", Use.NEUTRAL, (False,)),
    RequestField("return_tokens_as_token_ids", "boolean", Use.NEUTRAL, (False,)),
    RequestField("priority", "integer", Use.NEUTRAL, (0,)),
)
CHAT = _table(
    (
        RequestField("messages", "array"),
        RequestField("max_completion_tokens", "integer"),
        RequestField("logprobs", "boolean"),
        RequestField("top_logprobs", "integer"),
        RequestField("add_special_tokens", "boolean", Use.NEUTRAL, (False,)),
        RequestField("reasoning_effort", "string", Use.TEMPLATE),
        RequestField("chat_template_kwargs", "object", Use.TEMPLATE, ({},)),
    ),
    _BOTH,
)
"""The body of /v1/chat/completions."""
COMPLETION = _table(
    (
        RequestField("prompt", "string|array"),
        RequestField("logprobs", "integer|boolean", neutral=(False,)),
        RequestField("top_logprobs", "integer", Use.NEUTRAL, (0,)),
        RequestField("add_special_tokens", "boolean", Use.NEUTRAL, (True,)),
        RequestField("reasoning_effort", "string", Use.IGNORED),
        RequestField("chat_template_kwargs", "object", Use.IGNORED),
    ),
    _BOTH,
)
"""The body of /v1/completions."""
MESSAGE = _table(
    (
        RequestField("role", "string"),
        RequestField("content", "string|array"),
        RequestField("name", "any", Use.IGNORED),
        RequestField("id", "any", Use.IGNORED),
        RequestField("annotations", "any", Use.IGNORED),
        RequestField("refusal", "string", Use.NEUTRAL, ("",)),
        RequestField("audio", "object", Use.NEUTRAL, ({},)),
        RequestField("tool_calls", "array", Use.NEUTRAL, ([],)),
        RequestField("tool_call_id", "string", Use.NEUTRAL, ("",)),
        RequestField("function_call", "object", Use.NEUTRAL, ({},)),
    )
)
"""A message of a chat; a field that is none of these is as one of `Use.TEMPLATE`."""
PART = _table(
    (
        RequestField("type", "string"),
        RequestField("text", "string"),
        RequestField("cache_control", "any", Use.IGNORED),
        RequestField("annotations", "any", Use.IGNORED),
    )
)
"""A part of a message's content."""
STREAM_OPTIONS = _table(
    (
        RequestField("include_usage", "boolean", neutral=(False,)),
        RequestField("include_obfuscation", "any", Use.IGNORED),
        RequestField("continuous_usage_stats", "boolean", Use.NEUTRAL, (False,)),
    )
)


def given(
    values: Mapping[str, Any],
    table: Mapping[str, RequestField],
    where: str = "",
    *,
    others: bool = False,
) -> dict[str, Any]:
    """What of an object's fields says anything, each of its kind; with `others`, fields that the
    table does not have, too. `where` names the object and ends in a dot, or is empty.

    Raises InvalidArgument for a field of another kind, for one that is not supported, and, without
    `others`, for one that nobody knows.
    """
    found = {}
    for name, value in values.items():
        field, path = table.get(name), f"{where}{name[:64]}"
        if value is None:
            continue
        if field is None:
            if not others:
                raise InvalidArgument(f"{shown(path)} is no parameter here", field=path)
            if value not in ("", [], {}):
                found[name] = value
            continue
        if field.use is not Use.IGNORED:
            field.check_kind(value, path)
        if field.means_nothing(value):
            continue
        if field.use is Use.NEUTRAL:
            raise InvalidArgument(_unsupported(field, path, value), field=path)
        found[name] = value
    return found


def _unsupported(field: RequestField, path: str, value: Any) -> str:
    neutral = " or ".join(shown(other, whole=True) for other in field.neutral)
    instead = f"leave it out or send {neutral}" if neutral else "leave it out"
    return f"{path} is not supported: {instead}, not {shown(value)}"


def rows(table: Mapping[str, RequestField]) -> list[str]:
    """The table in Markdown."""
    lines = ["| field | type | taken | same as absent |", "|---|---|---|---|"]
    for field in table.values():
        neutral = ", ".join(f"`{shown(other, whole=True)}`" for other in (None, *field.neutral))
        kind = field.kind.replace("|", " or ")
        if field.use is Use.IGNORED:
            neutral = "anything"
        lines.append(f"| `{field.name}` | {kind} | {field.use} | {neutral} |")
    return lines
