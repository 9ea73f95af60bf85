"""Traces and metrics: one trace a request, from HTTP through every stage and over migrations.

Spans go out over OTLP, by gRPC or HTTP, when OTEL_EXPORTER_OTLP_ENDPOINT (or its traces variant)
is set; OTEL_EXPORTER_OTLP_PROTOCOL says which
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/).
Context crosses RPCs as a W3C traceparent in the metadata, and the activation streams in a field.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common import logs, metrics_page
from services.common.metrics_page import NO_PAGES, Page
from services.common.settings import refuse

_log = logging.getLogger(__name__)
_PROPAGATOR = TraceContextTextMapPropagator()
_OTLP = "OTEL_EXPORTER_OTLP_"
_GRPC, _HTTP = "grpc", "http/protobuf"
_HTTP_PORT = 4318
_EXPORT_TIMEOUT_S = 2.0
_SHUTDOWN_S = 2.0
_NAME = "shuntserve"
tracer: trace.Tracer = trace.NoOpTracer()
"""Of this process; records nothing until `configure` finds somewhere for spans to go."""


def configure(
    service: str,
    instance_id: str,
    *,
    metrics_host: str,
    metrics_port: int | None,
    pages: Mapping[str, Page] = NO_PAGES,
) -> int:
    """Starts the exporters this process needs; call once, before the first span. Returns the port
    of the metrics, 0 where there are none; `pages` are shown beside them, by path. Exits 2 and
    names the setting when that port cannot be had, or spans cannot go out as it says."""
    global tracer
    exporter = _exporter()
    if exporter is not None:
        resource = Resource.create(
            {"service.name": f"shuntserve-{service}", "service.instance.id": instance_id}
        )
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        trace.set_tracer_provider(provider)
        tracer = trace.get_tracer(_NAME)
    if metrics_port is None:
        return 0
    return _serve_metrics(service, metrics_host, metrics_port, pages)


def _exporter() -> SpanExporter | None:
    """What sends spans, None where no endpoint is set; it reads everything else it is told by the
    standard's variables itself."""
    name, endpoint = _told("ENDPOINT")
    if not endpoint:
        return None
    asked_by, protocol = _told("PROTOCOL")
    if protocol not in ("", _GRPC, _HTTP):
        refuse(asked_by, f"{protocol}: spans go out by {_GRPC} or {_HTTP}")
    try:
        port = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").port
    except ValueError:
        refuse(name, "it is no URL")
    if (protocol or (_HTTP if port == _HTTP_PORT else _GRPC)) == _GRPC:
        return _over_grpc()
    if not endpoint.startswith(("http://", "https://")):
        refuse(name, f"by {_HTTP} it begins with http:// or https://")
    return _over_http()


def _over_grpc() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(timeout=_EXPORT_TIMEOUT_S)


def _over_http() -> SpanExporter:  # its imports take a while: only who sends that way waits
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(timeout=_EXPORT_TIMEOUT_S)


def _told(what: str) -> tuple[str, str]:
    """A variable of the standard and its value: the one for traces before the one for all."""
    for name in (f"{_OTLP}TRACES_{what}", f"{_OTLP}{what}"):
        if os.environ.get(name):
            return name, os.environ[name]
    return "", ""


def _serve_metrics(service: str, host: str, port: int, pages: Mapping[str, Page]) -> int:
    try:
        mine = metrics_page.serve(host, port, pages)
    except OSError as error:
        refuse(f"SHUNT_{service.upper()}_METRICS_PORT", f"{host}:{port}: {error.strerror or error}")
    _log.info("metrics", extra={"address": f"{host}:{mine}"})
    return mine


def shutdown() -> None:
    """Sends the spans that still wait, as many as go out within `_SHUTDOWN_S`: each batch may take
    its whole timeout, and one may be on its way already."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        sending.join(_SHUTDOWN_S)


def traceparent() -> str:
    """The current span as a W3C traceparent; empty when nothing is traced."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def parent_of(value: str) -> Context | None:
    """The context a traceparent names, or None."""
    return _PROPAGATOR.extract({"traceparent": value}) if value else None


def metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that hands the current span, and the id of the request, to the callee."""
    pairs = (("traceparent", traceparent()), (logs.REQUEST_ID_HEADER, logs.request_id()))
    return tuple((name, value) for name, value in pairs if value)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Context | None = None,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Iterator[Span]:
    """A span that is current inside the block; an error that leaves the block marks it."""
    if parent is None and isinstance(tracer, trace.NoOpTracer):
        yield trace.get_current_span()  # nothing is recorded, and whose trace it is stays so
        return
    with tracer.start_as_current_span(
        name, context=parent, kind=kind, attributes=dict(attributes or {})
    ) as current:
        yield current


@contextmanager
def entry(name: str) -> Iterator[Span]:
    """The span of a request that enters the mesh: the current one if its caller began a trace,
    else the root of a new one."""
    current = trace.get_current_span()
    if current.get_span_context().is_valid:
        yield current
        return
    with span(name, kind=SpanKind.SERVER) as root:
        yield root
