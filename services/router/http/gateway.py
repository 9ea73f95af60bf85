"""The HTTP door: OpenAI's completion APIs, resuming and cancelling, health and metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from difflib import get_close_matches
from typing import Any

from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common import telemetry, wire
from services.common.errors import ShuntError
from services.router import metrics
from services.router.ask import Ask
from services.router.background import Background
from services.router.core.body_budget import BodyBudget
from services.router.doorkeeper import Doorkeeper
from services.router.http.access import CLIENT_GONE, Access, visit_of
from services.router.http.admin import METRICS_ROUTE, health_routes
from services.router.http.answering import (
    Chunks,
    about,
    attached,
    name,
    stream,
    while_connected,
    whole,
)
from services.router.http.asking import asked_by
from services.router.http.bodies import Bodies
from services.router.http.cors import Cors
from services.router.http.errors import HttpError, body_of
from services.router.http.exchange import Exchange
from services.router.http.guard import Guard
from services.router.http.json_body import parse_object
from services.router.http.offline import Offline, offline_routes
from services.router.http.responses import Responses
from services.router.http.tokens import TokenRoutes
from services.router.http.views import capabilities, state_of
from services.router.openai.requests import OpenAiRequest, parse_chat, parse_completion
from services.router.openapi.document import document, release
from services.router.router import Router
from services.router.session import Session
from services.router.settings import RouterSettings
from services.router.slices import Slices

_log = logging.getLogger(__name__)
MAX_EVENT_ID_CHARS = 4096
BEGUN_AT_ONCE = 4
"""Requests of a crowd that comes; streams that are open wait for no more of them."""
Handler = Callable[[Exchange], Awaitable[None]]
Parser = Callable[[dict[str, Any]], OpenAiRequest]


class Gateway:
    """Builds the ASGI application."""

    def __init__(
        self,
        router: Router,
        background: Background,
        settings: RouterSettings,
        bodies: BodyBudget,
        doorkeeper: Doorkeeper,
        offline: Offline | None,
    ) -> None:
        """Without `offline` there are neither files nor batches."""
        self._router = router
        self._doorkeeper = doorkeeper
        self._offline = offline
        self._settings = settings
        self._understanding = Bodies()
        self._turns = Slices(BEGUN_AT_ONCE)
        self._responses = Responses(router, background, self._understanding)
        self._bodies = bodies
        self._document = b""

    def application(self) -> ASGIApp:
        """Every answer, an error too, is in OpenAI's shape."""
        application = Starlette(routes=self.routes(), exception_handlers={HTTPException: _refused})
        application.router.redirect_slashes = False
        described = document(routes_of(application), asks_for_keys=self._doorkeeper.asks)
        self._document = json.dumps(described, ensure_ascii=False).encode()
        guarded = Guard(application, self._doorkeeper, self._router.quotas)
        return Access(guarded, Cors(self._settings.cors_origins))

    def routes(self) -> list[Route]:
        """All there are."""

        def route(path: str, handler: Handler, method: str) -> Route:
            endpoint = _Endpoint(path, handler, self._settings, self._bodies)
            taken = Route(path, endpoint, methods=[method])
            if path.endswith("/stream") and taken.methods is not None:
                taken.methods.discard("HEAD")  # who asks for no body must not become its reader
            return taken

        tokens = TokenRoutes(self._router)
        offline = [route(*one) for one in offline_routes(self._offline, self._settings)]
        return [
            route("/v1/chat/completions", self._chat, "POST"),
            route("/v1/completions", self._completion, "POST"),
            route("/v1/responses", self._responses.create, "POST"),
            route("/v1/responses/{id}", self._responses.retrieve, "GET"),
            route("/v1/responses/{id}", self._responses.delete, "DELETE"),
            route("/v1/responses/{id}/cancel", self._responses.cancel, "POST"),
            route("/v1/responses/{id}/input_items", self._responses.input_items, "GET"),
            route("/v1/models", self._models, "GET"),
            route("/v1/models/{model:path}", self._model, "GET"),
            route("/v1/generations/{id}/stream", self._resume, "GET"),
            route("/v1/generations/{id}/cancel", self._cancel, "POST"),
            route("/v1/generations/{id}", self._state, "GET"),
            route("/v1/generations/{id}", self._cancel, "DELETE"),
            route("/tokenize", tokens.tokenize, "POST"),
            route("/detokenize", tokens.detokenize, "POST"),
            route("/version", _version, "GET"),
            route("/openapi.json", self._describe, "GET"),
            *offline,
            *health_routes(self._router),
            *(() if self._metrics_are_elsewhere else (METRICS_ROUTE,)),
        ]

    @property
    def _metrics_are_elsewhere(self) -> bool:
        """What all tenants do is not for each of them to see."""
        return self._doorkeeper.asks or self._settings.admin_port is not None

    async def _chat(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_chat)

    async def _completion(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_completion)

    async def _complete(self, exchange: Exchange, parse: Parser) -> None:
        with attached(exchange) as sessions:
            if await self._begin(exchange, parse, sessions):
                await stream(exchange, sessions, Chunks(sessions, role=True))
            else:
                await whole(exchange, sessions)

    async def _begin(self, exchange: Exchange, parse: Parser, sessions: list[Session]) -> bool:
        """Begins a generation a prompt; whether the answer is streamed. Of the body nothing is
        left."""
        async with exchange.body() as body:

            def understand(body: bytes) -> tuple[list[Ask], bool]:
                request = parse(parse_object(body))
                every = enumerate((request.ask, *request.further))
                asks = [asked_by(exchange, ask, body, place) for place, ask in every]
                return asks, request.stream

            await self._turns.turn()
            asks, streamed = await self._understanding.understood(body, understand)
            for ask in asks[1:]:  # before any of them is begun, as the first one is checked
                ask.check(self._settings.max_choices)
            async with while_connected(exchange):
                for ask in asks:
                    sessions.append(await self._router.generate(ask))
                    name(exchange, sessions)
            return streamed

    async def _resume(self, exchange: Exchange) -> None:
        generation_id, after = _named(exchange), exchange.header("last-event-id")
        after = after.removeprefix(f"{generation_id}:")
        if len(after) > MAX_EVENT_ID_CHARS:
            said = f"last-event-id has {len(after)} characters, over {MAX_EVENT_ID_CHARS}"
            raise HttpError(400, "invalid_argument", said)
        async with while_connected(exchange):
            session = await self._router.resume(generation_id, after or None, exchange.tenant)
        with attached(exchange, session) as sessions:
            await stream(exchange, sessions, Chunks(sessions, role=not after))

    async def _state(self, exchange: Exchange) -> None:
        view = await self._router.held.view(_named(exchange), exchange.tenant)
        await exchange.answer(200, json.dumps(state_of(view)).encode())

    async def _cancel(self, exchange: Exchange) -> None:
        generation_id = _named(exchange)
        await self._router.held.cancel(generation_id, exchange.tenant)
        await exchange.answer(200, json.dumps({"id": generation_id, "cancelled": True}).encode())

    async def _models(self, exchange: Exchange) -> None:
        models = [self._described(name) for name in self._router.models.names(exchange.tenant)]
        await exchange.answer(200, json.dumps({"object": "list", "data": models}).encode())

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.scope["path_params"]["model"]
        self._router.models.check(name, exchange.tenant)
        await exchange.answer(200, json.dumps(self._described(name)).encode())

    def _described(self, name: str) -> dict[str, Any]:
        catalogue = self._router.catalogue
        model, positions = catalogue.loaded(name), self._router.models.positions(name)
        return {
            "id": name,
            "object": "model",
            "created": catalogue.first_seen.get(name, 0),
            "owned_by": "shuntserve",
            "root": name,
            "parent": None,
            "max_model_len": positions or None,
            "capabilities": None if model is None else capabilities(chats=model.chats),
        }

    async def _describe(self, exchange: Exchange) -> None:
        await exchange.answer(200, self._document)


