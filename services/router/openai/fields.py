"""The fields of OpenAI's completion APIs, and of what its clients and servers add to them.

What changes nothing is taken; what would change the answer and is not supported is refused by name.
Which is which stands in these tables, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING
from services.common.sampling_fields import Kind, SamplingField
from services.common.wire import MAX_CACHE_SALT_CHARS, MAX_TOOLS
from services.router.ask import MAX_MESSAGES, MAX_MODEL_CHARS, MAX_STOP_CHARS, MAX_STOP_STRINGS
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
    schema: Mapping[str, Any] = field(default_factory=dict)
    """What JSON Schema says of its values beside their kind."""
    within: Mapping[str, RequestField] = field(default_factory=dict)
    """Fields of the object, or of each object of the array."""
    others: bool = False
    """Those objects may have fields that nobody knows."""
    needed: bool = False
    """Its object cannot be without it."""

    def means_nothing(self, value: Any) -> bool:
        """The value is as good as none."""
        if not self.neutral:
            return self.use is Use.IGNORED
        return self.use is Use.IGNORED or any(_equal(value, other) for other in self.neutral)

    def check_kind(self, value: Any, where: str) -> None:
        """Raises InvalidArgument for a value of another kind."""
        found = kind_of(value)
        if self.kind in (found, "any"):
            return
        kinds = self.kind.split("|")
        if found not in kinds and not (found == "integer" and "number" in kinds):
            wanted = " or ".join(_ARTICLES[kind] for kind in kinds)
            raise InvalidArgument(f"{where} must be {wanted}, not {shown(value)}", field=where)


FORMATS = ("text", "json_object", "json_schema")
"""Of an answer."""
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


PART = _table(
    (
        RequestField("type", "string", schema={"const": "text"}, needed=True),
        RequestField("text", "string", needed=True),
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
JSON_SCHEMA = _table(
    (
        RequestField("name", "string", needed=True),
        RequestField("schema", "object", needed=True),
        RequestField("strict", "boolean"),
        RequestField("description", "any", Use.IGNORED),
    )
)
"""Of response_format: without `strict`, keywords that cannot be followed are overlooked."""
RESPONSE_FORMAT = _table(
    (
        RequestField("type", "string", schema={"enum": FORMATS}, needed=True),
        RequestField("json_schema", "object", within=JSON_SCHEMA),
    )
)
STRUCTURED_OUTPUTS = _table(
    (
        RequestField("json", "object|string"),
        RequestField("json_object", "boolean", neutral=(False,)),
        RequestField("regex", "string", neutral=("",)),
        RequestField("choice", "array"),
        RequestField("grammar", "string", neutral=("",)),
    )
)
"""vLLM's: one of them."""
FUNCTION = _table(
    (
        RequestField("name", "string", schema={"pattern": "^[a-zA-Z0-9_-]{1,64}$"}, needed=True),
        RequestField("description", "string"),
        RequestField("parameters", "object"),
        RequestField("strict", "boolean"),
    )
)
"""Without `strict`, keywords of its parameters that cannot be followed are overlooked."""
_OF_FUNCTION = RequestField("type", "string", schema={"const": "function"}, needed=True)
TOOL = _table((_OF_FUNCTION, RequestField("function", "object", within=FUNCTION, needed=True)))
"""A tool of a chat."""
CHOSEN = _table((FUNCTION["name"],))
ALLOWED = _table(
    (
        FUNCTION["name"],
        RequestField("description", "any", Use.IGNORED),
        RequestField("parameters", "any", Use.IGNORED),
        RequestField("strict", "any", Use.IGNORED),
    )
)
"""A function that may be called is one of those that were offered, by its name."""
ALLOWED_TOOL = _table(
    (_OF_FUNCTION, RequestField("function", "object", within=ALLOWED, needed=True))
)
ALLOWED_TOOLS = _table(
    (
        RequestField("mode", "string", schema={"enum": ("auto", "required")}, needed=True),
        RequestField(
            "tools",
            "array",
            schema={"minItems": 1, "maxItems": MAX_TOOLS},
            within=ALLOWED_TOOL,
            needed=True,
        ),
    )
)
CHOICE = _table(
    (
        RequestField("type", "string", schema={"enum": ("function", "allowed_tools")}, needed=True),
        RequestField("function", "object", within=CHOSEN),
        RequestField("allowed_tools", "object", within=ALLOWED_TOOLS),
    )
)
"""A tool_choice that names a function, or those that may be called: what its type says."""
CALLED = _table((FUNCTION["name"], RequestField("arguments", "string")))
CALL = _table(
    (
        RequestField("id", "string", schema={"minLength": 1, "maxLength": 256}, needed=True),
        _OF_FUNCTION,
        RequestField("function", "object", within=CALLED, needed=True),
        RequestField("index", "any", Use.IGNORED),
    )
)
"""A call in an assistant's message."""
MESSAGE = _table(
    (
        RequestField("role", "string", needed=True),
        RequestField("content", "string|array", within=PART),
        RequestField("name", "any", Use.IGNORED),
        RequestField("id", "any", Use.IGNORED),
        RequestField("annotations", "any", Use.IGNORED),
        RequestField("refusal", "string", Use.NEUTRAL, ("",)),
        RequestField("audio", "object", Use.NEUTRAL, ({},)),
        RequestField("tool_calls", "array", neutral=([],), within=CALL),
        RequestField("tool_call_id", "string", neutral=("",)),
        RequestField("reasoning_content", "string", neutral=("",)),
        RequestField("function_call", "object", Use.NEUTRAL, ({},)),
    )
)
"""A message of a chat; a field that is none of these is as one of `Use.TEMPLATE`."""


