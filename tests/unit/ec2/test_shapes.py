"""The filter says nothing that EC2 could not say, and knows nothing of the services."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser

from tests.ec2.shapes import answer, error

FILTER = Path(__file__).parents[2] / "ec2"
FLEET = {
    "FleetId": "fleet-1",
    "Errors": [{"ErrorCode": "InsufficientInstanceCapacity", "Lifecycle": "spot"}],
}
PRICES = {
    "SpotPriceHistory": [
        {
            "InstanceType": "g5.xlarge",
            "SpotPrice": "0.1",
            "Timestamp": datetime(2026, 1, 1, tzinfo=UTC),
        }
    ],
    "NextToken": "2",
}
SCORES = {"SpotPlacementScores": [{"Region": "us-east-1", "AvailabilityZoneId": "z", "Score": 3}]}


def parsed(action: str, body: bytes, status: int = 200) -> dict[str, Any]:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model(action)
    found: dict[str, Any] = create_parser("ec2").parse(
        {"body": body, "headers": {}, "status_code": status}, shape.output_shape
    )
    del found["ResponseMetadata"]
    return found


@pytest.mark.parametrize(
    ("action", "value"),
    [
        ("CreateFleet", FLEET),
        ("DescribeSpotPriceHistory", PRICES),
        ("GetSpotPlacementScores", SCORES),
    ],
)
def test_botocore_reads_what_the_filter_says(action: str, value: dict[str, Any]) -> None:
    assert parsed(action, answer(action, value)) == value


@pytest.mark.parametrize(
    "value",
    [
        {"Fleet": "fleet-1"},
        {"FleetId": 7},
        {"Errors": {"ErrorCode": "x"}},
        {"Errors": [{"Code": "x"}]},
        {"Errors": [{"Lifecycle": "cheap"}]},
    ],
)
def test_what_no_shape_has_cannot_be_said(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="CreateFleet"):
        answer("CreateFleet", value)


def test_an_error_is_one() -> None:
    found = parsed("CreateFleet", error("VcpuLimitExceeded", "so"), 400)
    assert found["Error"] == {"Code": "VcpuLimitExceeded", "Message": "so"}


def test_it_imports_nothing_of_the_services() -> None:
    for path in FILTER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("services", "shuntserve"))], path
