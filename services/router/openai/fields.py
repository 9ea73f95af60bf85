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
class Field:
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


def _table(*groups: Iterable[Field]) -> Mapping[str, Field]:
    return {field.name: field for group in groups for field in group}


_BOTH = (
    Field("model", "string"),
    Field("max_tokens", "integer"),
    Field("temperature", "number"),
    Field("top_p", "number"),
    Field("n", "integer"),
    Field("stop", "string|array", neutral=([],)),
    Field("seed", "integer"),
    Field("logit_bias", "object", neutral=({},)),
    Field("presence_penalty", "number"),
    Field("frequency_penalty", "number"),
    Field("stream", "boolean"),
    Field("stream_options", "object", neutral=({},)),
    Field("top_k", "integer"),
    Field("min_p", "number"),
    Field("repetition_penalty", "number"),
    Field("min_tokens", "integer"),
    Field("ignore_eos", "boolean"),
    Field("stop_token_ids", "array", neutral=([],)),
    Field("best_of", "integer"),
    Field("user", "any", Use.IGNORED),
    Field("metadata", "any", Use.IGNORED),
    Field("store", "any", Use.IGNORED),
    Field("service_tier", "any", Use.IGNORED),
    Field("safety_identifier", "any", Use.IGNORED),
    Field("prompt_cache_key", "any", Use.IGNORED),
    Field("prompt_cache_retention", "any", Use.IGNORED),
    Field("prompt_cache_options", "any", Use.IGNORED),
    Field("prediction", "any", Use.IGNORED),
    Field("parallel_tool_calls", "any", Use.IGNORED),
    Field("include_reasoning", "any", Use.IGNORED),
    Field("echo", "boolean", Use.NEUTRAL, (False,)),
    Field("suffix", "string", Use.NEUTRAL, ("",)),
    Field("tools", "array", Use.NEUTRAL, ([],)),
    Field("tool_choice", "string|object", Use.NEUTRAL, ("none", "auto")),
    Field("functions", "array", Use.NEUTRAL, ([],)),
    Field("function_call", "string|object", Use.NEUTRAL, ("none", "auto")),
    Field("response_format", "object", Use.NEUTRAL, ({"type": "text"},)),
    Field("modalities", "array", Use.NEUTRAL, (["text"],)),
    Field("audio", "object", Use.NEUTRAL),
    Field("web_search_options", "object", Use.NEUTRAL),
    Field("verbosity", "string", Use.NEUTRAL, ("medium",)),
    Field("documents", "array", Use.NEUTRAL, ([],)),
    Field("chat_template", "string", Use.NEUTRAL),
    Field("add_generation_prompt", "boolean", Use.NEUTRAL, (True,)),
    Field("continue_final_message", "boolean", Use.NEUTRAL, (False,)),
    Field("use_beam_search", "boolean", Use.NEUTRAL, (False,)),
    Field("length_penalty", "number", Use.NEUTRAL, (1,)),
    Field("typical_p", "number", Use.NEUTRAL, (1,)),
    Field("bad_words", "array", Use.NEUTRAL, ([],)),
    Field("logits_processors", "array", Use.NEUTRAL, ([],)),
    Field("skip_special_tokens", "boolean", Use.NEUTRAL, (True,)),
    Field("spaces_between_special_tokens", "boolean", Use.NEUTRAL, (True,)),
    Field("include_stop_str_in_output", "boolean", Use.NEUTRAL, (False,)),
    Field("return_token_ids", "boolean", Use.NEUTRAL, (False,)),
    Field("return_tokens_as_token_ids", "boolean", Use.NEUTRAL, (False,)),
    Field("priority", "integer", Use.NEUTRAL, (0,)),
)
CHAT = _table(
    (
        Field("messages", "array"),
        Field("max_completion_tokens", "integer"),
        Field("logprobs", "boolean"),
        Field("top_logprobs", "integer"),
        Field("add_special_tokens", "boolean", Use.NEUTRAL, (False,)),
        Field("reasoning_effort", "string", Use.TEMPLATE),
        Field("chat_template_kwargs", "object", Use.TEMPLATE, ({},)),
    ),
    _BOTH,
)
"""The body of /v1/chat/completions."""
COMPLETION = _table(
    (
        Field("prompt", "string|array"),
        Field("logprobs", "integer|boolean", neutral=(False,)),
        Field("top_logprobs", "integer", Use.NEUTRAL, (0,)),
        Field("add_special_tokens", "boolean", Use.NEUTRAL, (True,)),
        Field("reasoning_effort", "string", Use.IGNORED),
        Field("chat_template_kwargs", "object", Use.IGNORED),
    ),
    _BOTH,
)
"""The body of /v1/completions."""
MESSAGE = _table(
    (
        Field("role", "string"),
        Field("content", "string|array"),
        Field("name", "any", Use.IGNORED),
        Field("id", "any", Use.IGNORED),
        Field("annotations", "any", Use.IGNORED),
        Field("refusal", "string", Use.NEUTRAL, ("",)),
        Field("audio", "object", Use.NEUTRAL, ({},)),
        Field("tool_calls", "array", Use.NEUTRAL, ([],)),
        Field("tool_call_id", "string", Use.NEUTRAL, ("",)),
        Field("function_call", "object", Use.NEUTRAL, ({},)),
    )
)
"""A message of a chat; a field that is none of these is as one of `Use.TEMPLATE`."""
PART = _table(
    (
        Field("type", "string"),
        Field("text", "string"),
        Field("cache_control", "any", Use.IGNORED),
        Field("annotations", "any", Use.IGNORED),
    )
)
"""A part of a message's content."""
STREAM_OPTIONS = _table(
    (
        Field("include_usage", "boolean", neutral=(False,)),
        Field("include_obfuscation", "any", Use.IGNORED),
        Field("continuous_usage_stats", "boolean", Use.NEUTRAL, (False,)),
    )
)


def given(
    values: Mapping[str, Any], table: Mapping[str, Field], where: str = "", *, others: bool = False
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


def _unsupported(field: Field, path: str, value: Any) -> str:
    neutral = " or ".join(shown(other, whole=True) for other in field.neutral)
    instead = f"leave it out or send {neutral}" if neutral else "leave it out"
    return f"{path} is not supported: {instead}, not {shown(value)}"


def rows(table: Mapping[str, Field]) -> list[str]:
    """The table in Markdown."""
    lines = ["| field | type | taken | same as absent |", "|---|---|---|---|"]
    for field in table.values():
        neutral = ", ".join(f"`{shown(other, whole=True)}`" for other in (None, *field.neutral))
        kind = field.kind.replace("|", " or ")
        if field.use is Use.IGNORED:
            neutral = "anything"
        lines.append(f"| `{field.name}` | {kind} | {field.use} | {neutral} |")
    return lines
