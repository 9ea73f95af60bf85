from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.common.generation import SAMPLING
from services.router.openai.fields import CHAT, COMPLETION, RequestField, Use
from services.router.openapi.document import document
from services.router.openapi.operations import OPERATIONS
from services.router.openapi.schemas import body_of

WHOLE = document(OPERATIONS, asks_for_keys=False)
CHATTED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETED = {"model": "m", "prompt": "hi"}


def test_the_document_is_one() -> None:
    OpenAPIV31SpecValidator(WHOLE).validate()  # type: ignore[arg-type]


def test_names_of_operations_are_unique() -> None:
    names = [operation.name for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", [r for r in SAMPLING.values() if r.asked], ids=lambda r: r.name)
def test_a_range_of_the_table_is_one_of_the_document(row: Any) -> None:
    name = "logprobs" if row.name == "top_logprobs" else row.name
    schema = WHOLE["components"]["schemas"]["CreateCompletionBody"]["properties"][name]
    schema = schema.get("anyOf", [schema])[-1]
    told = {**schema, **schema.get("additionalProperties", {})}
    if row.bounds:
        assert row.low in (told.get("minimum"), told.get("exclusiveMinimum"))
        assert row.high in (told.get("maximum"), told.get("exclusiveMaximum"))
    if row.most:
        assert row.most == schema.get("maxItems", schema.get("maxProperties"))


@pytest.mark.parametrize(
    ("table", "body", "more", "fits"),
    [
        (CHAT, CHATTED, {}, True),
        (CHAT, CHATTED, {"temperature": 2, "stop": ["a"], "seed": None}, True),
        (CHAT, CHATTED, {"logit_bias": {"5": -100}, "tools": [], "user": {"a": 1}}, True),
        (CHAT, CHATTED, {"nonsense": None, "stream_options": {"include_usage": True}}, True),
        (CHAT, {**CHATTED, "messages": [{"role": "user", "content": "x", "z": 1}]}, {}, True),
        (CHAT, {"messages": []}, {}, False),
        (CHAT, CHATTED, {"temperature": 2.1}, False),
        (CHAT, CHATTED, {"nonsense": 1}, False),
        (CHAT, CHATTED, {"logit_bias": {"x": 1}}, False),
        (CHAT, CHATTED, {"logit_bias": {"1": 101}}, False),
        (CHAT, CHATTED, {"suffix": "x"}, False),
        (CHAT, CHATTED, {"stream_options": {"else": 1}}, False),
        (CHAT, CHATTED, {"repetition_penalty": 0}, False),
        (CHAT, CHATTED, {"logprobs": 1}, False),
        (COMPLETION, COMPLETED, {"logprobs": False}, True),
        (COMPLETION, COMPLETED, {"logprobs": 20}, True),
        (COMPLETION, COMPLETED, {"logprobs": True}, False),
        (COMPLETION, COMPLETED, {"logprobs": 21}, False),
        (COMPLETION, {"model": "m"}, {}, False),
    ],
)
def test_a_body_fits_its_schema_as_the_door_takes_it(
    table: dict[str, RequestField], body: dict[str, Any], more: dict[str, Any], fits: bool
) -> None:
    assert Draft202012Validator(body_of(table)).is_valid({**body, **more}) is fits


@pytest.mark.parametrize("table", [CHAT, COMPLETION])
def test_what_means_nothing_fits(table: dict[str, RequestField]) -> None:
    body = CHATTED if table is CHAT else COMPLETED
    validator = Draft202012Validator(body_of(table))
    for field in table.values():
        for value in (*field.neutral, *(() if field.needed else (None,))):
            assert validator.is_valid({**body, field.name: value}), (field.name, value)
        if field.use is Use.IGNORED:
            assert validator.is_valid({**body, field.name: {"any": [1]}})
