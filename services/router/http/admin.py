"""What operators ask a router for: whether it lives and serves, and what it counts.

Both are at a listener of their own, where there is one; health is at the public door as well.
"""

from __future__ import annotations

import json

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from services.router.router import Router


def health_routes(router: Router) -> tuple[Route, ...]:
    """Whether it lives, and whether it takes requests."""

    async def readyz(_request: Request) -> Response:
        reason = router.why_not_ready
        if reason is None:
            return Response(b'{"ready":true}', media_type="application/json")
        said = {"ready": False, "reason": reason.message, "permanent": reason.permanent}
        body = json.dumps(said, ensure_ascii=False).encode()
        headers = {"retry-after": "1"}
        return Response(body, 503, media_type="application/json", headers=headers)

    return Route("/healthz", _healthz), Route("/readyz", readyz), Route("/health", readyz)


async def _healthz(_request: Request) -> Response:
    return Response(b'{"alive":true}', media_type="application/json")


async def _metrics(_request: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


METRICS_ROUTE = Route("/metrics", _metrics)


def admin_application(router: Router) -> ASGIApp:
    """The operators' listener; whoever reaches it is one."""
    return Starlette(routes=[*health_routes(router), METRICS_ROUTE])
