"""The fields of POST /v1/responses, and of what stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from services.router.openai.fields import (
    CHAT,
    FORMATS,
    JSON_SCHEMA,
    PART,
    SAMPLED,
    RequestField,
    Use,
)

MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_CHARS = 512
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""Of all but the first there never is anything to include."""


def _table(*groups: Iterable[RequestField]) -> Mapping[str, RequestField]:
    return {field.name: field for group in groups for field in group}


MESSAGE_ITEM = _table(
    (
        RequestField("type", "string"),
        RequestField("role", "string"),
        RequestField("content", "string|array"),
        RequestField("id", "string"),
        RequestField("status", "any", Use.IGNORED),
        RequestField("phase", "any", Use.IGNORED),
    )
)
"""A message among the items of an input."""
CALL_ITEM = _table(
    (
        RequestField("type", "string"),
        RequestField("id", "string"),
        RequestField("call_id", "string"),
        RequestField("name", "string"),
        RequestField("arguments", "string"),
        RequestField("status", "any", Use.IGNORED),
        RequestField("namespace", "any", Use.IGNORED),
    )
)
"""A call of a function in an earlier turn."""
OUTPUT_ITEM = _table(
    (
        RequestField("type", "string"),
        RequestField("id", "string"),
        RequestField("call_id", "string"),
        RequestField("output", "string|array"),
        RequestField("status", "any", Use.IGNORED),
    )
)
"""What came of such a call."""
TEXT_PART = _table(PART.values(), (RequestField("logprobs", "any", Use.IGNORED),))
"""A part of such a message's content."""
TEXT_FORMAT = _table(
    (RequestField("type", "string", schema={"enum": FORMATS}, needed=True),),
    (replace(field, needed=False) for field in JSON_SCHEMA.values()),
)
"""`name`, `schema` and the rest are of json_schema."""
TEXT = _table(
    (
        RequestField("format", "object", neutral=({"type": "text"},), within=TEXT_FORMAT),
        RequestField("verbosity", "string", Use.NEUTRAL, ("medium",)),
    )
)
REASONING = _table(
    (
        RequestField("effort", "string"),
        RequestField("summary", "any", Use.IGNORED),
        RequestField("generate_summary", "any", Use.IGNORED),
    )
)
STREAM_OPTIONS = _table((RequestField("include_obfuscation", "any", Use.IGNORED),))
RESPONSE = _table(
    (
        CHAT["model"],
        RequestField("input", "string|array", needed=True),
        RequestField("instructions", "string", neutral=("",)),
        RequestField("previous_response_id", "string"),
        RequestField("text", "object", neutral=({},), within=TEXT),
        RequestField("max_output_tokens", "integer", schema=CHAT["max_completion_tokens"].schema),
        RequestField(
            "include", "array", neutral=([],), schema={"items": {"enum": list(INCLUDABLE)}}
        ),
        RequestField("top_logprobs", "integer", schema=CHAT["top_logprobs"].schema),
        RequestField(
            "metadata",
            "object",
            neutral=({},),
            schema={
                "maxProperties": MAX_METADATA,
                "propertyNames": {"maxLength": MAX_METADATA_KEY_CHARS},
                "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_CHARS},
            },
        ),
        RequestField("store", "boolean"),
        RequestField("background", "boolean"),
        RequestField("stream", "boolean"),
        RequestField("stream_options", "object", neutral=({},), within=STREAM_OPTIONS),
        RequestField("reasoning", "object", neutral=({},), within=REASONING),
        *(row for row in SAMPLED if row.name != "max_tokens"),
        CHAT["cache_salt"],
        RequestField("user", "any", Use.IGNORED),
        RequestField("service_tier", "any", Use.IGNORED),
        RequestField("safety_identifier", "any", Use.IGNORED),
        RequestField("prompt_cache_key", "any", Use.IGNORED),
        RequestField("prompt_cache_retention", "any", Use.IGNORED),
        RequestField("prompt_cache_options", "any", Use.IGNORED),
        RequestField("tools", "array", neutral=([],)),
        RequestField("tool_choice", "string|object", neutral=("auto",)),
        RequestField("parallel_tool_calls", "boolean", neutral=(True,)),
        RequestField("max_tool_calls", "integer", Use.NEUTRAL),
        RequestField("truncation", "string", Use.NEUTRAL, ("disabled",)),
        RequestField("conversation", "string|object", Use.NEUTRAL),
        RequestField("prompt", "object", Use.NEUTRAL),
        RequestField("context_management", "array", Use.NEUTRAL, ([],)),
        RequestField("moderation", "object", Use.NEUTRAL, ({},)),
    )
)
"""The body of /v1/responses."""
