"""A real controller of a mesh with a token, asked by who holds a node's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import channels, mesh_token
from services.common.errors import PermissionDenied, Unauthenticated, Unavailable
from services.common.roles import Role
from services.common.statuses import from_rpc_error

TOKEN = "a-token-of-24-characters"
CALL_S = 60.0
World = Any


@pytest.fixture
async def mesh(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two pipelines stand; everybody had the mesh's token."""
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    await world.start()
    await world.routes(2)
    return world


@asynccontextmanager
async def _holder_of(token: str, world: World) -> AsyncIterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mesh_token.VARIABLE, token)
        channel = channels.open_channel(world.address, Role.CONTROLLER)
    async with channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)


async def _refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call, CALL_S)
    return from_rpc_error(refused.value)


def _facts(node_id: str, incarnation: str) -> pb.RegisterRequest:
    return pb.RegisterRequest(
        node_id=node_id,
        incarnation=incarnation,
        address="127.0.0.1:1",
        pid=1,
        memory_bytes=1 << 30,
        relative_speed=1.0,
        device_type="cpu",
    )


async def _checkpoint(stub: Any, incarnation: str) -> pb.StreamCheckpointsResponse:
    said = pb.Checkpoint(generation_id="g" * 32, epoch=2, incarnation=incarnation, formation_id="f")
    request = pb.StreamCheckpointsRequest(sequence=1, checkpoints=[said])
    call = stub.StreamCheckpoints(iter([request]), timeout=CALL_S)
    answer = await call.read()
    call.cancel()
    return answer  # type: ignore[no-any-return]


async def test_a_nodes_holder_does_what_its_engine_does(mesh: World) -> None:
    mine = "joined/by hand"
    async with _holder_of(mesh_token.of_node(TOKEN, mine), mesh) as stub:
        unknown = await _refused(_checkpoint(stub, "fresh"))
        assert isinstance(unknown, Unavailable)
        await stub.Register(_facts(mine, "fresh"), timeout=CALL_S)
        beats = stub.Heartbeat(
            iter([pb.HeartbeatRequest(node_id=mine, incarnation="fresh")]), timeout=CALL_S
        )
        assert not (await beats.read()).register_again
        beats.cancel()
        answer = await _checkpoint(stub, "fresh")
        assert answer.results[0].refusal == pb.CHECKPOINT_REFUSAL_STALE_EPOCH
    assert mine in {node.node_id for node in (await mesh.status()).nodes}


async def test_a_nodes_holder_speaks_for_no_other(mesh: World) -> None:
    mine, theirs = list(mesh.provider.engines.values())[:2]
    me, them = mine.node_id, theirs.node_id
    beat = pb.HeartbeatRequest(node_id=them, incarnation=theirs.incarnation)
    async with _holder_of(mesh_token.of_node(TOKEN, me), mesh) as stub:
        attempts = {
            "another node's name": (stub.Register(_facts(them, "fresh")), "node_id"),
            "its beat": (stub.Heartbeat(iter([beat])).read(), "node_id"),
            "its checkpoint": (_checkpoint(stub, theirs.incarnation), "incarnation"),
            "its process": (stub.Register(_facts(me, theirs.incarnation)), "incarnation"),
        }
        for what, (call, field) in attempts.items():
            error = await _refused(call)
            assert isinstance(error, PermissionDenied), what
            assert error.field == field, what
            if what != "its process":
                assert f"node {me} alone" in error.message, what
    status = await mesh.status()
    found = {node.node_id: node.incarnation for node in status.nodes}
    assert found == {name: e.incarnation for name, e in mesh.provider.engines.items()}


async def test_a_nodes_holder_is_neither_router_nor_operator(mesh: World) -> None:
    me = next(iter(mesh.provider.engines))
    async with _holder_of(mesh_token.of_node(TOKEN, me), mesh) as stub:
        attempts = [
            stub.GetStatus(pb.GetStatusRequest()),
            stub.ReportInterruption(pb.ReportInterruptionRequest(node_id=me, kill=True)),
            stub.GetGeneration(pb.GetGenerationRequest(generation_id="g" * 32)),
            stub.Resume(pb.ResumeRequest()),
            stub.Cancel(pb.CancelRequest()),
            stub.ClaimGeneration(pb.ClaimGenerationRequest()),
            stub.WatchRoutes(pb.WatchRoutesRequest(router_id="r")).read(),
            stub.WatchEvents(pb.WatchEventsRequest()).read(),
        ]
        for call in attempts:
            assert isinstance(await _refused(call), PermissionDenied)


async def test_a_controller_that_was_started_again_knows_whose_processes_it_had(
    mesh: World,
) -> None:
    mine, theirs = list(mesh.provider.engines.values())[:2]

    async def says_nothing(stub: Any) -> None:
        await asyncio.Event().wait()

    theirs._talk = says_nothing
    await mesh.stop()
    await mesh.start()
    async with _holder_of(mesh_token.of_node(TOKEN, mine.node_id), mesh) as stub:
        error = await _refused(_checkpoint(stub, theirs.incarnation))
        assert isinstance(error, PermissionDenied)


@pytest.mark.parametrize(
    "token",
    [
        mesh_token.of_node("another-of-24-characters", "n"),
        mesh_token.of_node(TOKEN, "n").replace("shunt-node.n.", "shunt-node.m."),
        mesh_token.of_node(TOKEN, "n").rpartition(".")[2],
    ],
)
async def test_a_token_that_is_not_this_meshs_is_none(mesh: World, token: str) -> None:
    async with _holder_of(token, mesh) as stub:
        for name in ("n", "m"):
            assert isinstance(await _refused(stub.Register(_facts(name, "i"))), Unauthenticated)


async def test_the_meshs_token_does_what_an_operator_and_every_node_may(mesh: World) -> None:
    async with _holder_of(TOKEN, mesh) as stub:
        await stub.Register(_facts("n", "fresh"), timeout=CALL_S)
        status = await stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_S)
        assert "n" in {node.node_id for node in status.nodes}
        await stub.ReportInterruption(
            pb.ReportInterruptionRequest(node_id="n", notice_s=60), timeout=CALL_S
        )
