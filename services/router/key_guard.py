"""Stands before all RPCs of the gRPC door, as the guard of the HTTP door before all routes."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import grpc

from services.common.guards import Context, Continuation, Handler, guarded
from services.common.tenants import NOBODY, Tenant
from services.router import metrics
from services.router.doorkeeper import Doorkeeper, InvalidApiKey

_HEADER = "authorization"
_asks: ContextVar[Tenant] = ContextVar("asks", default=NOBODY)


def caller() -> Tenant:
    """Whose the RPC is that this task serves."""
    return _asks.get()


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Health checks and reflection are open."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        return guarded(handler, self._let_in)

    def _let_in(self, request: Any, context: Context) -> Any:
        shown = [
            value if isinstance(value, str) else value.decode("latin-1")
            for name, value in context.invocation_metadata() or ()
            if name == _HEADER
        ]
        try:
            _asks.set(self._doorkeeper.caller(shown))
        except InvalidApiKey:
            metrics.UNAUTHENTICATED.labels("grpc").inc()
            raise
        return request