def _sampling_field(row: SamplingField) -> RequestField:
    neutral: Mapping[Kind, tuple[Any, ...]] = {Kind.IDS: ([],), Kind.BIASES: ({},)}
    return RequestField(row.name, row.kind, neutral=neutral.get(row.kind, ()), schema=_schema(row))


def _schema(row: SamplingField) -> Mapping[str, Any]:
    if row.kind is Kind.BOOLEAN:
        return {}
    if row.kind is Kind.IDS:
        return {"items": {"type": "integer", "minimum": 0}, "maxItems": row.most}
    bounds = {
        "exclusiveMinimum" if row.above_low else "minimum": row.low,
        "exclusiveMaximum" if row.below_high else "maximum": row.high,
    }
    if row.kind is Kind.BIASES:
        return {
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", **bounds},
            "maxProperties": row.most,
        }
    return bounds


SAMPLED = tuple(
    _sampling_field(row)
    for row in SAMPLING.values()
    if row.asked and row.name != "top_logprobs"  # each door asks for those in its own way
)
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS = {
    "minLength": 1,
    "anyOf": (
        {"type": "string"},
        _IDS,
        {"items": {"anyOf": ({"type": "string", "minLength": 1}, _IDS)}, "minItems": 1},
    ),
}
_TOP_LOGPROBS = _schema(SAMPLING["top_logprobs"])
_TEXT = {"minLength": 1}
_BOTH = (
    RequestField(
        "model", "string", schema={"minLength": 1, "maxLength": MAX_MODEL_CHARS}, needed=True
    ),
    *SAMPLED,
    RequestField("n", "integer", schema={"minimum": 1}),
    RequestField(
        "stop",
        "string|array",
        neutral=([],),
        schema={
            **_TEXT,
            "maxLength": MAX_STOP_CHARS,
            "items": {"type": "string", **_TEXT, "maxLength": MAX_STOP_CHARS},
            "maxItems": MAX_STOP_STRINGS,
        },
    ),
    RequestField("stream", "boolean"),
    RequestField("stream_options", "object", neutral=({},), within=STREAM_OPTIONS),
    RequestField("best_of", "integer"),
    RequestField("cache_salt", "string", neutral=("",), schema={"maxLength": MAX_CACHE_SALT_CHARS}),
    RequestField("response_format", "object", neutral=({"type": "text"},), within=RESPONSE_FORMAT),
    RequestField("structured_outputs", "object", neutral=({},), within=STRUCTURED_OUTPUTS),
    RequestField("user", "any", Use.IGNORED),
    RequestField("metadata", "any", Use.IGNORED),
    RequestField("store", "any", Use.IGNORED),
    RequestField("service_tier", "any", Use.IGNORED),
    RequestField("safety_identifier", "any", Use.IGNORED),
    RequestField("prompt_cache_key", "any", Use.IGNORED),
    RequestField("prompt_cache_retention", "any", Use.IGNORED),
    RequestField("prompt_cache_options", "any", Use.IGNORED),
    RequestField("prediction", "any", Use.IGNORED),
    RequestField("include_reasoning", "any", Use.IGNORED),
    RequestField("suffix", "string", Use.NEUTRAL, ("",)),
    RequestField("functions", "array", Use.NEUTRAL, ([],)),
    RequestField("function_call", "string|object", Use.NEUTRAL, ("none", "auto")),
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
        RequestField(
            "messages",
            "array",
            schema={"minItems": 1, "maxItems": MAX_MESSAGES},
            within=MESSAGE,
            others=True,
            needed=True,
        ),
        RequestField("max_completion_tokens", "integer", schema=_schema(SAMPLING["max_tokens"])),
        RequestField("logprobs", "boolean"),
        RequestField("top_logprobs", "integer", schema=_TOP_LOGPROBS),
        RequestField("echo", "boolean", Use.NEUTRAL, (False,)),
        RequestField("add_special_tokens", "boolean", Use.NEUTRAL, (False,)),
        RequestField("tools", "array", neutral=([],), within=TOOL, schema={"maxItems": MAX_TOOLS}),
        RequestField("tool_choice", "string|object", neutral=("auto",), within=CHOICE),
        RequestField("parallel_tool_calls", "boolean", neutral=(True,)),
        RequestField("reasoning_effort", "string"),
        RequestField("chat_template_kwargs", "object", Use.TEMPLATE, ({},)),
    ),
    _BOTH,
)
"""The body of /v1/chat/completions."""
COMPLETION = _table(
    (
        RequestField("prompt", "string|array", schema=_PROMPTS, needed=True),
        RequestField("echo", "boolean", neutral=(False,)),
        RequestField("logprobs", "integer|boolean", neutral=(False,), schema=_TOP_LOGPROBS),
        RequestField("top_logprobs", "integer", Use.NEUTRAL, (0,)),
        RequestField("add_special_tokens", "boolean", Use.NEUTRAL, (True,)),
        RequestField("tools", "array", Use.NEUTRAL, ([],)),
        RequestField("tool_choice", "string|object", Use.NEUTRAL, ("none", "auto")),
        RequestField("parallel_tool_calls", "any", Use.IGNORED),
        RequestField("reasoning_effort", "string", Use.IGNORED),
        RequestField("chat_template_kwargs", "object", Use.IGNORED),
    ),
    _BOTH,
)
"""The body of /v1/completions."""
TOKENIZE = _table(
    (
        RequestField("model", "string"),
        RequestField("prompt", "string"),
        replace(CHAT["messages"], needed=False),
        RequestField("add_special_tokens", "boolean"),
        RequestField("return_token_strs", "boolean", neutral=(False,)),
        *(
            CHAT[name]
            for name in (
                "add_generation_prompt",
                "continue_final_message",
                "chat_template",
                "chat_template_kwargs",
                "tools",
            )
        ),
    )
)
"""The body of /tokenize: one of prompt and messages."""
DETOKENIZE = _table(
    (
        RequestField("model", "string"),
        RequestField(
            "tokens", "array", schema={"items": {"type": "integer", "minimum": 0}}, needed=True
        ),
    )
)
TABLES: Mapping[str, Mapping[str, RequestField]] = {
    "chat": CHAT,
    "message": MESSAGE,
    "completion": COMPLETION,
    "tokenize": TOKENIZE,
}
"""Those that the page about the door shows, by the names it has for them."""


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
    lines = ["| field | type | range | taken | same as absent |", "|---|---|---|---|---|"]
    for row in table.values():
        neutral = ", ".join(f"`{shown(other, whole=True)}`" for other in (None, *row.neutral))
        kind = row.kind.replace("|", " or ")
        if row.use is Use.IGNORED:
            neutral = "anything"
        lines.append(f"| `{row.name}` | {kind} | {_range(row.schema)} | {row.use} | {neutral} |")
    return lines


def _range(schema: Mapping[str, Any]) -> str:
    """What a reader needs of a field's schema."""
    entries = schema.get("maxItems", schema.get("maxProperties"))
    each, longest = schema.get("additionalProperties"), schema.get("maxLength")
    parts = [
        _bounds(schema),
        "" if entries is None else f"{entries} entries at most",
        "" if longest is None else f"{'' if entries is None else 'each '}{longest} characters",
        f"each {_bounds(each)}" if isinstance(each, Mapping) else "",
    ]
    return ", ".join(filter(None, parts))


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is None and over is None:
        return ""
    least = f"{low}" if over is None else f"over {over}"
    if high is None and under is None:
        return f"{least} or more"
    return f"{least} to {high}" if under is None else f"{least} to under {under}"
