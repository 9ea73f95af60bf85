from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.router.http.json_body import MAX_BRACKETS, MAX_DEPTH, MAX_KEYS, parse_object, shown

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_plain_objects_come_back_as_they_are(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_typed_error(body: bytes) -> None:
    try:
        value: object = parse_object(body)
    except InvalidArgument:
        value = {}
    assert isinstance(value, dict)


def test_depth_and_keys_have_limits_that_hold_exactly() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 2) + b"1" + b"]" * (depth - 2) + b"}"

    parse_object(nested(MAX_DEPTH))
    with pytest.raises(InvalidArgument):
        parse_object(nested(MAX_DEPTH + 1))
    parse_object(json.dumps({str(i): 0 for i in range(MAX_KEYS)}).encode())
    with pytest.raises(InvalidArgument):
        parse_object(json.dumps({str(i): 0 for i in range(MAX_KEYS + 1)}).encode())


@pytest.mark.parametrize("empty", ["[]", "{}"])
def test_empty_containers_have_a_limit_too(empty: str) -> None:
    def holding(count: int) -> bytes:
        return f'{{"a":[{",".join([empty] * count)}]}}'.encode()

    parse_object(holding(MAX_BRACKETS - 2))
    with pytest.raises(InvalidArgument):
        parse_object(holding(MAX_BRACKETS - 1))


def test_an_echo_is_short() -> None:
    assert len(shown("x" * 10_000)) < 60
    assert [shown(value) for value in ({"a": 1}, {}, [1], [], None, True)] == [
        "an object",
        "an empty object",
        "an array",
        "an empty array",
        "null",
        "true",
    ]
