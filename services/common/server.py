"""The gRPC server every service runs: interceptors, health, reflection, graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from opentelemetry.trace import SpanKind
from prometheus_client import Gauge

from services.common import channels, guards, logs, telemetry
from services.common.errors import ShuntError
from services.common.guards import Continuation, Handler
from services.common.settings import ServiceSettings, refuse
from services.common.statuses import abort_with

_log = logging.getLogger(__name__)
_END = Gauge(
    "shunt_certificate_end_timestamp_seconds",
    "When the certificate that this process shows ends.",
    ["file"],
)


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """A server span for each unary-request RPC; long-lived client streams make their own."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        name = handler_call_details.method.lstrip("/")
        if handler is None or handler.request_streaming or name.startswith("grpc."):
            return handler
        pairs = dict(handler_call_details.invocation_metadata or ())
        parent = telemetry.parent_of(str(pairs.get("traceparent", "")))
        if parent is None:
            return handler
        if handler.response_streaming:
            inner_stream = handler.unary_stream

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                with telemetry.span(name, kind=SpanKind.SERVER, parent=parent):
                    async for message in inner_stream(request, context):
                        yield message

            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        inner_unary = handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            with telemetry.span(name, kind=SpanKind.SERVER, parent=parent):
                return await inner_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary, handler.request_deserializer, handler.response_serializer
        )


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns domain errors into statuses and hands the caller's deadline and request id on."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour: Any = _streaming(
                handler.stream_stream if handler.request_streaming else handler.unary_stream
            )
        else:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            behaviour = _unary(
                handler.stream_unary if handler.request_streaming else handler.unary_unary
            )
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _begin(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """What the caller handed on: how long it waits, and the id of the request it asks for."""
    channels.hand_on_deadline(context.time_remaining())
    pairs = dict(context.invocation_metadata() or ())
    if request_id := str(pairs.get(logs.REQUEST_ID_HEADER, "")):
        logs.about(request_id=logs.request_id_from(request_id))


def _unary(inner: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        _begin(context)
        try:
            return await inner(request, context)
        except ShuntError as error:
            await abort_with(context, error)

    return call


def _streaming(inner: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        _begin(context)
        try:
            async for message in inner(request, context):
                yield message
        except ShuntError as error:
            await abort_with(context, error)

    return call


class Server:
    """A service's gRPC server: add servicers to `grpc_server`, then start, and stop at the end."""

    def __init__(
        self,
        settings: ServiceSettings,
        service_names: Sequence[str],
        own_guards: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """`own_guards` stand behind those that every service has."""
        self._settings = settings
        self._names = tuple(service_names)
        self.grpc_server = grpc.aio.server(
            interceptors=[
                TelemetryInterceptor(),
                ErrorInterceptor(),
                *guards.guards_of(settings),
                *own_guards,
            ],
            options=channels.options(settings.max_message_bytes),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        if settings.environment == "development":
            names = (*self._names, reflection.SERVICE_NAME, "grpc.health.v1.Health")
            reflection.enable_server_reflection(names, self.grpc_server)
        self._bound: channels.Bound | None = None

    @property
    def port(self) -> int:
        """0 before it is bound."""
        return 0 if self._bound is None else self._bound.port

    async def start(self) -> int:
        """Binds and serves, health NOT_SERVING until `set_ready(True)`; returns the port. Exits 2
        and names the setting when it cannot be had."""
        address = channels.address_of(self._settings.host, self._settings.grpc_port)
        try:
            self._bound = channels.bind(self.grpc_server, address, self._settings.tls)
        except RuntimeError:
            refuse(self._settings.name_of("grpc_port"), f"cannot listen on {address}")
        if self._settings.tls.enabled:
            files = channels.files_of(self._settings.tls)
            _END.labels(self._settings.tls.certificate).set_function(
                lambda: guards.end_of(files.newest().certificate).timestamp()
            )
        await self.set_ready(False)
        await self.grpc_server.start()
        return self.port

    async def set_ready(self, ready: bool) -> None:
        """Tells health checkers whether to send work here."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Stops taking work, ends what runs after the grace. Open health watches would hold it."""
        await self._health.enter_graceful_shutdown()
        await self.grpc_server.stop(self._settings.shutdown_grace_s)


class Signals:
    """SIGTERM and SIGINT to this process, one after another: the first asks a service to leave in
    good order, the second to end at once."""

    def __init__(self) -> None:
        """From here on neither ends the process by itself."""
        loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[signal.Signals] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came.put_nowait, number)

    async def next(self) -> signal.Signals:
        """The next one that comes, or has come already."""
        number = await self._came.get()
        _log.info("told to stop", extra={"signal": number.name})
        return number


async def until_signal() -> None:
    """Waits for SIGTERM or SIGINT."""
    await Signals().next()
