"""What every HTTP request gets, whatever its route: an id, CORS headers, a line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common import logs
from services.router.http.cors import Cors

PROBES = frozenset(("/health", "/healthz", "/readyz", "/metrics"))
"""Asked for every few seconds by machines: their lines are for debugging only."""
CLIENT_GONE = 499
"""The status in log and metrics of a request whose client left before its answer began; nobody is
sent it."""
_VISIT = "shunt.visit"
_PATH_CHARS = 200


@dataclass(slots=True)
class Visit:
    """One request, as its line in the log will tell it."""

    request_id: str
    headers: Mapping[str, str]
    """The request's, by names in lower case; of a name that comes twice the first."""
    route: str = ""
    """The path as the route has it; empty when no route took it."""
    status: int = 0
    sent_bytes: int = 0
    facts: dict[str, str | int] = field(default_factory=dict)
    """The generation's, where there is one."""


def visit_of(scope: Scope) -> Visit:
    """The request that a handler serves."""
    visit: Visit = scope[_VISIT]
    return visit


class Access:
    """Stands before all routes."""

    def __init__(
        self, app: ASGIApp, cors: Cors, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._cors = cors
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = self._clock()
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }
        visit = Visit(logs.request_id_from(headers.get(logs.REQUEST_ID_HEADER, "")), headers)
        logs.about(request_id=visit.request_id)
        path = scope["path"]
        if path.endswith("/") and path != "/":  # as what stands before the slash
            scope = {**scope, "path": path[:-1]}
        scope[_VISIT] = visit
        added = [
            (logs.REQUEST_ID_HEADER.encode(), visit.request_id.encode()),
            *self._cors.headers(headers),
        ]

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message = {**message, "headers": [*message["headers"], *added]}
            else:
                visit.sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            preflight = self._cors.preflight(headers) if scope["method"] == "OPTIONS" else []
            if preflight:
                answer = Response(status_code=204)
                answer.raw_headers += preflight
                await answer(scope, receive, noted)
            else:
                await self._app(scope, receive, noted)
        finally:
            self._tell(scope, visit, self._clock() - began_s)

    def _tell(self, scope: Scope, visit: Visit, duration_s: float) -> None:
        path = scope["path"]
        level = logging.DEBUG if path in PROBES else logging.INFO
        logs.access.log(
            level,
            "request",
            extra={
                "method": scope["method"],
                "route": visit.route or path[:_PATH_CHARS],
                "status": visit.status or CLIENT_GONE,
                "duration_s": round(duration_s, 4),
                "sent_bytes": visit.sent_bytes,
                **visit.facts,
            },
        )
