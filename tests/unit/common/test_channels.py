from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from services.common import channels, renewal
from services.common.roles import Role
from tests.name_server import NameServer

FOUND_S = 20.0
"""It takes a second; gRPC left alone takes 30."""
FIRST, SECOND = "127.0.0.2", "127.0.0.3"


async def _serve(host: str, port: int = 0) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=channels.options(1 << 20))
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server, port


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    server = NameServer(FIRST)
    await server.start()
    yield server
    server.close()


async def _answers(channel: grpc.aio.Channel, timeout_s: float = 1.0) -> bool:
    try:
        await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=timeout_s
        )
    except grpc.aio.AioRpcError:
        return False
    return True


async def _silent(channel: grpc.aio.Channel, at_most_s: float) -> float:
    """Seconds until the peer answers, or `at_most_s`."""
    began_s = now_s = time.monotonic()
    while now_s - began_s < at_most_s and not await _answers(channel):
        await asyncio.sleep(0.05)
        now_s = time.monotonic()
    return now_s - began_s


@pytest.mark.parametrize("away_s", [0.0, 3.0, 12.0])
async def test_a_peer_that_comes_back_at_another_address_is_found(
    names: NameServer, away_s: float
) -> None:
    before, port = await _serve(FIRST)
    target = f"dns://127.0.0.1:{names.port}/peer.test:{port}"
    async with channels.open_channel(target, Role.ROUTER) as channel:
        assert await _answers(channel, 10)
        names.address = None
        await before.stop(0)
        assert await _silent(channel, away_s) >= away_s
        after, _ = await _serve(SECOND, port)
        names.address = SECOND
        assert await _silent(channel, 60.0) < FOUND_S
        await after.stop(0)


async def test_a_name_without_an_address_is_asked_for_as_often_as_ever(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "RENEWAL_INTERVAL_S", 0.2)
    others = NameServer(None)
    await others.start()
    names.address = None
    plain = f"dns://127.0.0.1:{others.port}/peer.test:1"
    async with (
        channels.open_channel(f"dns://127.0.0.1:{names.port}/peer.test:1", Role.ROUTER) as channel,
        grpc.aio.insecure_channel(plain, channels.options(1 << 20)) as left_alone,
    ):
        assert not await _answers(channel)
        assert not await _answers(left_alone)
        for _ in range(60):
            await _answers(channel)
            await _answers(left_alone)
            await asyncio.sleep(0.1)
    others.close()
    assert names.asked > 2 * others.asked


async def test_calls_over_an_old_connection_live_on_beside_those_over_a_new_one(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "RENEWAL_INTERVAL_S", 0.2)
    before, port = await _serve(FIRST)
    async with channels.open_channel(
        f"dns://127.0.0.1:{names.port}/peer.test:{port}", Role.ROUTER
    ) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert isinstance(await watch.read(), health_pb2.HealthCheckResponse)
        names.address = None
        stopping = asyncio.create_task(before.stop(30))
        await _silent(channel, 3.0)
        after, _ = await _serve(SECOND, port)
        names.address = SECOND
        assert await _silent(channel, 60.0) < 60.0
        assert not watch.done()
        watch.cancel()
        await stopping
        await after.stop(0)


async def test_a_channel_is_not_looked_up_when_nobody_calls(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "RENEWAL_INTERVAL_S", 0.05)
    monkeypatch.setattr(renewal, "INTEREST_S", 0.5)
    names.address = None
    async with channels.open_channel(
        f"dns://127.0.0.1:{names.port}/peer.test:1", Role.ROUTER
    ) as channel:
        assert await _silent(channel, 2.0) >= 2.0
        (looking,) = asyncio.all_tasks() - {asyncio.current_task()}
        await looking
        looks = names.asked
        assert await _silent(channel, 2.0) >= 2.0
        assert names.asked > looks + 2
