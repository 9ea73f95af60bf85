"""Schemas and grammars made to cost much: each is refused, or compiled for what a long one costs.

Nothing is measured in seconds here: the longest literal that is taken is the measure. It takes
about 0.2 s of a core.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.common.wire import MAX_GRAMMAR_CHARS
from services.model import grammar
from services.model.grammar import MAX_ITEMS, Grammars
from tests.unit.model.test_grammar import END, SIZE, TOKENIZER

LITERAL = "x" * (MAX_GRAMMAR_CHARS - 1000)
MOST_KIB = 64 << 10
OVER = 3
"""Times the measure: what one core does beside it varies."""


def _array(**more: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, **more}


SCHEMAS: dict[str, Any] = {
    "a bogus type": {"type": "wrong"},
    "itself": {"$ref": "#"},
    "one another": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "itself in fifty places": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {
                "type": "object",
                "properties": {f"p{i}": {"$ref": "#/$defs/a"} for i in range(50)},
            }
        },
    },
    "a pattern that backtracks elsewhere": {"type": "string", "pattern": "^(a+)+$"},
    "a pattern of many counts": {"type": "string", "pattern": "^(a|aa)*(b{1,300}){1,300}$"},
    "ten thousand values": {"enum": [f"v{i}" for i in range(10_000)]},
    "two thousand alternatives": {
        "anyOf": [{"type": "object", "properties": {f"a{i}": {"const": i}}} for i in range(2000)]
    },
    "a product of alternatives": {"allOf": [{"anyOf": [{"minimum": n}] * 9} for n in range(14)]},
    "a thousand million entries": _array(maxItems=10**9),
    "a million entries": _array(minItems=10**6),
    "entries in many arrays": {
        "type": "object",
        "properties": {f"p{i}": _array(minItems=MAX_ITEMS // 10) for i in range(11)},
    },
    "a long text": {"type": "string", "minLength": 10**6, "maxLength": 10**7},
    "hundreds of kinds of names": {
        "type": "object",
        "patternProperties": {f"^k{n}.*$": {"type": "integer"} for n in range(300)},
    },
    "a long value": {"const": LITERAL},
}
OTHERS: dict[str, Callable[[], str]] = {
    "an expression of nested counts": lambda: grammar.of_regex("((a{1,100}){1,100}){1,100}"),
    "a million times": lambda: grammar.of_regex("a{1000000}"),
    "many words": lambda: grammar.of_regex("|".join(f"w{i}" for i in range(15_000))),
    "twice itself": lambda: grammar.of_lark('start: s\ns: s s | "a"'),
    "deep": lambda: grammar.of_lark("start: " + "(" * 2000 + '"a"' + ")" * 2000),
    "doubled two thousand times": lambda: grammar.of_lark(
        "\n".join(["start: r0", *(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(2000))])
        + '\nr2000: "b"'
    ),
    "many choices": lambda: grammar.of_choice([f"c{i}" for i in range(10_000)]),
}
MADE = {
    **{name: lambda s=schema: grammar.of_json_schema(s) for name, schema in SCHEMAS.items()},
    **OTHERS,
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER.to_str(), SIZE, (END,))


def _cost(grammars: Grammars, make: Callable[[], str]) -> float:
    """Seconds of a core."""
    began_s = time.thread_time()
    with contextlib.suppress(InvalidArgument):
        text = make()
        if len(text) <= MAX_GRAMMAR_CHARS:
            grammars.check(text)
    return time.thread_time() - began_s


@pytest.fixture(scope="module")
def measure(grammars: Grammars) -> float:
    return max(_cost(grammars, lambda: grammar.of_regex(LITERAL)) for _ in range(2))


@pytest.mark.group(22)
@pytest.mark.parametrize("name", MADE)
def test_what_is_made_to_cost_much_costs_no_more_than_a_long_one(
    grammars: Grammars, measure: float, name: str
) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _cost(grammars, MADE[name]) <= OVER * measure
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib <= MOST_KIB


@pytest.mark.parametrize("name", ["minItems", "maxItems"])
def test_entries_of_arrays_are_counted_together_and_named(name: str) -> None:
    half = _array(**{name: MAX_ITEMS // 2})
    grammar.of_json_schema({"type": "object", "properties": {"a": half, "b": half}})
    three = {"type": "object", "properties": {"a": half, "b": half, "c": _array(minItems=1)}}
    with pytest.raises(InvalidArgument, match=f"{MAX_ITEMS} entries at most"):
        grammar.of_json_schema(three, "f")
    grammar.of_json_schema({"enum": [{name: 10**9}]})


def test_the_hopeless_expression_is_taken(grammars: Grammars) -> None:
    grammars.check(grammar.of_regex("(a+)+$"))
