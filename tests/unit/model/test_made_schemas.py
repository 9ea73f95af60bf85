"""Hundreds of schemas: each is followed, or refused by what is in the way."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from services.common.errors import InvalidArgument
from services.model import grammar
from services.model.grammar import Grammars
from tests import made_schemas
from tests.tiny_model import tiny_tokenizer

MADE, REFUSED, WALKS, MOST_IDS = 300, 44, 2, 240
TOKENIZER = tiny_tokenizer()
SIZE = TOKENIZER.get_vocab_size()
END = TOKENIZER.token_to_id("<|im_end|>")
CLOSING = [TOKENIZER.token_to_id(sign) for sign in '"}]']


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER.to_str(), SIZE, (END,))


def walked(grammars: Grammars, text: str, seed: int) -> str | None:
    """What chance says under the mask; None where it comes to no end."""
    chance, guide, ids = np.random.default_rng(seed), grammars.begin(text), []
    while len(ids) < MOST_IDS:
        logits = chance.normal(size=SIZE).astype(np.float32)
        logits[CLOSING] += 2
        logits[END] += 9
        token_id = int(guide.allowed(logits).argmax())
        if token_id == END:
            return str(TOKENIZER.decode(ids))
        guide.take([token_id])
        ids.append(token_id)
    return None


@pytest.mark.parametrize("tens", range(MADE // 10))
def test_what_is_said_under_a_schema_is_valid(grammars: Grammars, tens: int) -> None:
    ended = 0
    for number in range(10 * tens, 10 * tens + 10):
        schema = made_schemas.made(number)
        text = grammar.of_json_schema(schema)
        grammars.check(text)
        checker = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker(["date", "ipv4", "email"])
        )
        for walk in range(WALKS):
            said = walked(grammars, text, walk)
            if said is not None:
                checker.validate(json.loads(said))
                ended += 1
    assert ended >= 10 * WALKS // 2


@pytest.mark.parametrize("schema", [*made_schemas.recursive()], ids=["list", "tree"])
def test_a_schema_that_holds_itself_is_followed(
    grammars: Grammars, schema: made_schemas.Schema
) -> None:
    said = [walked(grammars, grammar.of_json_schema(schema), seed) for seed in range(8)]
    found = [json.loads(text) for text in said if text is not None]
    assert found
    for document in found:
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("number", range(REFUSED))
def test_what_cannot_be_followed_is_refused_by_name(grammars: Grammars, number: int) -> None:
    named, schema = made_schemas.refused(number)
    with pytest.raises(InvalidArgument) as refused:
        grammars.check(grammar.of_json_schema(schema))
    message = refused.value.message
    assert named in message or (named == "$ref" and "schemas.example" in message)
