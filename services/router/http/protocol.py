"""uvicorn's HTTP/1.1 protocol with the limits it lacks: header bytes, header time, connections.

An offer to change the protocol (Java's client and `curl --http2` make one with every request) is
declined by answering in HTTP/1.1. The parser, which stops at such a request, is given it again
without the offer. HTTP/1.0 knows no chunks: an answer of unknown length ends with its connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.common import logs
from services.router.http.cors import Cors
from services.router.http.errors import HttpError, body_of, retry_headers, status_of
from services.router.settings import RouterSettings

_log = logging.getLogger(__name__)
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
ABORT = "shunt.abort"
LINGER_S = 1.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time


def limited(settings: RouterSettings) -> type[HttpToolsProtocol]:
    """The protocol class for one router's limits."""
    cors = Cors(settings.cors_origins)

    class LimitedProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _in_headers = True
        _header_timer: asyncio.TimerHandle | None = None
        _refusal: HttpError | None = None
        _refused = False
        _lost = False
        _again = b""
        """The head of a request at which the parser stops, as it is to be given to a new one."""
        _running: RequestResponseCycle | None = None
        """The request that is being answered; others may have been sent ahead behind it."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._begin_headers()
            if len(self.connections) > settings.max_connections:
                self._refuse(HttpError(503, "overloaded", "too many connections"))

        def connection_lost(self, exc: Exception | None) -> None:
            self._lost = True
            self._end_headers()
            super().connection_lost(exc)  # which tells the newest request only
            self._give_up_running()

        def _give_up_running(self) -> bool:
            """The request that is being answered hears that its client has gone, and what is still
            written for it goes nowhere. True when its answer had begun."""
            running = self._running
            if running is None or running.response_complete:
                return False
            running.disconnected = True
            running.message_event.set()
            return running.response_started

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._running = cycle
            if cycle.scope["http_version"] == "1.0":
                app = _Unchunked(app, cycle)
            super()._start_asgi_task(cycle, app)

        def data_received(self, data: bytes) -> None:
            if self._refused or self.transport.is_closing():
                return
            if self._in_headers:
                self._header_bytes += len(data)
            self._unset_keepalive_if_required()
            self._feed(data)
            if self._in_headers and self._header_bytes > settings.max_header_bytes:
                self._refuse(_too_large(f"headers have over {settings.max_header_bytes} bytes"))
            elif self._header_timer is None and self.cycle and self.cycle.response_complete:
                # Bytes that begin no request, the rest of a body that nobody wanted say, have
                # ended the server's own keep-alive timer.
                self._arm()

        def _feed(self, data: bytes) -> None:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as stopped:
                    data = self._again + data[stopped.args[0] :]
                    self._again = b""
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as before
                except httptools.HttpParserError:
                    self.send_400_response("this is not HTTP/1.1")
                    return

        def on_message_begin(self) -> None:
            if not self._in_headers:
                self._begin_headers()
            super().on_message_begin()
            self.scope["extensions"] = {ABORT: {"call": self._cut}}

        def on_chunk_header(self) -> None:
            # Behind the last one come trailers, and those are kept as headers are.
            self._in_headers, self._header_bytes = True, 0

        def on_body(self, body: bytes) -> None:
            self._in_headers = False
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_headers = False
            if not self._again:
                super().on_message_complete()

        def on_headers_complete(self) -> None:
            self._end_headers()
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if len(self.headers) > settings.max_headers:
                self._refusal = _too_large(f"over {settings.max_headers} headers")
            elif size > settings.max_header_bytes:
                self._refusal = _too_large(f"headers have over {settings.max_header_bytes} bytes")
            elif self.parser.get_method() == b"CONNECT":
                self._refusal = HttpError(400, "bad_request", "this is no proxy")
            elif self.parser.should_upgrade():
                self._again = self._without_offer()
            elif len(self.pipeline) >= settings.max_requests_ahead:
                ahead = f"over {settings.max_requests_ahead} requests sent ahead"
                self._refusal = HttpError(400, "bad_request", ahead)
            if self._refusal is not None:
                raise ValueError("refused")  # the parser stops, send_400_response answers
            if self._again:
                return
            super().on_headers_complete()
            assert self.cycle is not None
            # uvicorn keeps no connection of HTTP/1.0 open, not even for who asked.
            self.cycle.keep_alive = self.parser.should_keep_alive()

        def _without_offer(self) -> bytes:
            """The head of the request that has just been parsed, less its offer of a protocol."""
            version, offer = self.parser.get_http_version(), {b"upgrade", b"http2-settings"}
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version.encode())]
            for name, value in self.headers:
                if name == b"connection":
                    options = [option.strip() for option in value.split(b",")]
                    value = b", ".join(option for option in options if option.lower() not in offer)
                if name not in offer:
                    lines.append(b"%s: %s" % (name, value))
            return b"\r\n".join([*lines, b"", b""])

        def send_400_response(self, msg: str) -> None:
            self._refuse(self._refusal or HttpError(400, "bad_request", msg))

        def _cut(self) -> None:
            """Ends the connection at once: the kernel keeps nothing for a client that is deaf."""
            if self._lost:
                return
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

        def _begin_headers(self) -> None:
            self._end_headers()
            self._in_headers, self._header_bytes = True, 0
            self._arm()

        def _arm(self) -> None:
            self._header_timer = self.loop.call_later(settings.header_timeout_s, self._late)

        def _end_headers(self) -> None:
            self._in_headers = False
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _late(self) -> None:
            self._refuse(HttpError(408, "request_timeout", "the request's headers took too long"))

        def _refuse(self, error: HttpError) -> None:
            if self._refused or self.transport.is_closing():
                return
            self._refused = True
            self._end_headers()
            if self._give_up_running():
                self.transport.close()  # a refusal within another answer is none
                return
            status, body, request_id = status_of(error), body_of(error), logs.request_id_from("")
            _log.info(
                "refused before its route",
                extra={"status": status, "code": error.code, "request_id": request_id},
            )
            lines = [
                f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                f"{logs.REQUEST_ID_HEADER}: {request_id}",
                *(f"{name.decode()}: {value.decode()}" for name, value in cors.headers({})),
                *(f"{name}: {value}" for name, value in retry_headers(error).items()),
                "connection: close",
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            self.transport.write_eof()
            # Closing with bytes unread would reset the connection before the answer is read.
            self.loop.call_later(LINGER_S, self.transport.close)

    return LimitedProtocol


def abort_of(scope: Any) -> Any:
    """Cuts a request's connection without waiting for what the client has not read."""
    return scope.get("extensions", {}).get(ABORT, {}).get("call")


class _Unchunked:
    """An application for a client of HTTP/1.0. What has no length ends with its connection; a
    connection that goes on is to be named in the answer."""

    def __init__(self, app: Any, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self._cycle

        endless = False

        async def unchunked(message: Message) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                endless = b"content-length" not in names
                if endless:
                    cycle.chunked_encoding, cycle.keep_alive = False, False
                elif cycle.keep_alive and b"connection" not in names:
                    message["headers"] = [*message["headers"], (b"connection", b"keep-alive")]
            elif endless:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, unchunked)


def _too_large(message: str) -> HttpError:
    return HttpError(431, "headers_too_large", message)
