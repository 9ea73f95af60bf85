"""What an answer must look like, as OpenAI's and vLLM's fields say it, as a grammar."""

from __future__ import annotations

from typing import Any

from services.common.errors import InvalidArgument
from services.model import grammar
from services.router.http.json_body import kind_of, shown
from services.router.openai.fields import (
    FORMATS,
    JSON_SCHEMA,
    RESPONSE_FORMAT,
    STRUCTURED_OUTPUTS,
    given,
)

_OBJECT = {"type": "object"}


def structure_of(fields: dict[str, Any]) -> tuple[str, str]:
    """The grammar, and the parameter that asks for it; empty where none does. Raises
    InvalidArgument and names the parameter."""
    form, structure = fields.get("response_format"), fields.get("structured_outputs")
    if form is not None and structure is not None:
        raise InvalidArgument(
            "response_format and structured_outputs both say what the answer must follow; send "
            "one of them",
            field="structured_outputs",
        )
    if form is not None:
        return _of_format(form), "response_format"
    if structure is not None:
        return _of_structure(structure), "structured_outputs"
    return "", ""


def _of_format(value: dict[str, Any]) -> str:
    fields = given(value, RESPONSE_FORMAT, "response_format.")
    kind, described = fields.get("type"), fields.get("json_schema")
    if kind not in FORMATS:
        raise InvalidArgument(
            f"response_format.type must be one of {', '.join(FORMATS)}, not {shown(kind)}",
            field="response_format.type",
        )
    if kind != "json_schema":
        if described is not None:
            raise InvalidArgument(
                f'response_format.json_schema needs type: "json_schema", not {shown(kind)}',
                field="response_format.json_schema",
            )
        return of_any_object()
    where = "response_format.json_schema"
    if described is None:
        raise InvalidArgument(f"{where} must be an object, and is missing", field=where)
    return of_described(given(described, JSON_SCHEMA, f"{where}."), where)


def of_described(fields: dict[str, Any], where: str) -> str:
    """The grammar of a schema that has a name; `fields` as `given` found them in `where`."""
    if not fields.get("name"):
        raise InvalidArgument(
            f"{where}.name must be a string, and is missing", field=f"{where}.name"
        )
    if "schema" not in fields:
        raise InvalidArgument(
            f"{where}.schema must be an object, and is missing", field=f"{where}.schema"
        )
    return grammar.of_json_schema(
        fields["schema"], f"{where}.schema", lenient=not fields.get("strict", False)
    )


def of_any_object() -> str:
    """The grammar of a JSON object, whatever is in it."""
    return grammar.of_json_schema(_OBJECT)


def _of_structure(value: dict[str, Any]) -> str:
    fields = given(value, STRUCTURED_OUTPUTS, "structured_outputs.")
    if len(fields) != 1:
        raise InvalidArgument(
            f"structured_outputs must have one of {', '.join(STRUCTURED_OUTPUTS)}, and has "
            f"{len(fields)}",
            field="structured_outputs",
        )
    ((name, wanted),) = fields.items()
    if name == "regex":
        return grammar.of_regex(wanted)
    if name == "grammar":
        return grammar.of_lark(wanted)
    if name == "choice":
        return grammar.of_choice(_texts(wanted))
    if name == "json_object":
        return of_any_object()
    return grammar.of_json_schema(_schema(wanted), "structured_outputs.json")


def _schema(value: Any) -> Any:
    """An object, or its text."""
    if not isinstance(value, str):
        return value
    where = "structured_outputs.json"
    return grammar.schema_from(value, where)


def _texts(value: list[Any]) -> list[str]:
    where = "structured_outputs.choice"
    if not value:
        raise InvalidArgument(f"{where} must have an entry at least", field=where)
    for entry in value:
        if kind_of(entry) != "string" or not entry:
            raise InvalidArgument(
                f"{where} must be an array of strings that are not empty, and holds {shown(entry)}",
                field=where,
            )
    return value
