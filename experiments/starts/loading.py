"""`python -m experiments.starts.loading STORE`: loads half of a model as an engine does, and prints
the seconds of each part as JSON."""

from __future__ import annotations

import json
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.native.loader import NativeLoader, NativeOptions

HALF = 15
"""Layers of the model that a mesh has where nobody names one."""


def loaded(store: str, model: ModelRef) -> dict[str, float]:
    """Seconds by span."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    loader = NativeLoader(NativeOptions(store, "bf16", "cpu", 1, None))
    loader.warm()
    loader.load(model, StageSpec(LayerRange(0, HALF), 1), lambda *_: None).close()
    return {
        one.name: (one.end_time - one.start_time) / 1e9
        for one in spans.get_finished_spans()
        if one.end_time is not None and one.start_time is not None
    }


if __name__ == "__main__":
    print(json.dumps(loaded(sys.argv[1], ModelRef(sys.argv[2], sys.argv[3]))))
