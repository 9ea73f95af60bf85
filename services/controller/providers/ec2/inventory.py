"""Instances as EC2 describes them, and whose they are: by their tags, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.controller.providers.ec2.offers import Pool

MESH_TAG = "shuntserve:mesh"
NODE_TAG = "shuntserve:node"
OFFER_TAG = "shuntserve:offer"
PLAN_TAG = "shuntserve:plan"
INTERRUPTED = "Server.SpotInstanceTermination"
"""Why an instance ended: the market took it."""


class State(StrEnum):
    """Of an instance."""

    PENDING = "pending"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting-down"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATED = "terminated"


PAID = (State.PENDING, State.RUNNING)
"""States in which it costs money, and is a node."""
OVER = (State.STOPPED, State.STOPPING, State.TERMINATED)


@dataclass(frozen=True, slots=True)
class Instance:
    """One that carries the mesh's tag."""

    instance_id: str
    node_id: str
    """Empty where its tag is not there."""
    offer_id: str
    """That it was ordered by."""
    instance_type: str
    zone_id: str
    state: State
    launched: str = ""
    """When, as text that sorts."""
    reason: str = ""
    """Code of why it is in this state."""
    is_spot: bool = False

    @property
    def pool(self) -> Pool:
        """What it is taken away with."""
        return Pool(self.instance_type, self.zone_id)

    @property
    def is_paid(self) -> bool:
        return self.state in PAID

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def is_ours(tags: Mapping[str, str], mesh: str) -> bool:
    """The one rule of whose an instance is."""
    return bool(mesh) and tags.get(MESH_TAG) == mesh


def instances_of(
    page: Mapping[str, Any], mesh: str, zone_ids: Mapping[str, str]
) -> Iterable[Instance]:
    """Those of a page of DescribeInstances that are the mesh's; `zone_ids` has the zone's id of
    each subnet, for an answer that does not name it."""
    for reservation in page.get("Reservations", ()):
        for one in reservation.get("Instances", ()):
            tags = {tag["Key"]: tag.get("Value", "") for tag in one.get("Tags", ())}
            if is_ours(tags, mesh):
                yield _instance(one, tags, zone_ids)


def _instance(
    one: Mapping[str, Any], tags: Mapping[str, str], zone_ids: Mapping[str, str]
) -> Instance:
    placement = one.get("Placement", {})
    zone_id = placement.get("AvailabilityZoneId") or zone_ids.get(one.get("SubnetId", ""), "")
    launched = one.get("LaunchTime")
    return Instance(
        one["InstanceId"],
        tags.get(NODE_TAG, ""),
        tags.get(OFFER_TAG, ""),
        one.get("InstanceType", ""),
        zone_id,
        State(one["State"]["Name"]),
        "" if launched is None else launched.isoformat(),
        one.get("StateReason", {}).get("Code", ""),
        one.get("InstanceLifecycle") == "spot",
    )
