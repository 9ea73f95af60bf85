from __future__ import annotations

import asyncio
import os
import secrets
import signal

import httpx

from bench import mesh as meshes
from bench.otlp import ReceivedSpan, Receiver


def _engines(spans: list[ReceivedSpan]) -> set[str]:
    return {span.instance for span in spans if span.service == "shuntserve-engine"}


def _services(spans: list[ReceivedSpan]) -> set[str]:
    return {span.service.removeprefix("shuntserve-") for span in spans}


def _roots(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    ids = {span.span_id for span in spans}
    return [span for span in spans if span.parent_id not in ids]


async def test_a_request_is_one_trace_through_every_stage_and_over_a_migration(
    ready: meshes.Mesh, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    trace_id = secrets.token_hex(16)
    client.headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    record = meshes.StreamRecord()
    body = meshes.request_bodies(150)[1] | {"ignore_eos": True}
    task = asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
    await meshes.until(lambda: len(record.arrivals_s) > 10)
    status = await ready.status()
    generation = next(g for g in status["generations"] if g["id"] == record.generation_id)
    pipeline = next(p for p in status["pipelines"] if p["id"] == generation["pipeline"])
    first = {stage["node"] for stage in pipeline["stages"]}
    tail = next(n for n in status["nodes"] if n["id"] == pipeline["stages"][-1]["node"])
    os.kill(tail["pid"], signal.SIGKILL)
    await task
    assert record.complete, record.error

    def complete(spans: list[ReceivedSpan]) -> bool:
        heads_first = _engines(spans) & first
        return (
            {"router", "controller", "engine"} <= _services(spans)
            and bool(heads_first)
            and len(_engines(spans) - first) >= 2
            and len(_roots(spans)) == 1
        )

    spans = await asyncio.to_thread(receiver.until, trace_id, complete, 60.0)
    assert {"router", "controller", "engine"} <= _services(spans)
    assert _engines(spans) & first, "no span of the pipeline that began it"
    assert len(_engines(spans) - first) >= 2, "not every stage of the pipeline that ended it"
    assert len(_roots(spans)) == 1, [span.name for span in _roots(spans)]
    words = record.text.split()[:4]
    assert words
    told = " ".join(value for span in spans for value in span.attributes.values())
    assert " ".join(words) not in told
    assert body["messages"][0]["content"] not in told
    await ready.until_ready(2)


async def test_starts_of_nodes_and_loads_of_stages_are_traces_of_their_parts(
    ready: meshes.Mesh, receiver: Receiver
) -> None:
    parts = {f"engine.load.{name}" for name in ("open", "arithmetic", "weights", "pack")}
    parts.add("engine.load.self_test")

    def loads() -> list[tuple[ReceivedSpan, list[ReceivedSpan]]]:
        spans = receiver.spans()
        whole = [span for span in spans if span.name == "engine.load"]
        return [(one, [s for s in spans if s.parent_id == one.span_id]) for one in whole]

    await meshes.until(lambda: any(parts <= {s.name for s in inner} for _, inner in loads()))
    for whole, inner in loads():
        assert {span.trace_id for span in inner} <= {whole.trace_id}
        assert sum(span.took_s for span in inner) <= whole.took_s + 1e-3
    starts = [span for span in receiver.spans() if span.name == "engine.start"]
    assert starts
    assert all(span.took_s > 0 for span in starts)
