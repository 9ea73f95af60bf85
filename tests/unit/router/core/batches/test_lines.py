"""Lines of input files: cut, read, judged; and lines of results."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.batches import lines as lines_module
from services.router.core.batches.lines import (
    Inspection,
    Line,
    LineCutter,
    LineFault,
    generation_id_of,
    line_of,
    response_line,
    unanswered_line,
)

ENDPOINT = "/v1/chat/completions"


def written(custom_id: Any = "a", **changed: Any) -> bytes:
    fields = {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": {"model": "m"},
        **changed,
    }
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json_line", ""),
        (b'{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", ""),
        (written(...), "missing_required_parameter", "custom_id"),
        (written(""), "invalid_value", "custom_id"),
        (written("x" * 513), "invalid_value", "custom_id"),
        (written(7), "invalid_value", "custom_id"),
        (written(method="GET"), "invalid_method", "method"),
        (written(url="/v1/completions"), "mismatched_url", "url"),
        (written(url=["/v1/completions"]), "mismatched_url", "url"),
        (written(body=...), "missing_required_parameter", "body"),
        (written(priority=1), "unknown_parameter", "priority"),
    ],
)
def test_a_line_that_cannot_be_asked_says_why(data: bytes, code: str, param: str) -> None:
    with pytest.raises(LineFault) as fault:
        line_of(0, data, ENDPOINT)
    assert (fault.value.code, fault.value.field) == (code, param)


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (written("a"), "duplicate_custom_id"),
        (written("b", body={"model": "other"}), "mismatched_model"),
        (written("b", body={}), "missing_required_parameter"),
        (written("b", body={"model": "m", "stream": True}), "invalid_value"),
    ],
)
def test_a_line_is_judged_by_those_before_it(second: bytes, code: str) -> None:
    inspection = Inspection(ENDPOINT)
    inspection.look_at(written("a"))
    inspection.look_at(second)
    inspection.look_at(written("c"))
    inspection.end()
    assert [(fault.code, fault.line) for fault in inspection.faults] == [(code, 2)]


def test_a_file_has_a_line_and_no_more_than_fifty_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lines_module.MAX_LINES == 50_000
    monkeypatch.setattr(lines_module, "MAX_LINES", 5)
    empty, full = Inspection(ENDPOINT), Inspection(ENDPOINT)
    empty.end()
    assert [fault.code for fault in empty.faults] == ["empty_file"]
    for number in range(5):
        full.look_at(written(str(number)))
    assert not full.faults
    for number in range(5, 8):
        full.look_at(written(str(number)))
    assert [(fault.code, fault.line) for fault in full.faults] == [("too_many_tasks", 6)]


@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=20),
    cuts=st.lists(st.integers(0, 200), max_size=10),
    ended=st.booleans(),
)
def test_lines_are_the_same_however_their_bytes_come(
    lines: list[bytes], cuts: list[int], ended: bool
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    cutter, found = LineCutter(100), []
    for start, stop in itertools.pairwise(edges):
        found += list(cutter.lines(data[start:stop]))
    found += list(cutter.last())
    assert found == list(enumerate(line for line in lines if line.strip()))


def test_a_line_without_end_is_not_held() -> None:
    cutter = LineCutter(10)
    assert list(cutter.lines(b"123\n456")) == [(0, b"123")]
    with pytest.raises(LineFault, match="line 2 has over 10 bytes"):
        list(cutter.lines(b"7" * 10))


def test_results_are_lines_of_json_as_the_api_has_them() -> None:
    line = Line(3, 'a"\n…', {})
    answered = response_line("batch_f", line, 200, "batch_req_f00003", b'{"choices":[]}')
    assert answered.count(b"\n") == 1
    assert json.loads(answered) == {
        "id": "batch_req_f00003",
        "custom_id": 'a"\n…',
        "response": {
            "status_code": 200,
            "request_id": "batch_req_f00003",
            "body": {"choices": []},
        },
        "error": None,
    }
    expired = json.loads(unanswered_line("batch_f", line, "batch_expired", "too late"))
    assert expired["response"] is None
    assert expired["error"] == {"code": "batch_expired", "message": "too late"}


def test_each_line_of_each_batch_has_a_generation_of_its_own() -> None:
    names = {generation_id_of(f"batch_{batch:024x}", n) for batch in range(50) for n in range(50)}
    assert len(names) == 2500
