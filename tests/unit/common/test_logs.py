from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from services.common import logs
from services.common.logs import JsonFormatter, Thinning


def _render(message: str, **extra: object) -> str:
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, message, (), None, extra=extra
    )
    return JsonFormatter("router").format(record)


@pytest.mark.group(31)
def test_a_record_is_one_json_line_whatever_its_fields_hold() -> None:
    line = _render("first\r\nsecond", generation_id="a\nb")
    assert "\n" not in line
    assert json.loads(line)["generation_id"] == "a\nb"


def test_a_field_is_cut_at_a_limit() -> None:
    assert len(json.loads(_render("m", peer="x" * 100_000))["peer"]) == 500


def test_numbers_stay_numbers() -> None:
    assert json.loads(_render("m", epoch=3))["epoch"] == 3


async def test_lines_of_a_request_carry_its_ids_and_others_do_not() -> None:
    async def serve(name: str) -> str:
        logs.about(request_id=name)
        await asyncio.sleep(0)
        logs.about(generation_id=f"g-{name}")
        return await asyncio.create_task(line())

    async def line() -> str:
        return _render("m")

    lines = [json.loads(text) for text in await asyncio.gather(serve("a"), serve("b"))]
    assert [(line["request_id"], line["generation_id"]) for line in lines] == [
        ("a", "g-a"),
        ("b", "g-b"),
    ]
    assert "request_id" not in json.loads(_render("m"))


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "a\r\nb", 'a"b', "ü", "<script>"])
def test_an_id_that_may_not_stand_in_a_header_is_replaced(value: str) -> None:
    made = logs.request_id_from(value)
    assert made != value
    assert logs.request_id_from(made) == made


def _record(message: str, name: str = "x") -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, logging.INFO, "f", 1, message, (), None)


def test_a_storm_of_one_kind_is_thinned_out_and_counted() -> None:
    now = [0.0]
    thinning = Thinning(lambda: now[0])
    passed = [thinning.filter(_record("epoch granted")) for _ in range(10_000)]
    assert sum(passed) == logs.BURST_LINES
    assert thinning.filter(_record("something else"))
    now[0] += 1.0
    again = [_record("epoch granted") for _ in range(100)]
    told = [record for record in again if thinning.filter(record)]
    assert len(told) == logs.LINES_PER_S
    assert vars(told[0])["lines_left_out"] == 10_000 - logs.BURST_LINES


def test_access_lines_are_never_thinned_out() -> None:
    thinning = Thinning(lambda: 0.0)
    assert all(thinning.filter(_record("request", logs.access.name)) for _ in range(1_000))


def test_kinds_that_are_remembered_have_a_limit() -> None:
    thinning = Thinning(lambda: 0.0)
    for number in range(3 * logs.MAX_KINDS):
        thinning.filter(_record(f"kind {number}"))
    assert len(thinning._kinds) == logs.MAX_KINDS


WRITER = """
import logging, sys
from services.common import logs
logs.configure("router", "INFO")
for number in range(int(sys.argv[1])):
    logs.access.info("request", extra={"number": number})
sys.stderr.write("behind the last\\n")
"""


def test_a_log_file_is_bounded_over_restarts_and_loses_no_newer_line(tmp_path: Path) -> None:
    path, limit = tmp_path / "router-0.log", 20_000
    for _ in range(3):
        with path.open("ab") as log:
            subprocess.run(
                [sys.executable, "-c", WRITER, "200"],
                env={logs.FILE_LIMIT_VARIABLE: str(limit), "PYTHONPATH": ":".join(sys.path)},
                stderr=log,
                check=True,
            )
    older = tmp_path / "router-0.1.log"
    assert sorted(tmp_path.iterdir()) == [older, path]
    assert max(older.stat().st_size, path.stat().st_size) < limit + 1_000
    text = older.read_text() + path.read_text()
    numbers = [json.loads(line)["number"] for line in text.splitlines() if line.startswith("{")]
    behind = numbers[-100:]
    assert behind == list(range(100, 200))
    assert text.endswith("behind the last\n")
