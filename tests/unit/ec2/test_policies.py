"""The evaluator says of each what IAM's documentation says of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ec2.policies import Call, allows

ARN = "arn:aws:ec2:us-east-1:123456789012:instance/i-1"


def statement(**said: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*", **said}


def allowed(call: Call, *statements: dict[str, Any]) -> bool:
    return allows([{"Version": "2012-10-17", "Statement": list(statements)}], call)


END = Call("ec2:TerminateInstances", ARN)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, True),
        ({"Action": "EC2:terminateinstances"}, True),
        ({"Action": "ec2:Term*"}, True),
        ({"Action": ["s3:*", "ec2:Describe*"]}, False),
        ({"Resource": "arn:aws:ec2:*:123456789012:instance/*"}, True),
        ({"Resource": "arn:aws:ec2:*:123456789012:volume/*"}, False),
        ({"Resource": ARN[:-1] + "?"}, True),
        ({"Resource": ARN.upper()}, False),
    ],
)
def test_patterns_match_as_iams_do(said: dict[str, Any], wanted: bool) -> None:
    assert allowed(END, statement(**said)) is wanted


def test_what_nobody_allows_is_denied_and_a_denial_counts_above_all() -> None:
    assert not allowed(END)
    assert not allowed(END, statement(), statement(Effect="Deny", Resource=ARN))
    assert allowed(END, statement(), statement(Effect="Deny", Resource=ARN + "2"))


def test_what_is_not_named_is_meant_by_not_action_and_not_resource() -> None:
    but = {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}
    assert allowed(END, but)
    assert not allowed(Call("iam:PassRole", "*"), but)
    elsewhere = {"Effect": "Allow", "Action": "*", "NotResource": ARN}
    assert not allowed(END, elsewhere)


@pytest.mark.parametrize(
    ("condition", "context", "wanted"),
    [
        ({"StringEquals": {"aws:ResourceTag/a": "b"}}, {"aws:resourcetag/A": "b"}, True),
        ({"StringEquals": {"aws:ResourceTag/a": ["c", "b"]}}, {"aws:ResourceTag/a": "b"}, True),
        ({"StringEquals": {"aws:ResourceTag/a": "b"}}, {}, False),
        ({"StringEquals": {"aws:ResourceTag/a": "b*"}}, {"aws:ResourceTag/a": "bc"}, False),
        ({"StringLike": {"s3:prefix": "models/*"}}, {"s3:prefix": "models/x"}, True),
        ({"StringLike": {"s3:prefix": "models/*"}}, {"s3:prefix": ""}, False),
        ({"ArnEquals": {"ec2:Vpc": "arn:aws:ec2:*:1:v"}}, {"ec2:Vpc": "arn:aws:ec2:x:1:v"}, True),
        ({"Bool": {"aws:SecureTransport": "false"}}, {"aws:SecureTransport": "False"}, True),
        ({"StringEquals": {"a": "b"}, "StringLike": {"c": "d"}}, {"a": "b"}, False),
        ({"ForAllValues:StringEquals": {"k": ["a", "b"]}}, {"k": ["a", "b"]}, True),
        ({"ForAllValues:StringEquals": {"k": ["a", "b"]}}, {"k": ["a", "c"]}, False),
        ({"ForAllValues:StringEquals": {"k": "a"}}, {}, True),
        ({"ForAnyValue:StringEquals": {"k": "a"}}, {"k": ["a", "c"]}, True),
        ({"ForAnyValue:StringEquals": {"k": "a"}}, {}, False),
        ({"StringEquals": {"t": "${k:v}"}}, {"t": "x", "k:v": "x"}, True),
        ({"StringEquals": {"t": "${k:v}"}}, {"t": "x", "k:v": "y"}, False),
        ({"StringEquals": {"t": "${k:v}"}}, {"t": "${k:v}"}, False),
    ],
)  # fmt: skip
def test_conditions_hold_as_iams_do(
    condition: dict[str, Any], context: dict[str, Any], wanted: bool
) -> None:
    call = Call(END.action, END.resource, context)
    assert allowed(call, statement(Condition=condition)) is wanted


@pytest.mark.parametrize(
    "said",
    [
        {"Condition": {"NumericLessThan": {"a": "1"}}},
        {"Condition": {"ForNoValue:StringEquals": {"a": "1"}}},
        {"Principal": "*"},
        {"Effect": "Perhaps"},
    ],
)
def test_what_it_does_not_know_is_no_yes(said: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        allowed(Call(END.action, END.resource, {"a": "0"}), statement(**said))
