from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from services.common.errors import InvalidArgument
from services.model import grammar
from services.model.grammar import Grammars, LateGrammars, Stuck
from tests.tiny_model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
OTHER_END = TOKENIZER.token_to_id("<|endoftext|>")
SIZE = 320
"""Over the tokenizer's, as where a vocabulary is rounded up."""


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER.to_str(), SIZE, (END, OTHER_END))


def drawn(grammars: Grammars, text: str, seed: int, most: int = 400) -> list[int]:
    """Ids that logits by chance lead to, up to the end; what would close is a little likelier."""
    rng, guide, ids = np.random.default_rng(seed), grammars.begin(text), []
    closing = [TOKENIZER.token_to_id(c) for c in ('"', "}", "]", "1")]
    while len(ids) < most:
        logits = rng.normal(size=SIZE).astype(np.float32)
        logits[closing] += 4
        logits[[END, OTHER_END]] += 9
        ids.append(int(guide.allowed(logits).argmax()))
        if ids[-1] in (END, OTHER_END):
            return ids
        guide.take(ids[-1:])
    return ids


def _point(found: Any) -> bool:
    return list(found) == ["x", "y"] and all(type(found[key]) is int for key in found)


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
SCHEMAS: list[tuple[Any, Callable[[Any], bool]]] = [
    (POINT, _point),
    ({"type": "object"}, lambda found: isinstance(found, dict)),
    ({"type": "boolean"}, lambda found: type(found) is bool),
    ({"type": "null"}, lambda found: found is None),
    ({"type": "integer", "minimum": 3, "maximum": 12}, lambda found: 3 <= found <= 12),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, lambda found: 0 < found <= 1),
    ({"enum": ["red", "green", 7, None]}, lambda found: found in ("red", "green", 7, None)),
    ({"const": {"a": [1]}}, lambda found: found == {"a": [1]}),
    ({"type": "string", "maxLength": 5}, lambda found: len(found) <= 5),
    ({"type": "string", "pattern": "^[a-c]{2,4}$"}, lambda found: set(found) <= set("abc")),
    ({"type": "string", "format": "date"}, lambda found: len(found) == 10 and found[4] == "-"),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        lambda found: 2 <= len(found) <= 4 and all(type(each) is bool for each in found),
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False},
        lambda found: found in ([], [1], [1, None]),
    ),
    ({"anyOf": [{"const": "a"}, POINT]}, lambda found: found == "a" or _point(found)),
    ({"oneOf": [{"const": 1}, {"const": "one"}]}, lambda found: found in (1, "one")),
    (
        {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]},
        lambda found: 2 <= found <= 4,
    ),
    (
        {"$defs": {"p": POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 2},
        lambda found: len(found) <= 2 and all(map(_point, found)),
    ),
    (
        {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"left": {"$ref": "#/$defs/tree"}},
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/tree",
        },
        lambda found: set(found) <= {"left"},
    ),
    (
        {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
        lambda found: all(type(each) is bool for each in found.values()),
    ),
    ({"type": ["boolean", "null"]}, lambda found: found in (True, False, None)),
    (
        {"type": "object", "patternProperties": {"^k[0-9]$": {"const": 1}}, "maxProperties": 1}
        | {"additionalProperties": False},
        lambda found: all(key[0] == "k" and found[key] == 1 for key in found),
    ),
]


@pytest.mark.parametrize(("schema", "follows"), SCHEMAS, ids=range(len(SCHEMAS)))
def test_whatever_is_drawn_follows_its_schema(
    grammars: Grammars, schema: Any, follows: Callable[[Any], bool]
) -> None:
    text = grammar.of_json_schema(schema)
    grammars.check(text)
    ended = 0
    for seed in range(8):
        ids = drawn(grammars, text, seed)
        if ids[-1] in (END, OTHER_END):
            found = TOKENIZER.decode(ids[:-1])
            assert follows(json.loads(found)), found
            ended += 1
    assert ended


