from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from services.engine.starting import StartTrace

SAYS_WHEN = """
import time
began_ns = time.time_ns()
from services.engine.starting import made_unix_ns
print(made_unix_ns(), began_ns)
"""
TICK_NS = 20_000_000
"""The system tells it in hundredths of a second."""


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5)")
def test_a_process_knows_when_it_was_made_however_long_its_imports_take() -> None:
    before_ns = time.time_ns()
    said = subprocess.run([sys.executable, "-c", SAYS_WHEN], check=True, capture_output=True)
    made_ns, began_ns = map(int, said.stdout.split())
    assert before_ns - TICK_NS <= made_ns <= began_ns, "before its first line, imports or not"


def test_a_start_is_a_trace_with_its_imports_and_ends_once(monkeypatch: Any) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer("test"))
    start = StartTrace()
    assert [one.name for one in spans.get_finished_spans()] == ["engine.imports"]
    start.registered()
    start.registered()
    imports, whole = spans.get_finished_spans()
    assert whole.name == "engine.start"
    assert imports.parent is not None
    assert imports.parent.span_id == whole.context.span_id
    assert imports.start_time == whole.start_time
    assert whole.end_time >= imports.end_time
