"""Instances and volumes of a mesh: those that its controller bought, and those of its stack."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.cli.ec2.account import Account, AwsRefusal
from services.cli.ec2.stack import STACK_TAG, Tell
from services.cli.mesh_directory import MeshError
from services.controller.providers.ec2.inventory import MESH_TAG, NODE_TAG, OFFER_TAG

ROLE_TAG = "shuntserve:role"
LIVING = ("pending", "running", "stopping", "stopped")
ENDING = (*LIVING, "shutting-down")
POLL_S = 3.0
END_LIMIT_S = 600.0
_AT_ONCE = 500
"""More instances no call takes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance."""

    instance_id: str
    role: str
    """`node`, or what its stack calls it."""
    name: str
    """Of a node: the mesh's own."""
    offer: str
    instance_type: str
    zone: str
    state: str
    is_spot: bool


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk that outlives its instance."""

    volume_id: str
    role: str
    size_gib: int
    state: str


class Machines:
    """Of one mesh, by the tags alone: what carries neither is nobody's here."""

    def __init__(self, account: Account, mesh: str, *, poll_s: float = POLL_S) -> None:
        self._ec2 = account.client("ec2")
        self._scaling = account.client("autoscaling")
        self._mesh = mesh
        self._poll_s = poll_s

    def all(self, states: Sequence[str] = LIVING) -> list[Machine]:
        """Nodes first. Raises AwsRefusal."""
        return [*self.nodes(states), *self.hosts(states)]

    def nodes(self, states: Sequence[str] = LIVING) -> list[Machine]:
        """What the controller bought. Raises AwsRefusal."""
        return self._tagged(MESH_TAG, states)

    def hosts(self, states: Sequence[str] = LIVING) -> list[Machine]:
        """What the stack itself started. Raises AwsRefusal."""
        return self._tagged(STACK_TAG, states)

    def _tagged(self, tag: str, states: Sequence[str]) -> list[Machine]:
        pages = self._ec2.pages(
            "describe_instances",
            Filters=[
                {"Name": f"tag:{tag}", "Values": [self._mesh]},
                {"Name": "instance-state-name", "Values": list(states)},
            ],
        )
        found = [
            _machine(one, tag == MESH_TAG)
            for page in pages
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
        ]
        return sorted(found, key=lambda machine: (machine.role, machine.name, machine.instance_id))

    def empty(self, groups: Sequence[str]) -> None:
        """Auto Scaling groups start nothing any more, and end what they have. Raises AwsRefusal."""
        for name in groups:
            try:
                self._scaling.update_auto_scaling_group(
                    AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0
                )
            except AwsRefusal as refusal:
                if refusal.code != "ValidationError":  # it is gone
                    raise

    def end(
        self, which: Callable[[], list[Machine]], tell: Tell, known: Sequence[Machine] = ()
    ) -> list[Machine]:
        """Ends them and waits until all are over; looked for anew each time, for what was ordered
        a moment ago may show late. All that were there, with those that are `known` to have been.
        Raises MeshError."""
        seen: dict[str, Machine] = {}
        found, deadline = list(known), time.monotonic() + END_LIMIT_S
        while True:
            for machine in found:
                if machine.instance_id not in seen:
                    tell(f"  ends {describe(machine)}")
                    seen[machine.instance_id] = machine
            found = which()
            if not found:
                return list(seen.values())
            self._terminate([m.instance_id for m in found if m.state != "shutting-down"])
            if time.monotonic() > deadline:
                names = ", ".join(machine.instance_id for machine in found[:5])
                raise MeshError(f"{names} do not end: say it once more")
            time.sleep(self._poll_s)

    def _terminate(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _AT_ONCE):
            try:
                self._ec2.terminate_instances(InstanceIds=list(ids[start : start + _AT_ONCE]))
            except AwsRefusal as refusal:
                if refusal.code != "InvalidInstanceID.NotFound":  # the next look is without it
                    raise

    def volumes(self) -> list[Volume]:
        """Raises AwsRefusal."""
        pages = self._ec2.pages(
            "describe_volumes", Filters=[{"Name": f"tag:{STACK_TAG}", "Values": [self._mesh]}]
        )
        return [
            Volume(row["VolumeId"], _tags(row).get(ROLE_TAG, ""), int(row["Size"]), row["State"])
            for page in pages
            for row in page["Volumes"]
        ]

    def delete_volumes(self) -> list[Volume]:
        """Those that hang on no instance any more. Raises AwsRefusal."""
        deleted = []
        for volume in self.volumes():
            try:
                self._ec2.delete_volume(VolumeId=volume.volume_id)
            except AwsRefusal as refusal:
                if refusal.code != "InvalidVolume.NotFound":
                    raise
                continue
            deleted.append(volume)
        return deleted


def _machine(one: dict[str, Any], is_node: bool) -> Machine:
    tags = _tags(one)
    return Machine(
        one["InstanceId"],
        "node" if is_node else tags.get(ROLE_TAG, "host"),
        tags.get(NODE_TAG, ""),
        tags.get(OFFER_TAG, ""),
        one["InstanceType"],
        one.get("Placement", {}).get("AvailabilityZone", ""),
        one["State"]["Name"],
        one.get("InstanceLifecycle") == "spot",
    )


def _tags(row: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag.get("Value", "") for tag in row.get("Tags", ())}


def describe(machine: Machine) -> str:
    """In one line."""
    market = "spot" if machine.is_spot else "on demand"
    name = f" {machine.name}" if machine.name else ""
    return (
        f"{machine.role}{name}: {machine.instance_id}, {machine.instance_type} in {machine.zone},"
        f" {market}"
    )
