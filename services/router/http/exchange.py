"""One HTTP request and its answer over ASGI, with limits on size and time in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope, Send

from services.common.errors import InvalidArgument, ShuntError
from services.router.core.body_budget import BodyBudget
from services.router.http.access import visit_of
from services.router.http.errors import (
    HttpError,
    body_of,
    is_worth_no_retry,
    retry_headers,
    status_of,
)
from services.router.http.guard import tenant_of
from services.router.http.protocol import abort_of
from services.router.settings import RouterSettings

FORM = "application/x-www-form-urlencoded"
LEAST_BYTES_PER_S = 64 << 10
"""Of a body that may be long: what it may take in all grows with what has come."""
DRAIN_BODIES = 4
"""A body that is too large is read this many times over its limit, so that its sender hears why."""


def _nothing() -> None:
    pass


class Exchange:
    """Reads the request's body once, then writes one answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: RouterSettings,
        bodies: BodyBudget,
    ) -> None:
        self.scope = scope
        self.tenant = tenant_of(scope)
        """Whose request it is."""
        self._bodies = bodies
        self._body_bytes = 0
        self.settings = settings
        self.disconnected = False
        self.status = 0
        """0 until the answer has begun."""
        self.headers: dict[str, str] = {}
        """Sent with the answer, whichever it will be."""
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self._left: Callable[[], object] = _nothing
        """Hears that the client has gone."""
        self._request_headers = visit_of(scope).headers

    def header(self, name: str) -> str:
        """A request header, the first of its name; empty when it is absent."""
        return self._request_headers.get(name, "")

    @asynccontextmanager
    async def body(self) -> AsyncIterator[bytes]:
        """The whole JSON body; its share of what all bodies may hold is given back behind the
        block. Raises HttpError 408, 413, 415 and 503."""
        media_type = self.header("content-type").partition(";")[0].strip().lower()
        if media_type != "application/json":
            sent = f"is {media_type[:80]}" if media_type else "is missing"
            if media_type == FORM:
                sent += ", as curl -d has it by itself"
            message = f"the content-type {sent}; send JSON with content-type: application/json"
            raise HttpError(415, "unsupported_media_type", message)
        encoding = self.header("content-encoding").lower()
        if encoding not in ("", "identity"):
            message = f"the content-encoding is {encoding[:80]}; send the JSON as it is"
            raise HttpError(415, "unsupported_encoding", message)
        try:
            yield await self._in_time()
        finally:
            self._bodies.give_back(self._body_bytes)
            self._body_bytes = 0

    async def parts(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body as it comes, of a sender that keeps LEAST_BYTES_PER_S. Raises HttpError 408, and
        413 for more than so many bytes, of which as many again are read so that it hears why."""
        loop = asyncio.get_running_loop()
        began_s, size, more = loop.time(), 0, True
        while more and size <= 2 * limit_bytes:
            patience_s = self.settings.body_timeout_s + size / LEAST_BYTES_PER_S
            try:
                async with asyncio.timeout_at(began_s + patience_s):
                    message = await self._receive()
            except TimeoutError:
                self.headers["connection"] = "close"
                raise HttpError(408, "request_timeout", "the body took too long") from None
            if message["type"] == "http.disconnect":
                self.disconnected = True
                raise HttpError(400, "disconnected", "the body did not come")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= limit_bytes:
                yield part
        if size > limit_bytes:
            self.headers["connection"] = "close"
            raise HttpError(413, "body_too_large", f"the body has over {limit_bytes} bytes")

    def query(self, *names: str) -> dict[str, str]:
        """The query's parameters, of these names. Raises InvalidArgument for another one, and for
        one that occurs twice."""
        found: dict[str, str] = {}
        text = self.scope["query_string"].decode("latin-1")
        for name, value in parse_qsl(text, keep_blank_values=True):
            if name not in names:
                raise InvalidArgument(f"{name[:64]} is no parameter here", field=name[:64])
            if name in found:
                raise InvalidArgument(f"{name} occurs twice", field=name)
            found[name] = value
        return found

    async def _in_time(self) -> bytes:
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                return await self._read()
        except TimeoutError:
            self.headers["connection"] = "close"
            raise HttpError(408, "request_timeout", "the body took too long") from None

    async def _read(self) -> bytes:
        limit, data, size = self.settings.max_body_bytes, bytearray(), 0
        more, room = True, True
        while more and size <= DRAIN_BODIES * limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.disconnected = True
                raise HttpError(400, "disconnected", "the body did not come")
            part = message.get("body", b"")
            size += len(part)
            room = room and self._bodies.take(len(part))
            if room:
                self._body_bytes += len(part)
            if room and size <= limit:
                data += part
            else:
                data.clear()
                self._bodies.give_back(self._body_bytes)
                self._body_bytes = 0
            more = message.get("more_body", False)
        if size > limit:
            self.headers["connection"] = "close"
            raise HttpError(413, "body_too_large", f"the body has over {limit} bytes")
        if not room:
            raise HttpError(503, "overloaded", "too many bytes of requests are held already")
        return bytes(data)

    @contextmanager
    def leaving(self, left: Callable[[], object] = _nothing) -> Iterator[None]:
        """Calls `left` once if the client goes within the block, or has gone before; the body has
        been read. `disconnected` is true from then on. One task watches for all such blocks of a
        request."""
        before, self._left = self._left, left
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._until_disconnected())
        elif self.disconnected:
            left()
        try:
            yield
        finally:
            self._left = before

    async def _until_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        self._left()

    def close(self) -> None:
        """The request has been served. Raises what went wrong when its client left."""
        watch, self._watch = self._watch, None  # which holds this: a circle would outlive it
        if watch is not None and not watch.cancel():
            watch.result()

    async def answer(self, status: int, body: bytes, media_type: str = "application/json") -> None:
        """A whole answer."""
        await self.begin(status, {"content-type": media_type, "content-length": str(len(body))})
        await self.finish(body)

    async def fail(self, error: ShuntError) -> None:
        """An error as the whole answer."""
        self.headers |= retry_headers(error)
        if is_worth_no_retry(error):
            self.headers["x-should-retry"] = "false"
        await self.answer(status_of(error), body_of(error))

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status line and headers."""
        self.status = status
        pairs = {**headers, **self.headers}
        message = {
            "type": "http.response.start",
            "status": status,
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in pairs.items()],
        }
        await self._within(message)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """A part of the body; waits while the client does not read, until somebody calls `cut`:
        a timer for each of a stream's many events would cost more than they do."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def part(self, data: bytes) -> None:
        """A part of a long body, for a client that takes it in time."""
        await self._within({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes) -> None:
        """The last part of the body."""
        await self._within({"type": "http.response.body", "body": data, "more_body": False})

    async def _within(self, message: Message) -> None:
        """A client that takes nothing for `write_timeout_s` is cut off."""
        try:
            async with asyncio.timeout(self.settings.write_timeout_s):
                await self._send(message)
        except TimeoutError:
            self.cut()
            await asyncio.sleep(0)  # the server notices before it judges the answer

    def cut(self) -> None:
        """Ends the connection of a client that does not read; it counts as disconnected."""
        self.disconnected = True
        abort: Any = abort_of(self.scope)
        if abort is not None:
            abort()
