from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.cli.node.settings import ENDPOINT_VARIABLE, NodeSettings

GOOD = {"controller": "10.0.0.1:7002", "store": "s3://bucket/models"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("controller", "10.0.0.1"),
        ("controller", "a:1,b"),
        ("controller", ",".join(["a:1"] * 9)),
        ("store", "grpc://10.0.0.1:7004"),
        ("store", ""),
        ("metadata", "169.254.169.254"),
        ("metadata", "http://a/?b"),
        ("cloud", "mainframe"),
        ("certificates", "/nowhere"),
        ("join_token", "/nowhere"),
        ("notice_poll_s", 0),
        ("memory_share", 1.5),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        NodeSettings.model_validate(GOOD | {field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_the_metadata_service_is_where_boto3_would_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://127.0.0.1:1338")
    assert NodeSettings.model_validate(GOOD).metadata == "http://127.0.0.1:1338"
    chosen = NodeSettings.model_validate(GOOD | {"metadata": "http://127.0.0.1:1"})
    assert chosen.metadata == "http://127.0.0.1:1"


def test_the_controller_may_be_at_one_of_several_addresses() -> None:
    chosen = NodeSettings.model_validate(GOOD | {"controller": "a:1,[::1]:2"})
    assert chosen.controllers == ("a:1", "[::1]:2")
