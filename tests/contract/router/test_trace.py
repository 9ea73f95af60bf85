"""One request is one trace, and no text is in it."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, telemetry
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer("test"))
    return exporter


async def test_a_request_over_a_kill_is_one_trace_of_the_callers(
    spans: InMemorySpanExporter, mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.limit = 10

    async def kill() -> None:
        async with asyncio.timeout(60):
            while mesh.sampled < 10:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await mesh.kill(mesh.calls[0][0])
        mesh.limit = 1 << 30

    killer = asyncio.create_task(kill())
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    told = await ask(http, headers={"traceparent": f"00-{trace_id}-{span_id}-01"}, stop=" and then")
    await killer
    assert told.text() == REPLY[: REPLY.index(" and then")]
    served = next(s for s in spans.get_finished_spans() if s.name.startswith("POST"))
    assert served.context is not None
    assert f"{served.context.trace_id:032x}" == trace_id
    assert served.parent is not None
    assert f"{served.parent.span_id:016x}" == span_id
    heard = [who for who, traceparent in mesh.traceparents if traceparent[3:35] == trace_id]
    assert heard.count("head") >= 2
    assert "controller" in heard
    attributes = " ".join(str(v) for s in spans.get_finished_spans() for v in s.attributes.values())
    assert "capital" not in attributes
    assert told.generation_id in attributes


async def test_a_recovery_begun_by_silence_belongs_to_the_trace(
    spans: InMemorySpanExporter, mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.silent[0] = mesh.silent[1] = True

    async def wake() -> None:
        async with asyncio.timeout(60):
            while not mesh.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            mesh.stall(True, True)
            while "controller" not in [who for who, _ in mesh.traceparents]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        mesh.silent[:] = [False, False]
        mesh.stall(False, False)

    waker = asyncio.create_task(wake())
    told = await ask(http)
    await waker
    assert told.text() == REPLY
    assert len({traceparent[3:35] for _, traceparent in mesh.traceparents}) == 1
    assert all(traceparent for _, traceparent in mesh.traceparents)


@pytest.mark.parametrize("caller", [(), (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),)])
async def test_a_request_over_grpc_is_one_trace_too(
    spans: InMemorySpanExporter, mesh: FakeMesh, router: RunningDoors, caller: Any
) -> None:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.GenerateRequest(model="tiny", text="hi")
        events = [e async for e in stub.Generate(request, timeout=60, metadata=caller)]
        again = router_pb2.ResumeRequest(generation_id=events[0].generation_id)
        [_ async for _ in stub.Resume(again, timeout=60, metadata=caller)]
    roots = [s for s in spans.get_finished_spans() if "shunt.generation_id" in s.attributes]
    assert len(roots) == 2
    traces = [f"{s.context.trace_id:032x}" for s in roots if s.context is not None]
    assert (traces == ["ab" * 16] * 2) is bool(caller)
    heard = {traceparent[3:35] for _, traceparent in mesh.traceparents}
    assert heard == {traces[0]}


async def test_two_requests_are_two_traces(
    spans: InMemorySpanExporter, mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    await asyncio.gather(ask(http), ask(http))
    traces = {traceparent[3:35] for _, traceparent in mesh.traceparents}
    assert len(traces) == 2


async def test_no_text_is_logged(
    http: httpx.AsyncClient, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = "a phrase that nobody else would use"
    await ask(http, messages=[{"role": "user", "content": secret}])
    await http.post("/v1/chat/completions", json={"model": "tiny", "messages": secret})
    logged = " ".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert secret not in logged
    assert REPLY[:20] not in logged