@pytest.mark.parametrize("schema", [schema for schema, _ in SCHEMAS], ids=range(len(SCHEMAS)))
def test_behind_any_ids_the_same_may_follow_however_one_came_there(
    grammars: Grammars, schema: Any
) -> None:
    text = grammar.of_json_schema(schema)
    ids = drawn(grammars, text, 3, most=80)
    live, flat = grammars.begin(text), np.zeros(SIZE, np.float32)
    for cut, token_id in enumerate(ids):
        resumed = grammars.begin(text)
        resumed.take(ids[:cut])
        assert np.array_equal(live.allowed(flat), resumed.allowed(flat))
        live.take([token_id])


def test_what_is_found_ahead_for_many_is_what_each_finds_alone(grammars: Grammars) -> None:
    texts = [grammar.of_json_schema(schema) for schema, _ in SCHEMAS]
    spoken = [drawn(grammars, text, 5, most=40) for text in texts]
    ahead, alone = ([grammars.begin(text) for text in texts] for _ in range(2))
    chance = np.random.default_rng(2)
    for position in range(40):
        grammars.look_ahead(ahead)
        grammars.look_ahead(ahead)  # of places that it is sought for already
        for first, second, ids in zip(ahead, alone, spoken, strict=True):
            logits = chance.normal(size=SIZE).astype(np.float32)
            for _ in range(2):
                assert np.array_equal(first.allowed(logits), second.allowed(logits))
            for guide in (first, second):
                guide.take(ids[position : position + 1])


def test_who_goes_on_or_leaves_while_it_is_sought_what_may_follow_harms_nobody(
    grammars: Grammars,
) -> None:
    text, flat = grammar.of_json_schema(POINT), np.zeros(SIZE, np.float32)
    ids = drawn(grammars, text, 3)[:8]
    going = grammars.begin(text)
    for token_id in ids:
        grammars.look_ahead([going, *(grammars.begin(text) for _ in range(20))])
        going.take([token_id])
    behind = grammars.begin(text)
    behind.take(ids)
    assert np.array_equal(going.allowed(flat), behind.allowed(flat))


def test_ahead_too_who_is_stuck_is_stuck_alone(grammars: Grammars) -> None:
    stuck, free = (grammars.begin(grammar.of_regex("[ab]+")) for _ in range(2))
    stuck.take(TOKENIZER.encode("x").ids)
    grammars.look_ahead([stuck, free, grammars.begin("{")])
    with pytest.raises(Stuck):
        stuck.allowed(np.zeros(SIZE, np.float32))
    assert np.isfinite(free.allowed(np.zeros(SIZE, np.float32))).any()


def test_what_may_not_follow_does_not_though_it_were_no_number(grammars: Grammars) -> None:
    logits = np.full(SIZE, np.nan, np.float32)
    logits[TOKENIZER.token_to_id("a")] = -3
    masked = grammars.begin(grammar.of_regex("a")).allowed(logits)
    assert masked[TOKENIZER.token_to_id("a")] == -3
    assert np.isneginf(masked).sum() == SIZE - 1


def allowed(grammars: Grammars, text: str, said: str = "") -> set[str]:
    guide = grammars.begin(text)
    guide.take(TOKENIZER.encode(said).ids)
    may = np.isfinite(guide.allowed(np.zeros(SIZE, np.float32)))
    return {TOKENIZER.id_to_token(int(each)) for each in np.flatnonzero(may)}


def test_choices_expressions_and_grammars_say_what_may_follow(grammars: Grammars) -> None:
    either = grammar.of_choice(["Paris", 'a "b"\n'])
    assert allowed(grammars, either) == {"P", "Pa", "a"}
    assert allowed(grammars, either, "Paris") == {"<|im_end|>", "<|endoftext|>"}
    assert allowed(grammars, either, 'a "') == {"b"}
    assert allowed(grammars, grammar.of_regex("[ab]{2}"), "a") == {"a", "b"}
    lark = grammar.of_lark('start: "x" tail\ntail: /[0-9]+/')
    assert allowed(grammars, lark, "x1") >= {"0", "9", "<|im_end|>"}


