"""The pattern of an engine's container: a service of the compose file that runs once and does
nothing. What Docker says of its container, a node's container is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from services.launcher.core.confinement import DANGEROUS, HARMLESS, JUDGED
from services.launcher.core.containers import (
    DEVICE_LABEL,
    MESH_LABEL,
    NODE_LABEL,
    OFFER_LABEL,
    ONE_OFF_LABEL,
)

ADVERTISED = "SHUNT_ENGINE_ADVERTISE_HOST"
MAX_VARIABLES = 64
MAX_VALUE_CHARS = 8192
MAX_OFFER_CHARS = 128
_COPIED = ("Healthcheck", "Image", "StopSignal", "StopTimeout", "User")
_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"SHUNT_ENGINE_[A-Z0-9_]{1,64}|SHUNT_MESH_TOKEN(_FILE)?")


@dataclass(frozen=True, slots=True)
class Order:
    """A node that is to be launched."""

    node_id: str
    offer_id: str
    variables: Mapping[str, str]

    def check(self) -> None:
        """Raises InvalidArgument."""
        if not _NODE_ID.fullmatch(self.node_id):
            raise InvalidArgument("1 to 63 of a-z, 0-9 and hyphens within", field="node_id")
        if len(self.offer_id) > MAX_OFFER_CHARS or not self.offer_id.isprintable():
            raise InvalidArgument(f"at most {MAX_OFFER_CHARS} characters", field="offer_id")
        if len(self.variables) > MAX_VARIABLES:
            raise InvalidArgument(f"at most {MAX_VARIABLES}", field="variables")
        for name, value in self.variables.items():
            if not _VARIABLE.fullmatch(name):
                raise InvalidArgument(f"{name!r} is not an engine's", field="variables")
            if len(value) > MAX_VALUE_CHARS or not value.isprintable():
                raise InvalidArgument(
                    f"{name} has at most {MAX_VALUE_CHARS} characters, all printable",
                    field="variables",
                )


def name_of(mesh: str, node_id: str) -> str:
    """Of the node's container: Docker gives a name once, so no node is launched twice."""
    return f"{mesh}-{node_id}"


def address_of(node_id: str, service: str) -> str:
    """Where others of the network find the node: one wildcard, *.engine.mesh, is all of them in a
    certificate, which has no wildcard for names of less than three parts."""
    return f"{node_id}.{service}.mesh" if service else node_id


def body_of(
    pattern: Mapping[str, Any], order: Order, *, mesh: str, device: str = ""
) -> dict[str, Any]:
    """The request to create a node's container, from Docker's description of the pattern's. What
    is dangerous is in it, too: whether that may be is judged elsewhere. `device` is the GPU that is
    to be the node's own."""
    config, host = pattern.get("Config", {}), pattern.get("HostConfig", {})
    known = HARMLESS | JUDGED | DANGEROUS.keys()
    copied = {key: host[key] for key in known & host.keys() if host[key]}
    copied.pop("Binds", None)  # they stand among the mounts, too, and there with their kind
    copied["Mounts"] = [_mount(one) for one in pattern.get("Mounts", ())]
    if device:
        copied["DeviceRequests"] = [
            {**one, "DeviceIDs": [device], "Count": 0} for one in copied["DeviceRequests"]
        ]
    networks = pattern.get("NetworkSettings", {}).get("Networks", {})
    service = config.get("Labels", {}).get("com.docker.compose.service", "")
    address = address_of(order.node_id, service)
    variables = {ADVERTISED: address, **order.variables}
    return {
        **{key: config[key] for key in _COPIED if config.get(key)},
        "Hostname": order.node_id,
        "Env": [*_without(config.get("Env") or (), variables), *_lines(variables)],
        "Labels": {
            **config.get("Labels", {}),
            ONE_OFF_LABEL: "True",  # so `up` leaves it alone, and `down` does not
            MESH_LABEL: mesh,
            NODE_LABEL: order.node_id,
            OFFER_LABEL: order.offer_id,
            DEVICE_LABEL: device,
        },
        "HostConfig": copied,
        "NetworkingConfig": {
            "EndpointsConfig": {
                name: {"Aliases": [address, order.node_id, service]} for name in networks
            }
        },
    }


def device_for(pattern: Mapping[str, Any], taken: Set[str]) -> str:
    """A GPU that no other node has, of those that the pattern names; empty where it asks for none.
    Raises ResourceExhausted when each is some node's, FailedPrecondition where they have no names:
    nobody could say then which is whose."""
    requests: Sequence[Mapping[str, Any]] = (
        pattern.get("HostConfig", {}).get("DeviceRequests") or ()
    )
    if not requests:
        return ""
    named = requests[0].get("DeviceIDs") or ()
    if len(requests) > 1 or not named:
        raise FailedPrecondition(
            "devices: one reservation, with device_ids: each node gets one of them",
            field="devices",
        )
    free = next((one for one in named if one not in taken), "")
    if not free:
        raise ResourceExhausted(f"each of {len(named)} devices is a node's", field="devices")
    return free


def _mount(described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Type": described.get("Type"),
        "Source": described.get("Name") or described.get("Source"),
        "Target": described.get("Destination"),
        "ReadOnly": not described.get("RW"),
    }


def _without(environment: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    return [line for line in environment if line.partition("=")[0] not in variables]


def _lines(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(variables.items())]
