"""As many connections to another engine as are of use, against servers that see who calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common.channel_options import MAX_MESSAGE_BYTES, options
from services.common.channels import open_channel
from services.common.roles import Role
from services.engine.peers import Peers
from tests.waiting import until

WAIT_S = 60.0


class Peer(engine_pb2_grpc.EngineServiceServicer):
    """An engine that ends whatever it is told to, and remembers over which connections."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        self.connections: set[str] = set()
        self.held = asyncio.Event()
        self.held.set()

    async def EndKv(
        self, request: engine_pb2.EndKvRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.EndKvResponse:
        self.connections.add(context.peer())
        await self.held.wait()
        return engine_pb2.EndKvResponse()


@asynccontextmanager
async def running() -> AsyncIterator[Peer]:
    server = grpc.aio.server(options=[*options(MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)])
    peer = Peer(server)
    engine_pb2_grpc.add_EngineServiceServicer_to_server(peer, server)
    await server.start()
    try:
        yield peer
    finally:
        await server.stop(None)


@asynccontextmanager
async def peers(
    *, apart: bool = False, opened: list[str] | None = None, **limits: Any
) -> AsyncIterator[Peers]:
    """Notes in `opened` to whom channels are."""

    def connect(address: str) -> grpc.aio.Channel:
        if opened is not None:
            opened.append(address)
        return open_channel(address, Role.ENGINE, apart=apart)

    found = Peers(connect, apart=apart, **limits)
    try:
        yield found
    finally:
        await found.close()
        assert not len(found)


async def call(found: Peers, peer: Peer) -> None:
    async with found.to(peer.address) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        await stub.EndKv(engine_pb2.EndKvRequest(), timeout=WAIT_S)


async def test_calls_one_after_another_and_side_by_side_go_over_one_connection() -> None:
    async with running() as peer, running() as other, peers() as found:
        for _ in range(3):
            await call(found, peer)
        await asyncio.gather(*(call(found, peer) for _ in range(5)))
        assert (len(peer.connections), len(found)) == (1, 1)
        await call(found, other)
        await call(found, peer)
        assert (len(peer.connections), len(other.connections), len(found)) == (1, 1, 2)


async def test_who_reads_apart_shares_no_connection_and_hands_it_on() -> None:
    async with running() as peer, peers(apart=True) as found:
        peer.held.clear()
        calls = [asyncio.create_task(call(found, peer)) for _ in range(2)]
        await until(lambda: len(peer.connections) == 2)
        peer.held.set()
        await asyncio.gather(*calls)
        for _ in range(3):
            await call(found, peer)
        await asyncio.gather(call(found, peer), call(found, peer))
        assert (len(peer.connections), len(found)) == (2, 2)


async def test_a_channel_is_closed_with_its_peer() -> None:
    async with peers() as found:
        async with running() as peer:
            await call(found, peer)
            assert len(found) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call(found, peer)
        await until(lambda: not len(found))


async def test_a_channel_that_nobody_uses_is_closed_and_one_in_use_is_not() -> None:
    opened: list[str] = []
    async with running() as peer, peers(idle_s=0.01, opened=opened) as found:
        peer.held.clear()
        calling = asyncio.create_task(call(found, peer))
        await until(lambda: peer.connections)
        await asyncio.sleep(0.05)
        assert len(found) == 1
        peer.held.set()
        await calling
        await until(lambda: not len(found))
        await call(found, peer)
        assert len(opened) == 2


async def test_of_many_that_nobody_uses_the_one_goes_that_was_left_longest_ago() -> None:
    opened: list[str] = []
    async with (
        running() as one,
        running() as two,
        running() as three,
        peers(most_idle=2, opened=opened) as found,
    ):
        for peer in (one, two, one, three, one, three):
            await call(found, peer)
        assert len(found) == 2
        assert opened == [one.address, two.address, three.address]
        await call(found, two)
        assert opened[3:] == [two.address]
