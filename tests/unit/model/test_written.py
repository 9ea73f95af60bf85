"""A text that knows what the template wrote: as str in everything, and never too sure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.written import Written, origin_of, written, written_as

# What a template writes is upper case here, what a message says is lower case.
TEXTS = st.text("AbC d\n<", max_size=12)


def _mixed(text: str) -> Written:
    return written("").join(
        written(character) if character.isupper() else character for character in text
    )


def _check(made: Any, expected: Any) -> None:
    """Equal, and nothing a message said counts as written."""
    assert made == expected
    parts = [made] if isinstance(made, str) else made
    for part in parts:
        for character, origin in zip(part, origin_of(part), strict=True):
            assert not (origin and character.islower())


OPERATIONS: list[Callable[[str, str], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a * 3,
    lambda a, b: a[1:-1],
    lambda a, b: a[::-1],
    lambda a, b: a[-1:] + a[:2],
    lambda a, b: a.strip(),
    lambda a, b: a.lstrip("A\n"),
    lambda a, b: a.rstrip("d "),
    lambda a, b: a.split(),
    lambda a, b: a.split("b"),
    lambda a, b: a.split(None, 1),
    lambda a, b: a.rsplit("C", 1),
    lambda a, b: a.rsplit(None, 1),
    lambda a, b: a.splitlines(),
    lambda a, b: a.splitlines(keepends=True),
    lambda a, b: a.partition("C"),
    lambda a, b: a.rpartition("b"),
    lambda a, b: a.replace("b", b),
    lambda a, b: a.replace("", b, 2),
    lambda a, b: a.replace("AA", "", 1),
    lambda a, b: a.join([b, a, b]),
    lambda a, b: a.removeprefix("A").removesuffix("d"),
    lambda a, b: list(a),
    lambda a, b: a.center(20),
    lambda a, b: a.zfill(9),
]


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
@given(first=TEXTS, second=TEXTS)
def test_every_operation_is_strs_and_trusts_no_message(
    operation: int, first: str, second: str
) -> None:
    expected = OPERATIONS[operation](first, second)
    for left, right in ((_mixed(first), _mixed(second)), (_mixed(first), second)):
        _check(OPERATIONS[operation](left, right), expected)
    _check(OPERATIONS[operation](written_as(first), _mixed(second)), expected)


@given(TEXTS, TEXTS)
def test_what_the_template_wrote_stays_known(first: str, second: str) -> None:
    made = second + _mixed(first).strip() + second
    inner = first.strip()
    known = origin_of(made)[len(second) : len(second) + len(inner)]
    assert [bool(origin) for origin in known] == [c.isupper() for c in inner]
    assert origin_of(written("AB").lower()) == b"\1\1"
