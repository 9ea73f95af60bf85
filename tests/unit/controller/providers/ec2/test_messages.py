from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.providers.ec2.messages import (
    MAX_BODY_CHARS,
    MAX_REMEMBERED,
    NOTICE_S,
    Heard,
    Message,
    Said,
    read,
)

AT = "2026-11-27T02:00:00Z"
AT_S = 1795744800.0


def body(detail_type: str = "EC2 Spot Instance Interruption Warning", **more: Any) -> str:
    event = {
        "version": "0",
        "id": "e-1",
        "detail-type": detail_type,
        "source": "aws.ec2",
        "time": AT,
        "detail": {"instance-id": "i-1", "instance-action": "terminate"},
    }
    return json.dumps({**event, **more})


def test_a_warning_names_when_the_instance_ends() -> None:
    assert read(body()) == Message("e-1", Said.INTERRUPTION, "i-1", AT_S + NOTICE_S)


def test_a_reservations_warning_has_its_own_end() -> None:
    detail = {"instance-id": "i-1", "instance-termination-time": "2026-11-27T02:01:00Z"}
    kind = "EC2 Capacity Reservation Instance Interruption Warning"
    message = read(body(kind, detail=detail))
    assert message == Message("e-1", Said.INTERRUPTION, "i-1", AT_S + 60)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("EC2 Instance Rebalance Recommendation", Said.REBALANCE),
        ("EC2 Instance State-change Notification", Said.STATE),
    ],
)
def test_the_others_say_when_they_were_said(kind: str, said: Said) -> None:
    assert read(body(kind)) == Message("e-1", said, "i-1", AT_S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        body(source="my.app"),
        body("EC2 Instance Launch Successful"),
        body(detail=None),
        body(detail=["instance-id"]),
        body(detail={"instance-id": 7}),
        body(detail={"instance-id": ""}),
        body(id=None),
        body(time="yesterday"),
        body(time="0001-01-01T00:00:00Z"),
        body(time=3),
        body(padding="x" * MAX_BODY_CHARS),
    ],
)
def test_what_makes_no_sense_says_nothing(text: str) -> None:
    assert read(text) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(("source", "id", "detail", "detail-type", "time", "instance-id")),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_is_too_strange(document: object) -> None:
    read(json.dumps(document))


def message(number: int, at_s: float = 0.0, said: Said = Said.INTERRUPTION) -> Message:
    return Message(f"e-{number}", said, f"i-{number}", at_s)


def test_a_message_counts_once_and_memory_is_bounded() -> None:
    heard = Heard()
    assert [heard.is_new(message(1)) for _ in range(3)] == [True, False, False]
    assert all(heard.is_new(message(number)) for number in range(2, MAX_REMEMBERED + 2))
    assert heard.is_new(message(1))


def test_a_warning_of_an_unknown_instance_is_kept_until_it_is_known() -> None:
    heard = Heard()
    heard.keep(message(1, 50.0))
    heard.keep(Message("e-9", Said.INTERRUPTION, "i-1", 40.0))
    heard.keep(Message("e-10", Said.INTERRUPTION, "i-1", 60.0))
    heard.keep(message(2, said=Said.STATE))
    assert heard.kept("i-2") is None
    kept = heard.kept("i-1")
    assert kept is not None
    assert kept.at_s == 40.0
    assert heard.kept("i-1") is None


def test_strangers_push_each_other_out() -> None:
    heard = Heard()
    for number in range(MAX_REMEMBERED + 1):
        heard.keep(message(number))
    assert heard.kept("i-0") is None
    assert heard.kept("i-1") is not None
