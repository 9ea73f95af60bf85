from __future__ import annotations

import json
import logging

from services.common.logs import JsonFormatter


def _render(message: str, **extra: object) -> str:
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, message, (), None, extra=extra
    )
    return JsonFormatter("router").format(record)


def test_a_record_is_one_json_line_whatever_its_fields_hold() -> None:
    line = _render("first\r\nsecond", generation_id="a\nb")
    assert "\n" not in line
    assert json.loads(line)["generation_id"] == "a\nb"


def test_a_field_is_cut_at_a_limit() -> None:
    assert len(json.loads(_render("m", peer="x" * 100_000))["peer"]) == 500


def test_numbers_stay_numbers() -> None:
    assert json.loads(_render("m", epoch=3))["epoch"] == 3
