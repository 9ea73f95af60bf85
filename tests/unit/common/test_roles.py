from __future__ import annotations

import pytest
from google.protobuf.descriptor import FileDescriptor
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2
from shuntserve.launcher.v1 import launcher_pb2
from shuntserve.placement.v1 import placement_pb2
from shuntserve.router.v1 import router_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2

from services.common.errors import PermissionDenied
from services.common.roles import (
    CALLERS,
    SPEAKS_FOR_A_NODE,
    Identity,
    Role,
    check_call,
    check_node,
    identity_of,
)


def _rpcs(file: FileDescriptor) -> set[str]:
    services = file.services_by_name.values()
    return {f"/{s.full_name}/{m.name}" for s in services for m in s.methods}


def test_the_table_names_every_rpc_there_is_and_no_other() -> None:
    modules = (
        *(controller_pb2, engine_pb2, launcher_pb2),
        *(placement_pb2, router_pb2, tensorstore_pb2),
    )
    known = set[str]().union(*(_rpcs(module.DESCRIPTOR) for module in modules))
    assert {f"/{service}/{rpc}" for service, rpcs in CALLERS.items() for rpc in rpcs} == known
    assert known >= SPEAKS_FOR_A_NODE
    assert all(roles for rpcs in CALLERS.values() for roles in rpcs.values())


@pytest.mark.parametrize("role", Role)
def test_a_spiffe_uri_names_a_role(role: Role) -> None:
    assert identity_of([f"spiffe://shunt/{role}"]) == Identity(role)


def test_an_engines_uri_may_name_its_node() -> None:
    assert identity_of(["spiffe://shunt/engine/node-1"]) == Identity(Role.ENGINE, "node-1")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://shunt/"],
        ["spiffe://shunt/nobody"],
        ["spiffe://shunt/Router"],
        ["spiffe://shunt/router/x"],
        ["spiffe://elsewhere/router"],
        ["https://shunt/router"],
    ],
)
def test_whatever_else_names_none(uris: list[str]) -> None:
    with pytest.raises(PermissionDenied):
        identity_of(uris)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        (Role.ROUTER, "/shuntserve.engine.v1.EngineService/Hold"),
        (Role.CLIENT, "/shuntserve.engine.v1.EngineService/Generate"),
        (Role.ENGINE, "/shuntserve.tensorstore.v1.TensorStoreService/Delete"),
        (Role.OPERATOR, "/shuntserve.engine.v1.EngineService/Unheard"),
        (Role.OPERATOR, "/unheard"),
    ],
)
def test_what_the_table_does_not_allow_is_denied(role: Role, method: str) -> None:
    with pytest.raises(PermissionDenied):
        check_call(Identity(role), method)


def test_an_engine_speaks_for_its_own_node_only() -> None:
    mine = controller_pb2.RegisterRequest(node_id="node-1")
    check_node(Identity(Role.ENGINE, "node-1"), mine)
    check_node(Identity(Role.ENGINE), mine)
    with pytest.raises(PermissionDenied):
        check_node(Identity(Role.ENGINE, "node-2"), mine)
