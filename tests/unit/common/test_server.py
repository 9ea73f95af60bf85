from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channel_options, channels, health, telemetry
from services.common.errors import NotFound, Superseded
from services.common.roles import Role
from services.common.server import Server
from services.common.settings import ServiceSettings
from services.common.statuses import from_rpc_error

NAME = "shuntserve.router.v1.RouterService"


class _Router(router_pb2_grpc.RouterServiceServicer):
    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.traceparents: list[str] = []

    async def Cancel(self, request: Any, context: Any) -> Any:
        self.timeouts.append(channels.timeout(100.0))
        self.traceparents.append(telemetry.traceparent())
        if request.generation_id == "unknown":
            raise NotFound("no generation of that name", field="generation_id")
        return router_pb2.CancelResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield router_pb2.GenerateResponse(generation_id="g")
        raise Superseded("a newer reader took over")


@asynccontextmanager
async def _serving(**settings: Any) -> AsyncIterator[tuple[_Router, str, Server]]:
    server, servicer = Server(ServiceSettings(shutdown_grace_s=0, **settings), [NAME]), _Router()
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.grpc_server)
    port = await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}", server
    finally:
        await server.stop()


async def test_a_domain_error_reaches_the_client_with_its_field() -> None:
    async with (
        _serving() as (_, address, _),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Cancel(router_pb2.CancelRequest(generation_id="unknown"), timeout=60)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        error = from_rpc_error(failed.value)
        assert isinstance(error, NotFound)
        assert error.field == "generation_id"


async def test_an_error_in_mid_stream_comes_after_what_was_sent() -> None:
    async with (
        _serving() as (_, address, _),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        call = router_pb2_grpc.RouterServiceStub(channel).Generate(
            router_pb2.GenerateRequest(), timeout=60
        )
        assert (await call.read()).generation_id == "g"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert isinstance(from_rpc_error(failed.value), Superseded)


async def test_the_callers_deadline_bounds_the_calls_made_for_it() -> None:
    async with (
        _serving() as (servicer, address, _),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        await stub.Cancel(router_pb2.CancelRequest(), timeout=7)
        assert 0 < servicer.timeouts[0] < 8  # the wire rounds deadlines
        await stub.Cancel(router_pb2.CancelRequest())
        assert servicer.timeouts[1] == 100.0


async def test_health_follows_readiness() -> None:
    async with (
        _serving() as (_, address, server),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=NAME)
        before = await stub.Check(request, timeout=60)
        await server.set_ready(True)
        after = await stub.Check(request, timeout=60)
        assert before.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert after.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(ServiceSettings(grpc_port=taken.getsockname()[1]), [NAME])
        with pytest.raises(SystemExit) as stop:
            await server.start()
        assert stop.value.code == 2
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"GRPC_PORT: cannot listen on {address}" in capsys.readouterr().err
        await server.grpc_server.stop(0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_an_ipv6_host_is_bound_and_reached() -> None:
    server = Server(ServiceSettings(host="::1", shutdown_grace_s=0), [NAME])
    port = await server.start()
    assert await health.is_serving(channels.address_of("::1", port), Role.ROUTER) is False
    await server.set_ready(True)
    assert await health.is_serving(channels.address_of("::1", port), Role.ROUTER)
    await server.stop()


async def test_two_servers_never_share_a_port() -> None:
    async with _serving() as (_, address, _):
        second = Server(ServiceSettings(grpc_port=int(address.rsplit(":", 1)[1])), [NAME])
        with pytest.raises(SystemExit):
            await second.start()
        await second.grpc_server.stop(0)


async def test_a_trace_goes_on_across_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer("test"))
    async with (
        _serving() as (servicer, address, _),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        with telemetry.span("client") as client:
            await stub.Cancel(router_pb2.CancelRequest(), timeout=60, metadata=telemetry.metadata())
        await stub.Cancel(router_pb2.CancelRequest(), timeout=60)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    served = spans[f"{NAME}/Cancel"]
    assert served.context.trace_id == client.get_span_context().trace_id
    assert served.parent is not None
    assert served.parent.span_id == client.get_span_context().span_id
    assert servicer.traceparents[1] == ""


async def test_an_idle_connection_outlives_many_keepalives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_options, "KEEPALIVE_INTERVAL_S", 0.05)
    async with (
        _serving() as (_, address, _),
        channels.open_channel(address, Role.ROUTER) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=60)
        await watch.read()
        states: list[grpc.ChannelConnectivity] = []
        for _ in range(10):
            await asyncio.sleep(0.05)
            states.append(channel.get_state())
        assert set(states) == {grpc.ChannelConnectivity.READY}
        watch.cancel()


@asynccontextmanager
async def _wire_to(address: str, cut: asyncio.Event) -> AsyncIterator[str]:
    """A way to the address on which, once cut, nothing passes and nobody is told."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if cut.is_set():
                return
            writer.write(data)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*address.split(":"))
        ends.extend((writer, far_writer))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    ends: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for end in ends:
            end.close()


async def test_a_call_to_a_host_that_vanished_ends_long_before_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_options, "KEEPALIVE_INTERVAL_S", 0.2)
    monkeypatch.setattr(channel_options, "KEEPALIVE_TIMEOUT_S", 2.0)
    cut = asyncio.Event()
    async with (
        _serving() as (_, address, _),
        _wire_to(address, cut) as wire,
        channels.open_channel(wire, Role.ROUTER) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=60)
        await watch.read()
        cut.set()
        async with asyncio.timeout(60):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watch.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_no_trace_is_handed_on_where_none_runs() -> None:
    assert telemetry.metadata() == ()
    assert telemetry.parent_of("") is None
    assert not trace.get_current_span().get_span_context().is_valid