def _named(exchange: Exchange) -> str:
    """The generation that the path names; the answer will name it, too. Raises InvalidArgument."""
    generation_id = wire.generation_id_from(exchange.scope["path_params"]["id"])
    about(exchange, generation_id)
    return generation_id


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
            try:
                await self._handler(exchange)
            finally:
                exchange.close()
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


def routes_of(application: Starlette) -> list[tuple[str, str]]:
    """Methods and paths of its routes; HEAD goes with GET."""
    routes = (route for route in application.routes if isinstance(route, Route))
    return [(m, route.path) for route in routes for m in sorted(route.methods or ()) if m != "HEAD"]


def _lost(path: str, taken: Sequence[tuple[str, str]]) -> str:
    """That there is no such route, and what there is."""
    near = get_close_matches(path, [at for _, at in taken], n=3, cutoff=0.5)
    there = [f"{method} {at.replace(':path', '')}" for method, at in taken if at in near]
    meant = f"; like it there is {', '.join(there)}" if there else ""
    return f"there is no route {path}{meant}; GET /openapi.json has them all"


async def _refused(request: Request, error: Exception) -> Response:
    """What no route takes."""
    assert isinstance(error, HTTPException)
    method, path, allowed = request.method, request.url.path, (error.headers or {}).get("Allow")
    if method == "OPTIONS" and allowed is not None:
        return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
    code, said = "refused", error.detail
    if error.status_code == 404:
        code, said = "not_found", _lost(path[:80], routes_of(request.app))
    elif allowed is not None:
        code, said = "method_not_allowed", f"{path[:80]} takes {allowed}, not {method[:16]}"
    refusal = HttpError(error.status_code, code, said)
    return Response(
        body_of(refusal), error.status_code, headers=error.headers, media_type="application/json"
    )


async def _version(exchange: Exchange) -> None:
    await exchange.answer(200, json.dumps({"version": release()}).encode())
