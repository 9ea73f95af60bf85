"""Answers and errors of the HTTP door as JSON Schema, and bodies from the tables of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.router.openai.fields import RequestField, Use

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_FINISH = _one_of("stop", "length", "content_filter", "tool_calls", "function_call")
_ENVELOPE: Mapping[str, Schema] = {
    "id": _STRING,
    "created": _INTEGER,
    "model": _STRING,
    "system_fingerprint": _STRING,
}
_TOKEN = _object(
    {"token": _STRING, "bytes": _list_of(_COUNT), "logprob": _NUMBER},
    top_logprobs=_list_of(_object({"token": _STRING, "bytes": _list_of(_COUNT)})),
)
ANSWERS: Mapping[str, Schema] = {
    "Any": {"type": "object"},
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": _or_null(_STRING),
                    "code": _STRING,
                }
            )
        }
    ),
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
        prompt_tokens_details=_object({"cached_tokens": _COUNT}),
    ),
    "ChatCompletion": _object(
        {
            **_ENVELOPE,
            "object": {"const": "chat.completion"},
            "choices": _list_of(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": _or_null(_STRING)}
                        ),
                        "logprobs": _or_null(_object({"content": _list_of(_TOKEN)})),
                        "finish_reason": _FINISH,
                    }
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Completion": _object(
        {
            **_ENVELOPE,
            "object": {"const": "text_completion"},
            "choices": _list_of(
                _object(
                    {
                        "index": _COUNT,
                        "text": _STRING,
                        "logprobs": _or_null(
                            _object(
                                {
                                    "tokens": _list_of(_STRING),
                                    "token_logprobs": _list_of(_or_null(_NUMBER)),
                                    "top_logprobs": _list_of(_or_null({"type": "object"})),
                                    "text_offset": _list_of(_COUNT),
                                }
                            )
                        ),
                        "finish_reason": _FINISH,
                    }
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Response": _object(
        {
            "id": _STRING,
            "object": {"const": "response"},
            "created_at": _INTEGER,
            "status": _one_of(
                "queued", "in_progress", "completed", "incomplete", "failed", "cancelled"
            ),
            "model": _STRING,
            "output": _list_of({"type": "object"}),
            "error": _or_null({"type": "object"}),
            "incomplete_details": _or_null({"type": "object"}),
            "usage": _or_null({"type": "object"}),
            "metadata": {"type": "object"},
            "previous_response_id": _or_null(_STRING),
            "background": {"type": "boolean"},
            "store": {"type": "boolean"},
        }
    ),
    "Model": _object(
        {
            "id": _STRING,
            "object": {"const": "model"},
            "created": _INTEGER,
            "owned_by": _STRING,
            "root": _STRING,
            "max_model_len": _or_null(_COUNT),
            "capabilities": _or_null({"type": "object"}),
        }
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _list_of(_ref("Model"))}),
    "Generation": _object(
        {
            "id": _STRING,
            "object": {"const": "generation"},
            "created": _INTEGER,
            "model": _STRING,
            "state": _one_of("open", "finished", "cancelled"),
            "epoch": _COUNT,
            "pipeline": _or_null(_STRING),
            "numerics_classes": _list_of(_STRING),
            "choices": _list_of(
                _object({"index": _COUNT, "tokens": _COUNT, "finish_reason": _or_null(_STRING)})
            ),
        }
    ),
    "Tokens": _object(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _list_of(_COUNT),
            "token_strs": _or_null(_list_of(_STRING)),
        }
    ),
    "Text": _object({"prompt": _STRING}),
    "Version": _object({"version": _STRING}),
    "Upload": _object(
        {"purpose": {"const": "batch"}, "file": {"type": "string", "format": "binary"}}
    ),
    "File": _object(
        {
            "id": _STRING,
            "object": {"const": "file"},
            "bytes": _COUNT,
            "created_at": _INTEGER,
            "filename": _STRING,
            "purpose": _STRING,
            "status": _STRING,
        },
        expires_at=_INTEGER,
    ),
    "Batch": _object(
        {
            "id": _STRING,
            "object": {"const": "batch"},
            "endpoint": _STRING,
            "input_file_id": _STRING,
            "completion_window": _STRING,
            "status": _STRING,
            "output_file_id": _or_null(_STRING),
            "error_file_id": _or_null(_STRING),
            "created_at": _INTEGER,
            "request_counts": _object({"total": _COUNT, "completed": _COUNT, "failed": _COUNT}),
        }
    ),
    "List": _object(
        {
            "object": {"const": "list"},
            "data": _list_of({"type": "object"}),
            "first_id": _or_null(_STRING),
            "last_id": _or_null(_STRING),
            "has_more": {"type": "boolean"},
        }
    ),
    "Deleted": _object({"id": _STRING, "object": _STRING, "deleted": {"const": True}}),
    "Cancelled": _object({"id": _STRING, "cancelled": {"const": True}}),
}
"""By name."""


def body_of(table: Mapping[str, RequestField], *, others: bool = False) -> Schema:
    """An object with the table's fields; with `others`, any fields beside them. Null is as good as
    absence, of what nobody knows too."""
    schema: Schema = {
        "type": "object",
        "properties": {name: _field(field) for name, field in table.items()},
        "additionalProperties": True if others else {"type": "null"},
    }
    needed = [field.name for field in table.values() if field.needed]
    return {**schema, "required": needed} if needed else schema


def _field(field: RequestField) -> Schema:
    said: Schema = {"description": str(field.use)}
    if field.use is Use.IGNORED or field.kind == "any":
        return said
    if field.use is Use.NEUTRAL:
        return {**said, "enum": [None, *field.neutral]}
    wanted: Schema = _plain(field.schema)
    if field.within:
        each = body_of(field.within, others=field.others)
        wanted |= {"items": each} if "array" in field.kind.split("|") else each
    wanted["type"] = _types(field)
    outside = [value for value in field.neutral if value in ("", False)]
    return {**said, "anyOf": [{"enum": outside}, wanted]} if outside else {**said, **wanted}


def _types(field: RequestField) -> list[str]:
    """Kinds that mean something: of true and false one may be no more than absence."""
    kinds = [kind for kind in field.kind.split("|") if kind != "boolean" or field.kind == kind]
    return kinds if field.needed else [*kinds, "null"]


def _plain(value: Any) -> Any:
    """As JSON has it: a schema that nobody changes may hold tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
