"""Stands before all routes: nobody comes to one without a key, where the router has keys."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.tenants import Tenant
from services.router import metrics
from services.router.core.quotas import Quotas
from services.router.doorkeeper import Doorkeeper, InvalidApiKey
from services.router.http.access import visit_of
from services.router.http.errors import body_of, code_of, status_of

OPEN_PATHS = frozenset(("/health", "/healthz", "/readyz"))
"""Whether it lives and serves, anybody may ask."""
_TENANT = "shunt.tenant"


def tenant_of(scope: Scope) -> Tenant:
    """Whose request it is, of one that came through."""
    tenant: Tenant = scope[_TENANT]
    return tenant


class Guard:
    """Asks before anything is read of a request but its head; a path that no route takes asks for
    a key as well."""

    def __init__(
        self,
        app: ASGIApp,
        doorkeeper: Doorkeeper,
        quotas: Quotas,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._doorkeeper = doorkeeper
        self._quotas = quotas
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS:
            shown = [value.decode("latin-1") for name, value in scope["headers"] if name == _SHOWS]
            facts = visit_of(scope).facts
            try:
                tenant = self._doorkeeper.caller(shown)
            except InvalidApiKey as error:
                facts["error"] = code_of(error)
                metrics.UNAUTHENTICATED.labels("http").inc()
                await _refusal(error)(scope, receive, send)
                return
            scope[_TENANT] = tenant
            if tenant.name:
                facts["tenant"] = tenant.name
                send = self._telling(tenant, send)
        await self._app(scope, receive, send)

    def _telling(self, tenant: Tenant, send: Send) -> Send:
        """Answers say what is left of the tenant's limits a minute, as OpenAI's do."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                standings = self._quotas.standings(tenant, self._clock())
                left = [
                    (f"x-ratelimit-{what}-{limit}".encode(), value.encode())
                    for limit, standing in zip(_LIMITS, standings, strict=True)
                    if standing is not None
                    for what, value in (
                        ("limit", str(standing.limit)),
                        ("remaining", str(standing.remaining)),
                        ("reset", f"{standing.reset_s:.3f}s"),
                    )
                ]
                message = {**message, "headers": [*message["headers"], *left]}
            await send(message)

        return told


_SHOWS = b"authorization"
_LIMITS = ("requests", "tokens")


def _refusal(error: InvalidApiKey) -> Response:
    return Response(
        body_of(error),
        status_of(error),
        headers={"www-authenticate": "Bearer"},
        media_type="application/json",
    )
