from __future__ import annotations

import re

import pytest

from services.common.errors import InvalidArgument
from services.router.deadlines import HEADER, MAX_MS, PATTERN, deadline_from


@pytest.mark.parametrize(
    ("text", "deadline_s"),
    [("", None), ("1", 0.001), (" 2500 ", 2.5), (str(MAX_MS), 3600.0)],
)
def test_a_deadline_is_a_number_of_milliseconds(text: str, deadline_s: float | None) -> None:
    assert deadline_from(text) == deadline_s


@pytest.mark.parametrize(
    "text", ["0", "0004000", "-5", "1.5", "1e3", "soon", str(MAX_MS + 1), "9" * 5000, "٣"]
)
def test_anything_else_is_refused_with_its_name_and_limits(text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{HEADER} .* 1 to {MAX_MS}") as refused:
        deadline_from(text)
    assert refused.value.field == HEADER


@pytest.mark.parametrize(
    "number", [0, 1, 999_999, 1_000_000, 3_599_999, MAX_MS, MAX_MS + 1, 4_000_000]
)
def test_the_pattern_is_what_is_taken(number: int) -> None:
    assert (re.fullmatch(PATTERN, str(number)) is not None) == (1 <= number <= MAX_MS)
