"""What a router counts, at both doors."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import InvalidArgument
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh

LABELS = {"model": "tiny"}


def _first_tokens() -> float:
    return REGISTRY.get_sample_value("shunt_router_first_token_seconds_count", LABELS) or 0.0


def _failed(kind: str) -> float:
    return REGISTRY.get_sample_value("shunt_router_failed_total", {"kind": kind, **LABELS}) or 0.0


async def _events(router: RunningDoors, **more: Any) -> list[Any]:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}") as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.GenerateRequest(model="tiny", text="hi", **more)
        return [event async for event in stub.Generate(request, timeout=20)]


async def test_the_first_token_of_a_request_counts_once_and_that_of_a_resume_never(
    router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    before = _first_tokens()
    told = await ask(http)
    assert _first_tokens() == before + 1
    await resume(http, told.generation_id)
    assert _first_tokens() == before + 1
    await _events(router)
    assert _first_tokens() == before + 2


async def test_a_failure_counts_at_either_door(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.refusal, before = InvalidArgument("no"), _failed("InvalidArgument")
    await ask(http)
    assert _failed("InvalidArgument") == before + 1
    with pytest.raises(grpc.aio.AioRpcError):
        await _events(router)
    assert _failed("InvalidArgument") == before + 2


async def test_what_a_reader_asked_for_is_no_failure(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    before = {kind: _failed(kind) for kind in ("Cancelled", "FailedPrecondition", "OutOfRange")}
    mesh.limit = 5
    told = await ask(http, until=lambda told: bool(told.text()))
    await http.delete(f"/v1/generations/{told.generation_id}")
    mesh.limit = 1 << 30
    whole = await ask(http)
    await resume(http, told.generation_id)
    await resume(http, whole.generation_id, "3-00000000")
    await resume(http, whole.generation_id, "5000-00000000")
    assert {kind: _failed(kind) for kind in before} == before
