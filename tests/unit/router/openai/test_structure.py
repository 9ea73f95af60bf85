from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.model import grammar
from services.router.openai.requests import parse_chat, parse_completion
from services.router.openai.structure import structure_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "answer", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("fields", "text", "parameter"),
    [
        ({}, "", ""),
        (
            {"response_format": {"type": "json_object"}},
            grammar.of_json_schema({"type": "object"}),
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED | {"strict": True}}},
            grammar.of_json_schema(SCHEMA),
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED}},
            grammar.of_json_schema(SCHEMA, lenient=True),
            "response_format",
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            grammar.of_json_schema(SCHEMA),
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            grammar.of_json_schema(SCHEMA),
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            grammar.of_json_schema({"type": "object"}),
            "structured_outputs",
        ),
        ({"structured_outputs": {"regex": "a+"}}, grammar.of_regex("a+"), "structured_outputs"),
        (
            {"structured_outputs": {"choice": ["a", "b"], "regex": ""}},
            grammar.of_choice(["a", "b"]),
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            grammar.of_lark('start: "a"'),
            "structured_outputs",
        ),
    ],
)
def test_what_asks_for_a_form_becomes_a_grammar(
    fields: dict[str, Any], text: str, parameter: str
) -> None:
    assert structure_of(fields) == (text, parameter)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": NAMED}},
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED | {"wrong": 1}}},
            "response_format.json_schema.wrong",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "["}}, "structured_outputs.json"),
        (
            {"structured_outputs": {"json": {"properties": {f"p{n}": {} for n in range(401)}}}},
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
        (
            {
                "response_format": {"type": "json_object"},
                "structured_outputs": {"regex": "a"},
            },
            "structured_outputs",
        ),
    ],
)
def test_a_form_that_cannot_be_is_refused_by_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        structure_of(fields)
    assert refused.value.field == field


def test_both_apis_take_a_form() -> None:
    form = {"response_format": {"type": "json_object"}}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    wanted = grammar.of_json_schema({"type": "object"})
    assert parse_chat({**chat, **form}).ask.grammar == wanted
    assert parse_completion({"model": "m", "prompt": "hi", **form}).ask.grammar == wanted


@pytest.mark.parametrize("beside", [{"min_tokens": 3}, {"ignore_eos": True}])
def test_what_forbids_an_end_cannot_stand_beside_a_form(beside: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "hi", "structured_outputs": {"regex": "a"}, **beside}
    with pytest.raises(InvalidArgument) as refused:
        parse_completion(body).ask.check(max_choices=1)
    assert refused.value.field in beside


def test_a_form_has_a_length() -> None:
    body = {"model": "m", "prompt": "hi", "structured_outputs": {"regex": "a" * (1 << 18)}}
    with pytest.raises(InvalidArgument, match="at most 131072") as refused:
        parse_completion(body).ask.check(max_choices=1)
    assert refused.value.field == "structured_outputs"
