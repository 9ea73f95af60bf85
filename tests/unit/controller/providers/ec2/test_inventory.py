from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.controller.providers.ec2.inventory import State, instances_of, is_ours


def described(tags: dict[str, str], **more: Any) -> dict[str, Any]:
    one = {
        "InstanceId": "i-1",
        "InstanceType": "g5.xlarge",
        "State": {"Name": "running"},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "SubnetId": "subnet-1",
        "LaunchTime": datetime(2026, 1, 1, tzinfo=UTC),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    return {"Reservations": [{"Instances": [{**one, **more}]}]}


OURS = {"shuntserve:mesh": "m", "shuntserve:node": "node-1", "shuntserve:offer": "a/b/spot"}


def test_an_instance_is_known_by_its_tags() -> None:
    page = described(OURS, InstanceLifecycle="spot", StateReason={"Code": "Server.Spot"})
    (one,) = instances_of(page, "m", {"subnet-1": "use1-az1"})
    assert (one.instance_id, one.node_id, one.offer_id) == ("i-1", "node-1", "a/b/spot")
    assert (one.pool.name, one.state, one.is_spot) == ("g5.xlarge/use1-az1", State.RUNNING, True)
    assert one.reason == "Server.Spot"


def test_the_zones_own_id_counts_before_its_subnets() -> None:
    page = described(OURS, Placement={"AvailabilityZoneId": "use1-az6"})
    (one,) = instances_of(page, "m", {"subnet-1": "use1-az1"})
    assert one.zone_id == "use1-az6"


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"shuntserve:node": "node-1"},
        OURS | {"shuntserve:mesh": "M"},
        OURS | {"shuntserve:mesh": ""},
    ],
)
def test_nothing_else_is_ours(tags: dict[str, str]) -> None:
    assert list(instances_of(described(tags), "m", {})) == []


def test_a_mesh_without_a_name_has_nothing() -> None:
    assert not is_ours({"shuntserve:mesh": ""}, "")
