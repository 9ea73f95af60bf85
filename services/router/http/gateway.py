"""The HTTP door: OpenAI's completion APIs, resuming and cancelling, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from opentelemetry.trace import SpanKind
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common import logs, telemetry, wire
from services.common.errors import ShuntError
from services.common.generation import GenerationKind
from services.router import metrics
from services.router.ask import Ask
from services.router.core.body_budget import BodyBudget
from services.router.http.access import CLIENT_GONE, Access, visit_of
from services.router.http.cors import Cors
from services.router.http.errors import HttpError, body_of, code_of
from services.router.http.exchange import Exchange
from services.router.http.json_body import parse_object
from services.router.openai.answers import DONE, Answers
from services.router.openai.requests import OpenAiRequest, parse_chat, parse_completion
from services.router.retries import recognisable
from services.router.router import Router
from services.router.session import Session
from services.router.settings import RouterSettings

_log = logging.getLogger(__name__)
LARGE_BODY_BYTES = 256 << 10
MAX_EVENT_ID_CHARS = 4096
COMMENT = b": waiting\n"
"""No blank line behind it: clients that remember an event's id would take it for an event without
data."""
Handler = Callable[[Exchange], Awaitable[None]]
Parser = Callable[[dict[str, Any]], OpenAiRequest]


class Gateway:
    """Builds the ASGI application."""

    def __init__(self, router: Router, settings: RouterSettings, bodies: BodyBudget) -> None:
        self._router = router
        self._settings = settings
        self._large = asyncio.Semaphore(2)
        self._bodies = bodies

    def application(self) -> ASGIApp:
        """The routes; every answer, an error too, is in OpenAI's shape."""

        def route(path: str, handler: Handler, method: str) -> Route:
            endpoint = _Endpoint(path, handler, self._settings, self._bodies)
            taken = Route(path, endpoint, methods=[method])
            if path.endswith("/stream") and taken.methods is not None:
                taken.methods.discard("HEAD")  # who asks for no body must not become its reader
            return taken

        application = Starlette(
            routes=[
                route("/v1/chat/completions", self._chat, "POST"),
                route("/v1/completions", self._completion, "POST"),
                route("/v1/models", self._models, "GET"),
                route("/v1/models/{model:path}", self._model, "GET"),
                route("/v1/generations/{id}/stream", self._resume, "GET"),
                route("/v1/generations/{id}/cancel", self._cancel, "POST"),
                route("/v1/generations/{id}", self._cancel, "DELETE"),
                Route("/healthz", _healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", _metrics),
            ],
            exception_handlers={HTTPException: _refused},
        )
        application.router.redirect_slashes = False
        return Access(application, Cors(self._settings.cors_origins))

    async def _chat(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_chat)

    async def _completion(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_completion)

    async def _complete(self, exchange: Exchange, parse: Parser) -> None:
        session, streamed = await self._begun(exchange, parse)
        with _attached(session, exchange):
            if streamed:
                await self._stream(exchange, session, role=True)
            else:
                await self._whole(exchange, session)

    async def _begun(self, exchange: Exchange, parse: Parser) -> tuple[Session, bool]:
        """The generation, and whether its answer is streamed; of the body nothing is left."""
        async with exchange.body() as body:

            def understood() -> tuple[Ask, bool]:
                request, path = parse(parse_object(body)), exchange.scope["path"]
                return recognisable(request.ask, path, exchange.header, body), request.stream

            if len(body) > LARGE_BODY_BYTES:
                async with self._large:
                    ask, streamed = await asyncio.to_thread(understood)
            else:
                ask, streamed = understood()
            async with _while_connected(exchange):
                session = await self._router.generate(ask)
            return session, streamed

    async def _resume(self, exchange: Exchange) -> None:
        generation_id, after = _named(exchange), exchange.header("last-event-id")
        if len(after) > MAX_EVENT_ID_CHARS:
            said = f"last-event-id has {len(after)} characters, over {MAX_EVENT_ID_CHARS}"
            raise HttpError(400, "invalid_argument", said)
        async with _while_connected(exchange):
            session = await self._router.resume(generation_id, after or None)
        with _attached(session, exchange):
            await self._stream(exchange, session, role=not after)

    async def _cancel(self, exchange: Exchange) -> None:
        generation_id = _named(exchange)
        await self._router.cancel(generation_id)
        await exchange.answer(200, json.dumps({"id": generation_id, "cancelled": True}).encode())

    async def _stream(self, exchange: Exchange, session: Session, *, role: bool) -> None:
        """Server-sent events until the end, or until the client has gone."""
        transcript = session.transcript
        answers = Answers(transcript.request, transcript.vocabulary)
        async with _watched(exchange, session):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.first_event_s):
                    while not (session.ended or transcript.waiting_bytes or exchange.disconnected):
                        await _next(session)
        if exchange.disconnected:
            return
        if session.error is not None and not transcript.waiting_bytes:
            raise session.error
        first = b""
        if role and transcript.request.kind is GenerationKind.CHAT:
            first = answers.roles(transcript.event_id())
        await exchange.begin(200, _STREAM_HEADERS)
        session.resumable = True
        session.cut = exchange.cut
        async with _watched(exchange, session):
            session.wake.set()
            while not exchange.disconnected:
                await _next(session)
                ended = session.ended
                data = first + answers.chunks(transcript.take())
                first = b""
                if ended:
                    data += _ending(session, answers)
                if not data and not session.comment_due:
                    continue
                session.write_began()
                await exchange.write(data or COMMENT, more=not ended)
                session.written()
                if ended:
                    return

    async def _whole(self, exchange: Exchange, session: Session) -> None:
        """One answer when everything is there."""
        async with _watched(exchange, session):
            while not (session.ended or exchange.disconnected):
                await _next(session)
            if not session.ended:
                return
            if session.error is not None:
                raise session.error
            transcript = session.transcript
            answers = Answers(transcript.request, transcript.vocabulary)
            whole = answers.whole(transcript.take(), transcript.usage)
            await exchange.answer(200, whole)

    async def _models(self, exchange: Exchange) -> None:
        models = [self._described(name) for name in self._router.catalogue.names()]
        await exchange.answer(200, json.dumps({"object": "list", "data": models}).encode())

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.scope["path_params"]["model"]
        self._router.catalogue.current(name)
        await exchange.answer(200, json.dumps(self._described(name)).encode())

    def _described(self, name: str) -> dict[str, Any]:
        created = self._router.catalogue.first_seen.get(name, 0)
        return {"id": name, "object": "model", "created": created, "owned_by": "shuntserve"}

    async def _readyz(self, request: Request) -> Response:
        reason = self._router.why_not_ready
        if reason is None:
            return Response(b'{"ready":true}', media_type="application/json")
        said = {"ready": False, "reason": reason.message, "permanent": reason.permanent}
        body = json.dumps(said, ensure_ascii=False).encode()
        return Response(body, 503, media_type="application/json", headers={"retry-after": "1"})