def test_only_the_ids_of_the_model_may_follow(grammars: Grammars) -> None:
    guide = grammars.begin(grammar.of_regex("(.|\n)*"))
    may = np.isfinite(guide.allowed(np.zeros(SIZE, np.float32)))
    assert len(may) == SIZE
    assert not may[TOKENIZER.get_vocab_size() :].any()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}, "then": {}}, "if"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "not present"),
        ({"type": "wrong"}, "wrong"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"allOf": [{"type": "null"}, {"type": "integer"}]}, "incompatible types"),
        (False, "object schema"),
    ],
)
@pytest.mark.group(22)
def test_a_schema_that_cannot_be_followed_is_refused_by_what_is_in_the_way(
    grammars: Grammars, schema: Any, named: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        grammars.check(grammar.of_json_schema(schema))
    assert named in refused.value.message
    assert refused.value.field == "grammar"


def test_what_is_not_strict_overlooks_what_it_cannot_follow(grammars: Grammars) -> None:
    grammars.check(grammar.of_json_schema({"not": {}, "type": "null"}, lenient=True))


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE = {
    "a name for each of 3,000 properties that may be left out": {
        "type": "object",
        "properties": {f"p{n}": {"type": "integer"} for n in range(3000)},
    },
    "alternatives of alternatives": {"allOf": [{"anyOf": [{"minimum": n}] * 9} for n in range(14)]},
    "deep": nested(400),
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.group(22)
def test_what_costs_too_much_is_refused_and_not_worked_at(grammars: Grammars, schema: Any) -> None:
    with pytest.raises(InvalidArgument):
        grammars.check(grammar.of_json_schema(schema))


@pytest.mark.group(23)
def test_many_schemas_leave_nothing_behind(grammars: Grammars) -> None:
    def check(numbers: range) -> None:
        for number in numbers:
            schema = {"type": "object", "properties": {f"p{number}": {"const": number}}}
            grammars.check(grammar.of_json_schema(schema))

    check(range(100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(range(100, 400))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_behind_what_it_does_not_let_follow_a_guide_is_stuck(grammars: Grammars) -> None:
    guide = grammars.begin(grammar.of_regex("[ab]+"))
    guide.take(TOKENIZER.encode("axa").ids)
    for _ in range(2):
        with pytest.raises(Stuck):
            guide.allowed(np.zeros(SIZE, np.float32))
    unreadable = grammars.begin("{")
    with pytest.raises(Stuck):
        unreadable.allowed(np.zeros(SIZE, np.float32))


def test_a_tokenizer_that_cannot_be_read_is_said(grammars: Grammars) -> None:
    with pytest.raises(InvalidArgument, match="the tokenizer cannot be read"):
        Grammars("{}", SIZE, (END,))


def test_they_are_made_once_and_a_failure_shows_when_they_are_asked_for() -> None:
    made: list[Grammars] = []

    def make() -> Grammars:
        made.append(Grammars(TOKENIZER.to_str(), SIZE, (END,)))
        return made[-1]

    late = LateGrammars(make)
    late.warm(0.0)
    assert late.begin(grammar.of_regex("a")) is not None
    assert late.begin(grammar.of_regex("a")) is not None
    assert len(made) == 1

    def fail() -> Grammars:
        raise InvalidArgument("no tokenizer", field="grammar")

    late = LateGrammars(fail)
    late.warm(0.0)
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        late.begin("")


def test_random_ids_never_break_a_guide(grammars: Grammars) -> None:
    rng = random.Random(5)
    for _ in range(200):
        guide = grammars.begin(grammar.of_json_schema(POINT))
        guide.take([rng.randrange(SIZE) for _ in range(rng.randrange(4))])
        try:
            guide.allowed(np.zeros(SIZE, np.float32))
        except Stuck:
            continue
