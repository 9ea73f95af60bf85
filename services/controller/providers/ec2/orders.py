"""An order as EC2 takes it: one instance, of one pool or of those that are as cheap."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from services.common.errors import InvalidArgument
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.cloud_config import CloudConfig, File
from services.controller.providers.ec2.inventory import MESH_TAG, NODE_TAG, OFFER_TAG, PLAN_TAG
from services.controller.providers.ec2.offers import Ware

MAX_USER_DATA_BYTES = 16 << 10
ENVIRONMENT_FILE = "/etc/shuntserve/node.env"
UNIT = "shunt-node.service"
_TOKEN_CHARS = 64


@dataclass(frozen=True, slots=True)
class Template:
    """The launch template that instances are made from: image, network, role, disks."""

    name: str
    """Or its id."""
    version: str

    def specification(self) -> dict[str, str]:
        """As EC2 takes it."""
        key = "LaunchTemplateId" if self.name.startswith("lt-") else "LaunchTemplateName"
        return {key: self.name, "Version": self.version}


def client_token(run: str, node_id: str) -> str:
    """The same for the same node of the same journal, whoever asks: an order that is repeated, by
    this controller or by the next, starts nothing that is there."""
    return sha256(f"{len(run)}:{run}/{node_id}".encode()).hexdigest()[:_TOKEN_CHARS]


def tags_of(mesh: str, node_id: str, offer_id: str, plan: int) -> list[dict[str, str]]:
    """What an instance is known by."""
    tags = {
        MESH_TAG: mesh,
        NODE_TAG: node_id,
        OFFER_TAG: offer_id,
        PLAN_TAG: str(plan),
        "Name": f"{mesh}/{node_id}",
    }
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def user_data(variables: Mapping[str, str], base: CloudConfig) -> str:
    """A cloud-config: what every node begins with, this node's environment, and the start of the
    unit. Raises InvalidArgument for what does not fit."""
    for name, value in variables.items():
        if not (value.isascii() and value.isprintable() and name.isidentifier()):
            raise InvalidArgument(f"{name} is no line of an environment file", field="user_data")
    lines = "".join(f"{name}={json.dumps(value)}\n" for name, value in sorted(variables.items()))
    own = File(path=ENVIRONMENT_FILE, permissions="0600", content=lines)
    start = ("systemctl", "enable", "--now", UNIT)
    whole = base.model_copy(
        update={"write_files": (*base.write_files, own), "runcmd": (*base.runcmd, start)}
    )
    document = whole.model_dump(exclude_defaults=True)
    text = f"#cloud-config\n{json.dumps(document, indent=1)}\n"
    if len(text.encode()) > MAX_USER_DATA_BYTES:
        raise InvalidArgument(
            f"user data has at most {MAX_USER_DATA_BYTES} bytes", field="user_data"
        )
    return text


def fleet(
    offers: Sequence[Offer],
    subnets: Mapping[str, str],
    template: Template,
    *,
    token: str,
    tags: list[dict[str, str]],
    user_data: str,
) -> dict[str, Any]:
    """Arguments of CreateFleet for one node from the first of these offers, or from another one
    where EC2 finds that deeper. The offers are of one type and market."""
    wares = [ware for offer in offers if (ware := Ware.of(offer.offer_id)) is not None]
    known = [ware for ware in wares if ware.pool.zone_id in subnets]
    if not known:
        raise InvalidArgument(f"no subnet is in the zone of {offers[0].offer_id}", field="offer_id")
    data = base64.b64encode(user_data.encode()).decode()
    return {
        "Type": "instant",
        "ClientToken": token,
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {
                    **template.specification(),
                    "LaunchTemplateSpecificationUserData": data,
                },
                "Overrides": [
                    {
                        "InstanceType": ware.pool.instance_type,
                        "SubnetId": subnets[ware.pool.zone_id],
                    }
                    for ware in known
                ],
            }
        ],
        **_capacity(offers[0], known[0].reservation_id),
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("fleet", "instance")
        ],
    }


def _capacity(offer: Offer, reservation_id: str) -> dict[str, Any]:
    if reservation_id:
        return {
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": 1,
                "DefaultTargetCapacityType": "reserved-capacity",
            },
            "ReservedCapacityOptions": {
                "CapacityReservationTarget": {"CapacityReservationIds": [reservation_id]}
            },
        }
    kind = "spot" if offer.spot else "on-demand"
    target = {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": kind}
    if not offer.spot:
        return {"TargetCapacitySpecification": target}
    return {
        "TargetCapacitySpecification": target,
        "SpotOptions": {
            "AllocationStrategy": "price-capacity-optimized",
            "InstanceInterruptionBehavior": "terminate",
        },
    }
