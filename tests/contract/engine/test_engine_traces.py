from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from tests.contract.engine.rig import Rig, generate, request
from tests.contract.engine.tiny import expected_ids
from tests.log_lines import log_lines

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", trace.get_tracer("test", tracer_provider=provider))
    return exporter


def _trace_id(number: int) -> int:
    return 0xA0 + number


def _of(spans: InMemorySpanExporter, number: int) -> list[ReadableSpan]:
    found = spans.get_finished_spans()
    return [span for span in found if span.context and span.context.trace_id == _trace_id(number)]


async def test_each_request_is_one_trace_through_every_stage(
    rig: Rig, spans: InMemorySpanExporter
) -> None:
    workers = [await rig.worker() for _ in range(3)]
    await rig.form(workers, [2, 4], "f1")
    streams = [
        generate(
            workers[0],
            request(f"g{i}", [i, *PROMPT], 30),
            "f1",
            metadata=(("traceparent", f"00-{_trace_id(i):032x}-{i + 1:016x}-01"),),
        )
        for i in range(4)
    ]
    for i, stream in enumerate(await asyncio.gather(*(s.end() for s in streams))):
        assert stream.ids[0] == expected_ids([i, *PROMPT], 30)
    for i in range(4):
        mine = _of(spans, i)
        steps = [span for span in mine if span.name == "engine.step"]
        stages = [span for span in mine if span.name == "engine.stage"]
        phases = [step.attributes["shunt.phase"] for step in steps if step.attributes]
        assert sorted(map(str, phases)) == ["decode", "prefill"]
        for step in steps:
            below = [s for s in stages if s.parent and s.parent.span_id == step.context.span_id]
            numbers = [s.attributes["shunt.stage"] for s in below if s.attributes]
            assert sorted(numbers) == [0, 1, 2]  # type: ignore[type-var]
        server = next(span for span in mine if span.name.endswith("Generate"))
        assert {step.parent.span_id for step in steps if step.parent} == {server.context.span_id}


async def test_an_untraced_request_makes_no_span(rig: Rig, spans: InMemorySpanExporter) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [2], "f1")
    await generate(workers[0], request("g", PROMPT, 30), "f1").end()
    named = {span.name for span in spans.get_finished_spans()}
    assert named == {"engine.load"}, "of the stages, before it"


async def test_the_head_tells_once_that_a_generation_begins_and_by_whose_request(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    asked = (worker, request("g1", PROMPT, 5), "f1")
    with log_lines() as lines:
        for _ in range(2):  # the second attaches to what the first began
            await generate(*asked, metadata=(("x-request-id", "mine-1"),)).end()
    (line,) = lines.named("generation begins")
    assert (line["generation_id"], line["request_id"], line["epoch"]) == ("g1", "mine-1", 1)