_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def _named(exchange: Exchange) -> str:
    """The generation that the path names; the answer will name it, too. Raises InvalidArgument."""
    generation_id = wire.generation_id_from(exchange.scope["path_params"]["id"])
    exchange.headers["x-generation-id"] = generation_id
    visit_of(exchange.scope).facts["generation_id"] = generation_id
    logs.about(generation_id=generation_id)
    return generation_id


async def _next(session: Session) -> None:
    await session.wake.wait()
    session.wake.clear()


def _ending(session: Session, answers: Answers) -> bytes:
    transcript = session.transcript
    if session.error is not None:
        return b"data: " + body_of(session.error) + b"\n\n"
    usage = b""
    if transcript.request.include_usage and session.owes_usage:
        usage = answers.usage(transcript.end_id(), transcript.usage)
    return usage + DONE


@contextlib.contextmanager
def _attached(session: Session, exchange: Exchange) -> Iterator[None]:
    """Every answer about a generation names it; leaving detaches the reader."""
    exchange.headers["x-generation-id"] = session.generation_id
    facts = visit_of(exchange.scope).facts
    try:
        yield
    finally:
        session.close()
        facts.update(session.facts)
        if session.error is not None:
            facts["error"] = code_of(session.error)
        elif not session.ended:
            facts["error"] = "disconnected"


@contextlib.asynccontextmanager
async def _while_connected(exchange: Exchange) -> AsyncIterator[None]:
    """Ends the block when the client has gone: nothing begins for nobody."""
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        await exchange.until_disconnected()
        gone.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as gone:
            task = loop.create_task(watch())
            try:
                yield
            finally:
                task.cancel()
    except TimeoutError:
        raise HttpError(400, "disconnected", "the client has gone") from None


@contextlib.asynccontextmanager
async def _watched(exchange: Exchange, session: Session) -> AsyncIterator[None]:
    """Wakes the session's reader when the client has gone."""

    async def watch() -> None:
        await exchange.until_disconnected()
        session.wake.set()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


class _Endpoint:
    """Wraps a handler in a span, its errors and its metrics."""

    def __init__(
        self, path: str, handler: Handler, settings: RouterSettings, bodies: BodyBudget
    ) -> None:
        self._path = path
        self._bodies = bodies
        self._handler = handler
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._settings, self._bodies)
        method, visit = scope["method"], visit_of(scope)
        visit.route = self._path
        with telemetry.span(
            f"{method} {self._path}",
            kind=SpanKind.SERVER,
            parent=telemetry.parent_of(exchange.header("traceparent")),
            attributes={
                "http.request.method": method,
                "http.route": self._path,
                "shunt.request_id": visit.request_id,
            },
        ) as span:
            await self._serve(exchange)
            status = exchange.status or CLIENT_GONE
            span.set_attribute("http.response.status_code", status)
            generation_id = exchange.headers.get("x-generation-id")
            if generation_id:
                span.set_attribute("shunt.generation_id", generation_id)
        metrics.REQUESTS.labels(self._path, str(status)).inc()

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except ShuntError as error:
            await self._fail(exchange, error)
        except Exception:
            _log.exception("a request failed")
            failure = HttpError(500, "internal_error", "the router failed")
            await self._fail(exchange, failure)

    async def _fail(self, exchange: Exchange, error: ShuntError) -> None:
        if exchange.disconnected:
            return
        if exchange.status == 0:
            await exchange.fail(error)
        else:
            await exchange.finish(b"data: " + body_of(error) + b"\n\n")


async def _refused(request: Request, error: Exception) -> Response:
    """What no route takes."""
    assert isinstance(error, HTTPException)
    method, path, allowed = request.method, request.url.path, (error.headers or {}).get("Allow")
    if method == "OPTIONS" and allowed is not None:
        return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
    code, said = "refused", error.detail
    if error.status_code == 404:
        code, said = "not_found", f"there is no route {path[:80]}; the API's routes begin with /v1/"
    elif allowed is not None:
        code, said = "method_not_allowed", f"{path[:80]} takes {allowed}, not {method[:16]}"
    refusal = HttpError(error.status_code, code, said)
    return Response(
        body_of(refusal), error.status_code, headers=error.headers, media_type="application/json"
    )


async def _healthz(_request: Request) -> Response:
    return Response(b'{"alive":true}', media_type="application/json")


async def _metrics(_request: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
