from __future__ import annotations

import json
from typing import Any

import pytest

from bench import kinds_asked
from bench.kinds_answers import Answer
from bench.kinds_models import SCHEMAS, SORTS

ARGUMENTS = json.dumps({"place": "Oslo", "days": ["mon"] * 9})


def answer(*deltas: dict[str, Any], finish_reason: str = "stop") -> Answer:
    """As its events bring it."""
    made = Answer()
    for delta in deltas:
        made.take({"choices": [{"index": 0, "delta": delta}]})
    made.take({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    return made


def call(arguments: str, call_id: str = "c", index: int = 0) -> dict[str, Any]:
    function = {"name": "tides", "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": call_id, "function": function}]}


def piece(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}, **more}]}


def test_pieces_are_one_answer_however_they_come() -> None:
    at_once = answer({"content": "abc"}, call(ARGUMENTS))
    in_pieces = answer(
        {"content": "a"}, {"content": "bc"}, call(ARGUMENTS[:5]), piece(ARGUMENTS[5:])
    )
    assert in_pieces.what == at_once.what
    assert in_pieces.one_id_a_call
    assert answer({"content": "ab"}, call(ARGUMENTS)).what != at_once.what
    assert not answer(call(ARGUMENTS[:5]), piece(ARGUMENTS[5:], id="d")).one_id_a_call


@pytest.mark.parametrize(
    ("arguments", "finish_reason", "holds"),
    [
        (ARGUMENTS, "stop", True),
        (ARGUMENTS[:-1], "stop", False),
        (ARGUMENTS.replace("mon", "fri"), "stop", False),
        (ARGUMENTS[:-1], "length", False),
    ],
)
def test_arguments_are_judged_by_their_schema(
    arguments: str, finish_reason: str, holds: bool
) -> None:
    kind = kinds_asked.plain(1)["tool, required"]
    assert kind.holds(answer(call(arguments), finish_reason=finish_reason)) is holds
    cut = answer(call(ARGUMENTS), call(arguments, "d", 1), finish_reason="length")
    assert kind.holds(cut), "but for the last call of what came to its limit"


def test_a_text_is_judged_by_its_schema() -> None:
    kind = kinds_asked.plain(1)["structured"]
    names = ["owl"] * 12
    assert kind.holds(answer({"content": json.dumps({"names": names})}))
    assert not kind.holds(answer({"content": json.dumps({"names": names[1:]})}))
    assert not kind.holds(answer({"content": '{"names": ["owl"'}))


def test_every_kind_is_asked_for() -> None:
    assert len(SCHEMAS) == 20
    assert len(SORTS["plain"].kinds) == 8 + 20 + 5
    forms = {name for name, sort in SORTS.items() if "tools, beside one another" in sort.kinds}
    assert forms == {"hermes", "llama", "mistral", "mistral, arguments apart"}
