"""Who may call what: a caller's role, and the one table of roles by RPC.

Under mutual TLS a certificate says what its holder is by one SPIFFE URI among its subject's
alternative names: spiffe://shunt/ROLE, or spiffe://shunt/engine/NODE for the engine of one node
(https://spiffe.io/docs/latest/spiffe-specs/x509-svid/). A node's token says the latter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.errors import PermissionDenied

_PREFIX = "spiffe://shunt/"


class Role(StrEnum):
    """What a caller is."""

    ROUTER = "router"
    CONTROLLER = "controller"
    LAUNCHER = "launcher"
    PLACEMENT = "placement"
    TENSORSTORE = "tensorstore"
    ENGINE = "engine"
    OPERATOR = "operator"
    """A person, or a script of theirs: the command line."""
    CLIENT = "client"
    """Asks routers for text, and may do nothing else."""


_ROLES = {role.value: role for role in Role}
ROLE_HOSTS = ".role.shuntserve.internal"
"""What the DNS names end with by which a certificate names its holder's role to who calls it:
Python's channels look at names of hosts alone."""


def host_of(role: Role) -> str:
    """The DNS name of whoever has the role."""
    return f"{role}{ROLE_HOSTS}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate, or a node's token, says of its holder."""

    role: Role
    node_id: str = ""
    """The only node that an engine speaks for; empty: whichever it says."""

    @property
    def uri(self) -> str:
        """As a certificate names it."""
        return f"{_PREFIX}{self.role}/{self.node_id}" if self.node_id else f"{_PREFIX}{self.role}"


_READERS = frozenset((Role.ENGINE, Role.ROUTER, Role.CONTROLLER, Role.TENSORSTORE, Role.OPERATOR))
_ASKERS = frozenset((Role.CLIENT, Role.OPERATOR))
_PLANNERS = frozenset((Role.CONTROLLER, Role.OPERATOR))


def _only(*roles: Role) -> frozenset[Role]:
    return frozenset(roles)


CALLERS: Mapping[str, Mapping[str, frozenset[Role]]] = {
    "shuntserve.router.v1.RouterService": {
        "Generate": _ASKERS,
        "Resume": _ASKERS,
        "Cancel": _ASKERS,
        "ListModels": _ASKERS,
    },
    "shuntserve.controller.v1.ControllerService": {
        "Register": _only(Role.ENGINE),
        "Heartbeat": _only(Role.ENGINE),
        "StreamCheckpoints": _only(Role.ENGINE),
        "WatchRoutes": _only(Role.ROUTER),
        "Resume": _only(Role.ROUTER),
        "Cancel": _only(Role.ROUTER),
        "GetGeneration": _only(Role.ROUTER),
        "ClaimGeneration": _only(Role.ROUTER),
        "ClaimBackground": _only(Role.ROUTER),
        "DeleteGeneration": _only(Role.ROUTER),
        "ReportInterruption": _only(Role.OPERATOR),
        "ApplyPlan": _only(Role.OPERATOR),
        "Deploy": _only(Role.OPERATOR),
        "Undeploy": _only(Role.OPERATOR),
        "DiffPlan": _only(Role.OPERATOR),
        "ExplainPlan": _only(Role.OPERATOR),
        "Replan": _only(Role.OPERATOR),
        "ReportDemand": _only(Role.ROUTER),
        "PutDocument": _only(Role.ROUTER),
        "GetDocument": _only(Role.ROUTER),
        "ListDocuments": _only(Role.ROUTER),
        "DeleteDocument": _only(Role.ROUTER),
        "ClaimDocument": _only(Role.ROUTER),
        "RenewDocument": _only(Role.ROUTER),
        "GetStatus": _only(Role.OPERATOR),
        "WatchEvents": _only(Role.OPERATOR),
    },
    "shuntserve.launcher.v1.LauncherService": {
        "Launch": _only(Role.CONTROLLER),
        "End": _only(Role.CONTROLLER),
        "Watch": _only(Role.CONTROLLER),
    },
    "shuntserve.placement.v1.PlacementService": {
        "Plan": _PLANNERS,
        "PlanDeployments": _PLANNERS,
        "Estimate": _PLANNERS,
        "Replan": _PLANNERS,
        "ReplanDeployments": _PLANNERS,
        "Explain": _PLANNERS,
        "WhatIf": _PLANNERS,
    },
    "shuntserve.tensorstore.v1.TensorStoreService": {
        "Import": _only(Role.OPERATOR),
        "Verify": _only(Role.OPERATOR),
        "Delete": _only(Role.OPERATOR),
        "List": _READERS,
        "Describe": _READERS,
        "Prefetch": _READERS,
        "Open": _READERS,
        "Read": _READERS,
    },
    "shuntserve.engine.v1.EngineService": {
        "Generate": _only(Role.ROUTER),
        "Cancel": _only(Role.ROUTER, Role.CONTROLLER),
        "Detach": _only(Role.ROUTER),
        "Hold": _only(Role.CONTROLLER),
        "Form": _only(Role.CONTROLLER),
        "Dissolve": _only(Role.CONTROLLER),
        "Drain": _only(Role.CONTROLLER),
        "WatchPrefixes": _only(Role.ROUTER),
        "Describe": _only(Role.ENGINE, Role.CONTROLLER, Role.OPERATOR),
        "KeepKv": _only(Role.ENGINE),
        "FetchKv": _only(Role.ENGINE),
        "EndKv": _only(Role.ENGINE),
        "CopyKv": _only(Role.CONTROLLER),
        "StoreKv": _only(Role.ENGINE),
        "CacheKv": _only(Role.ENGINE),
        "OfferKv": _only(Role.ENGINE),
        "ReadKv": _only(Role.ENGINE),
        "Forward": _only(Role.ENGINE),
    },
}
"""Roles by service and RPC; what is not here, nobody may call."""
SPEAKS_FOR_A_NODE = frozenset(
    f"/shuntserve.controller.v1.ControllerService/{name}" for name in ("Register", "Heartbeat")
)
"""RPCs whose messages name the caller's own node. StreamCheckpoints names its process: whose that
is, the controller knows."""


def identity_of(spiffe_ids: Iterable[str]) -> Identity:
    """Raises PermissionDenied for a certificate that names no role."""
    for text in spiffe_ids:
        role, _, node_id = text.removeprefix(_PREFIX).partition("/")
        found = _ROLES.get(role) if text.startswith(_PREFIX) else None
        if found is not None and (not node_id or found is Role.ENGINE):
            return Identity(found, node_id)
    raise PermissionDenied("the caller's certificate names no role")


def check_call(caller: Identity, method: str) -> None:
    """`method` reads /SERVICE/RPC. Raises PermissionDenied."""
    service, _, rpc = method.lstrip("/").partition("/")
    if caller.role not in CALLERS.get(service, {}).get(rpc, ()):
        raise PermissionDenied(f"the role {caller.role} may not call {rpc}")


def is_for_clients(method: str) -> bool:
    """Whether `method`, /SERVICE/RPC, is what a mesh is there for, and not of its inside."""
    service, _, rpc = method.lstrip("/").partition("/")
    return Role.CLIENT in CALLERS.get(service, {}).get(rpc, ())


def check_node(caller: Identity, message: Any) -> None:
    """Raises PermissionDenied when an engine speaks for another node than its own."""
    if caller.node_id and message.node_id != caller.node_id:
        raise PermissionDenied(
            f"the caller speaks for node {caller.node_id} alone", field="node_id"
        )
